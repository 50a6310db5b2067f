"""The target writing conversations, and the folder that is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from bench.errors import UsageError
from bench.questions import registry
from bench.questions import sets as prompts
from bench.targets.synthetic import predictable, tokenizer
from bench.training.conversations import Conversation
from bench.training.distill import DistillConfig, distill
from bench.training.given import batch_of
from bench.training.writer import Writer, WriterSettings
from tests.training.drafts import TEMPLATE, chat_target

VOCAB, END = 64, 63
OPENING, TURN, NEXT = (9, 3), (END, 5, 6), (END, 7)
CONVERSATION = Conversation(OPENING, TURN, NEXT)
GIVEN = WriterSettings(batch=12, length=160)


@pytest.fixture(autouse=True, scope="module")
def packaged_sets_alone() -> Iterator[None]:
    """The others would be fetched."""
    with pytest.MonkeyPatch.context() as patch:
        packaged = {name: registry.REGISTRY[name] for name in ("mini", "tuning")}
        patch.setattr(registry, "REGISTRY", packaged)
        yield


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return predictable()[0]


def write(
    model: LlamaForCausalLM, settings: WriterSettings, given: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return Writer(model, CONVERSATION, settings, generator).write(given)


def two_turns() -> Tensor:
    """[12, 2, 9] of ids below END, of every length from 1 to 9."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(END, (12, 2, 9), generator=generator)
    lengths = torch.randint(1, 10, (12, 2, 1), generator=generator)
    return given.masked_fill(torch.arange(9) >= lengths, -1)


Part = tuple[str, list[int], list[int]]


def parts(ids: Sequence[int], roles: Sequence[int]) -> Iterator[Part]:
    """(user or answer, tokens without the end, roles of the same and of the end) in turns.

    AssertionError where the template's tokens do not stand as they must, or have a role.
    """
    assert tuple(ids[: len(OPENING)]) == OPENING
    assert not any(roles[: len(OPENING)])
    at, kinds = len(OPENING), (("user", TURN), ("answer", NEXT))
    while True:
        for kind, template in kinds:
            stop = at
            while stop < len(ids) and ids[stop] != END:
                stop += 1
            yield kind, list(ids[at:stop]), list(roles[at : stop + 1])
            after = slice(stop + 1, stop + len(template))
            cut = template[1 : 1 + len(ids[after])]
            if stop >= len(ids):
                return
            if any(ids[stop + 1 :]):  # zeros follow the last answer
                assert tuple(ids[after]) == cut
            assert not any(roles[after])
            at = stop + len(template)
            if at >= len(ids):
                return


def check_greedy(model: LlamaForCausalLM, ids: Tensor, roles: Tensor) -> None:
    said = model(input_ids=ids).logits.argmax(dim=-1)[:, :-1]
    answered = roles[:, 1:].bool()
    assert torch.equal(ids[:, 1:][answered], said[answered])


def test_given_prompts_are_answered_greedily_over_two_turns(model: LlamaForCausalLM) -> None:
    given = two_turns()
    ids, roles = write(model, GIVEN, given)
    assert ids.shape == roles.shape == (12, 160)
    check_greedy(model, ids, roles)
    second = 0
    for row in range(12):
        questions = [[token for token in turn if token >= 0] for turn in given[row].tolist()]
        found = list(parts(ids[row].tolist(), roles[row].tolist()))
        asked = [words for kind, words, _ in found if kind == "user"]
        assert asked[0] == questions[0]
        answers = [(words, marks) for kind, words, marks in found[:4] if kind == "answer"]
        for words, marks in answers:
            assert all(marks), "an answer and its end"
            assert len(marks) in (len(words), len(words) + 1)
        if len(asked) > 1:
            second += 1
            assert asked[1] == questions[1][: len(asked[1])]
        written = sum(len(marks) for _, marks in answers)
        assert int(roles[row].sum()) == written, "nothing else has a role"
    assert second >= 3


def test_the_end_of_the_last_turn_ends_the_conversation(model: LlamaForCausalLM) -> None:
    ids, roles = write(model, GIVEN, two_turns()[:, :1])
    ended = 0
    for row in range(12):
        last = int(roles[row].nonzero()[-1])
        ended += last < 159
        assert not ids[row, last + 1 :].any()
        assert last == 159 or ids[row, last] == END
    assert ended >= 3


