"""Where steps end in a text, compared with decoding every prefix of the answer."""

import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench.run.offsets import offsets

Decode = Callable[[Sequence[int]], str]
TEXTS = (
    "plain words, and more of them.\n\n  indented\ttabs",
    "naïve 好的 🙂🙃 👩‍👩‍👧 \u202e\u0000 ok",
    "नमस्ते दुनिया " * 5,
)


def byte_level() -> Tokenizer:
    """One token a byte, the worst case of a byte-level BPE."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: at for at, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def fallback() -> Tokenizer:
    """Words with a mark for the space, bytes for the rest, as in Llama 2's tokenizer."""
    words = ["▁plain", "▁words", "▁and", "▁more", "▁", "o", "k", "a", ",", "."]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + words
    tokenizer = Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def decoded(tokenizer: Tokenizer) -> Decode:
    return lambda ids: str(tokenizer.decode(list(ids)))


def expected(decode: Decode, ids: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Length of the common prefix of the text and each prefix of the answer, decoded whole."""
    text = decode(ids)
    ends = []
    for count in counts:
        pairs = enumerate(zip(decode(ids[:count]), text, strict=False))
        found = min(len(decode(ids[:count])), len(text))
        ends.append(next((at for at, (a, b) in pairs if a != b), found))
    return [max(ends[: at + 1]) for at in range(len(ends))]


def steps(total: int, most: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    counts = [1]
    while counts[-1] < total:
        counts.append(min(total, counts[-1] + draw.randint(1, most)))
    return counts


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_a_character_count_when_it_is_whole(text: str, most: int) -> None:
    tokenizer = byte_level()
    ids, decode = tokenizer.encode(text).ids, decoded(tokenizer)
    assert decode(ids) == text
    counts = steps(len(ids), most, seed=3)
    found = offsets(decode, ids, counts, text)
    # Exactly: the characters whose bytes are all there.
    whole = list(accumulate(len(char.encode()) for char in text))
    assert found == [sum(end <= count for end in whole) for count in counts]


@pytest.mark.parametrize("make", [byte_level, fallback])
@pytest.mark.parametrize("seed", range(8))
def test_any_ids_at_all(make: Callable[[], Tokenizer], seed: int) -> None:
    tokenizer, draw = make(), random.Random(seed)
    ids = [draw.randrange(tokenizer.get_vocab_size()) for _ in range(60)]
    if make is fallback:  # words among bytes, half and half
        ids = [draw.randrange(256, tokenizer.get_vocab_size()) if i % 2 else i for i in ids]
    decode = decoded(tokenizer)
    counts = steps(len(ids), 3, seed)
    found = offsets(decode, ids, counts, decode(ids))
    assert found == expected(decode, ids, counts)
    assert found[-1] == len(decode(ids))


def test_a_space_at_the_start_of_a_piece_is_not_lost() -> None:
    tokenizer = fallback()
    vocabulary = tokenizer.get_vocab()
    words = [vocabulary[word] for word in ("▁plain", "▁words", "▁and", "▁more")]
    decode = decoded(tokenizer)
    assert decode(words) == "plain words and more"
    assert offsets(decode, words, [1, 2, 3, 4], decode(words)) == [5, 11, 15, 20]


def test_ids_without_text_and_answers_of_one_id() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<end>"])
    end, decode = tokenizer.get_vocab()["<end>"], decoded(tokenizer)
    ids = [end, *tokenizer.encode("é").ids, end, *tokenizer.encode("!").ids, end]
    assert decode(ids) == "é!"
    assert offsets(decode, ids, list(range(1, 7)), "é!") == [0, 0, 1, 1, 2, 2]
    assert offsets(decode, [end], [1], "") == [0]


def test_a_text_that_starts_do_not_decode_to_is_found_at_its_end() -> None:
    ids = list(range(3000))
    found = offsets(lambda some: "x" * (len(some) == len(ids)), ids, [1, 2000, 3000], "x")
    assert found == [0, 0, 1]


@pytest.mark.parametrize("text", ["word 好 " * 12_500, "🙂" * 25_000, "\ufffd" * 33_000])
def test_long_answers_take_linear_time(text: str) -> None:
    tokenizer = byte_level()
    ids, decode = tokenizer.encode(text).ids, decoded(tokenizer)
    assert len(ids) >= 99_000
    decodings = []

    def counted(some: Sequence[int]) -> str:
        decodings.append(len(some))
        return decode(some)

    started = time.perf_counter()
    found = offsets(counted, ids, steps(len(ids), 4, seed=0), text)
    assert found[-1] == len(text)
    assert sum(decodings) < 40 * len(ids)
    assert time.perf_counter() - started < 30