def test_sampled_turns_that_are_cut_are_not_kept(model: LlamaForCausalLM) -> None:
    settings = WriterSettings(batch=32, length=96, user_tokens=12, min_p=0.02)
    ids, roles = write(model, settings)
    check_greedy(model, ids, roles)
    kept = dropped = 0
    for row in range(32):
        found = list(parts(ids[row].tolist(), roles[row].tolist()))
        for (kind, words, marks), (_, answer, role) in zip(found[::2], found[1::2], strict=False):
            assert kind == "user"
            assert not any(marks)
            assert 1 <= len(words) <= 11
            assert not role or len(set(role)) == 1, "an answer is kept as a whole"
            if len(words) < 11:
                assert all(role), "the turn ended by itself"
            kept += bool(role and role[0])
            dropped += bool(answer and not role[0])
    assert kept >= 5
    assert dropped >= 5


def test_sampling_repeats_with_its_seed(model: LlamaForCausalLM) -> None:
    settings = WriterSettings(batch=4, length=70, user_tokens=12, answer_temperature=1.0)
    before = torch.get_rng_state()
    first, again, other = (write(model, settings, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not to be used"


def test_a_writer_starts_anew_with_every_batch(model: LlamaForCausalLM) -> None:
    writer = Writer(model, CONVERSATION, GIVEN, torch.Generator())
    given = two_turns()
    first = writer.write(given)
    writer.write(given.flip(0))
    again = writer.write(given)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# Folders of conversations


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model that often says the token that ends a slot."""
    return chat_target(tmp_path_factory.mktemp("targets") / "small")


def config(target: str, out: Path, **changes: Any) -> DistillConfig:
    base = DistillConfig(
        model=target,
        out=str(out),
        shards=3,
        batch=16,
        length=64,
        user_tokens=24,
        device="cpu",
        dtype="float32",
    )
    return replace(base, **changes)


def card_of(out: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((out / "data.json").read_text())
    return card


def rows_of(out: Path) -> Tensor:
    return torch.cat([load_file(path)["ids"] for path in sorted(out.glob("*.safetensors"))])


@pytest.fixture(scope="module")
def folder(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("distilled")
    distill(config(target, out))
    return out


def test_the_slots_of_a_template() -> None:
    words = tokenizer(320, 2048)
    words.chat_template = TEMPLATE
    found = Conversation.of(words, None)
    assert [words.decode(part) for part in (found.opening, found.turn, found.next_turn)] == [
        "go+",
        "<eos>=",
        "<eos>+",
    ]
    words.chat_template = TEMPLATE.replace("<eos>", "\n")
    with pytest.raises(UsageError, match="without a token of its own"):
        Conversation.of(words, None)
    words.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(UsageError, match="changes the text of its messages"):
        Conversation.of(words, None)


def test_the_card_counts_what_the_shards_hold(folder: Path) -> None:
    card = card_of(folder)
    shards = [load_file(folder / shard["file"]) for shard in card["shards"]]
    assert len(shards) == 3
    assert card["sequences"] == sum(len(shard["ids"]) for shard in shards) > 0
    assert card["answer_tokens"] == sum(int(shard["roles"].sum()) for shard in shards) > 0
    assert card["sequences"] + sum(card["dropped"].values()) == 3 * 16
    assert card["target"] == "small"
    assert (card["checked_against"], card["not_checked_against"]) == (["mini", "tuning"], {})
    assert card["settings"]["length"] == 64
    assert all(shard["roles"].any(dim=1).all() for shard in shards), "each has a kept answer"


def test_no_first_turn_comes_twice(folder: Path) -> None:
    opening, turn = 3, 256
    firsts = []
    for row in rows_of(folder).tolist():
        words = row[opening:]
        firsts.append(tuple(words[: words.index(turn)]))
    assert len(set(firsts)) == len(firsts)


def test_a_lost_shard_alone_is_written_again(target: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    distill(config(target, out))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards_of(out)}
    lost = out / "00002.safetensors"
    lost.unlink()
    distill(config(target, out))
    for path in shards_of(out):
        content, written = before[path.name]
        if path != lost:
            assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, written)
    known = folder / lost.name
    for name, tensor in load_file(lost).items():
        assert torch.equal(tensor, load_file(known)[name])
    counts = [[s["ids_sha256"] for s in card_of(where)["shards"]] for where in (out, folder)]
    assert counts[0] == counts[1]


def shards_of(out: Path) -> list[Path]:
    return sorted(out.glob("*.safetensors"))


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


FORMS: dict[str, Any] = {
    "turns": lambda a, b: {"turns": [a, b]},
    "conversations": lambda a, b: {
        "conversations": [
            {"from": "human", "value": a},
            {"from": "gpt", "value": "left out"},
            {"from": "human", "value": b},
        ]
    },
    "messages": lambda a, b: {
        "messages": [
            {"role": "user", "content": a},
            {"role": "assistant", "content": "left out"},
            {"role": "user", "content": b},
        ]
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_given_prompts_of_every_form(form: str, target: str, tmp_path: Path) -> None:
    rows = [FORMS[form](f"ab {i}", f"cd {i}") for i in range(4)]
    path = jsonl(tmp_path / "prompts.jsonl", rows)
    out = tmp_path / "out"
    distill(config(target, out, prompts=path, shards=1, batch=4, length=128))
    words = tokenizer(320, 2048)
    texts = [words.decode(row) for row in rows_of(out)]
    asked = {text.split("+")[1].split("<eos>")[0] for text in texts}
    assert asked == {f"ab {i}" for i in range(4)}
    assert any(f"<eos>+cd {i}<eos>=" in text for i in range(4) for text in texts)
    assert not any("left out" in text for text in texts)
    assert card_of(out)["settings"]["prompts"] == "prompts.jsonl"


def test_single_prompts_repeat_and_repeats_are_dropped(target: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    out = tmp_path / "out"
    distill(config(target, out, prompts=path, shards=2, batch=4))
    card = card_of(out)
    assert [shard["sequences"] for shard in card["shards"]] == [2, 0]
    assert card["dropped"] == {"duplicate": 6}


def test_a_test_question_among_the_prompts_is_found(target: str, tmp_path: Path) -> None:
    question = prompts.load("mini", None).dataset[0]["turns"][0][:30]
    path = jsonl(tmp_path / "prompts.jsonl", [{"prompt": question}, {"prompt": "harmless"}])
    out = tmp_path / "out"
    distill(config(target, out, prompts=path, shards=1, batch=2))
    card = card_of(out)
    assert card["dropped"] == {"overlap with a test set": 1}
    (row,) = rows_of(out)
    assert "harmless" in tokenizer(320, 2048).decode(row)


def test_prompts_that_cannot_be_read(target: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nothing = jsonl(tmp_path / "a.jsonl", [{"text": "neither"}])
    with pytest.raises(UsageError, match="row 1 has none of conversations"):
        distill(config(target, out, prompts=nothing))
    long = jsonl(tmp_path / "b.jsonl", [{"prompt": "too long " * 20}])
    with pytest.raises(UsageError, match="no user's turn of up to 32 tokens"):
        distill(config(target, out, prompts=long))
    with pytest.raises(UsageError, match=r"--length must lie in 64\.\.1024"):
        distill(config(target, out, length=32))
    assert not out.exists()


def test_a_batch_of_prompts_is_padded_behind_its_turns() -> None:
    given = [[[1, 2], [3]], [[4]]]
    assert batch_of(given, 0, 2).tolist() == [[[1, 2], [3, -1]], [[4, -1], [-1, -1]]]
    assert batch_of(given, 1, 1).tolist() == [[[4]]]


def test_a_conversation_of_fewer_turns_ends_with_its_own(model: LlamaForCausalLM) -> None:
    """In a batch of longer ones; no empty question is answered."""
    given = two_turns()
    given[:, 1] = -1
    alone = write(model, GIVEN, given[:, :1])
    assert all(torch.equal(a, b) for a, b in zip(write(model, GIVEN, given), alone, strict=True))
