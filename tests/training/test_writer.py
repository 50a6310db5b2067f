"""The target writing conversations, and the folder that is made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from bench import progress
from bench.errors import UsageError
from bench.progress import Progress
from bench.questions import registry
from bench.questions import sets as prompts
from bench.targets.synthetic import predictable, tokenizer
from bench.training import memory
from bench.training.conversations import Conversation
from bench.training.distill import DistillConfig, distill, main
from bench.training.given import table
from bench.training.markers import MarkerGuard, closing_ids
from bench.training.writer import Writer, WriterSettings, sequence_bytes
from tests.decoding.known import tiny_model
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
    settings = WriterSettings(batch=32, length=96, user_tokens=6, min_p=0.02)
    assert settings.longest == 12
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


def test_a_long_turn_ends_with_its_sentence(model: LlamaForCausalLM) -> None:
    """And holds no control token."""
    closing, control, limit = range(0, END, 2), (1, 3, 5), 4
    conversation = Conversation(OPENING, TURN, NEXT, control, tuple(closing))
    settings = WriterSettings(batch=64, length=96, user_tokens=limit, min_p=0.001)
    writer = Writer(model, conversation, settings, torch.Generator().manual_seed(0))
    ids, roles = writer.write()
    ended = 0
    for row in range(len(ids)):
        found = list(parts(ids[row].tolist(), roles[row].tolist()))
        asked = [words for kind, words, _ in found if kind == "user"][:-1]  # the last may be cut
        for words in asked:
            assert not set(words) & set(control)
            assert not any(word in closing for word in words[limit - 1 : -1])
            ended += len(words) >= limit and words[-1] in closing
    assert ended > 10
    assert roles.any(dim=1).float().mean() > 0.9, "few are dropped"


def test_progress_adds_up_to_the_batch(model: LlamaForCausalLM) -> None:
    told: list[int] = []
    settings = WriterSettings(batch=3, length=70)
    Writer(model, CONVERSATION, settings, torch.Generator()).write(wrote=told.append)
    assert sum(told) == 3 * 70
    assert len(told) > 1


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
        sequences=48,
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
    with pytest.raises(UsageError, match="leaves the question out of the prompt, or changes it"):
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
    distill(config(target, out, prompts=path, batch=4, length=128))
    words = tokenizer(320, 2048)
    texts = [words.decode(row) for row in rows_of(out)]
    asked = {text.split("+")[1].split("<eos>")[0] for text in texts}
    assert asked == {f"ab {i}" for i in range(4)}
    assert any(f"<eos>+cd {i}<eos>=" in text for i in range(4) for text in texts)
    assert not any("left out" in text for text in texts)
    assert card_of(out)["settings"]["prompts"] == "prompts.jsonl"


def test_every_prompt_is_asked_once_and_repeats_are_dropped(target: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "one"},
        {"turns": ["two", "and now?"]},
        {"instruction": "one"},
    ]
    out = tmp_path / "out"
    distill(config(target, out, prompts=jsonl(tmp_path / "prompts.jsonl", rows), batch=2))
    card = card_of(out)
    assert [shard["batch"] for shard in card["shards"]] == [3], "one sequence answers two"
    assert card["sequences"] == 2
    assert card["dropped"] == {"duplicate": 1}


def test_prompts_may_be_one_array_and_long_ones_are_counted(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "one"}, {"prompt": "too long " * 20}]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(rows, indent=1))
    distill(config(target, tmp_path / "out", prompts=str(path)))
    assert card_of(tmp_path / "out")["sequences"] == 1
    assert "--prompts: 1 of 2 left out: empty, or over 32 tokens" in capsys.readouterr().err


def test_a_test_question_among_the_prompts_is_found(target: str, tmp_path: Path) -> None:
    question = prompts.load("mini", None).dataset[0]["turns"][0][:30]
    path = jsonl(tmp_path / "prompts.jsonl", [{"prompt": question}, {"prompt": "harmless"}])
    out = tmp_path / "out"
    distill(config(target, out, prompts=path, batch=2))
    card = card_of(out)
    assert card["dropped"] == {"overlap with a test set": 1}
    (row,) = rows_of(out)
    assert "harmless" in tokenizer(320, 2048).decode(row)


def test_prompts_that_cannot_be_read(target: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nothing = jsonl(tmp_path / "a.jsonl", [{"text": "neither"}])
    with pytest.raises(UsageError, match="line 1 has none of conversations"):
        distill(config(target, out, prompts=nothing))
    long = jsonl(tmp_path / "b.jsonl", [{"prompt": "too long " * 20}])
    with pytest.raises(UsageError, match="no user's turn of up to 32 tokens"):
        distill(config(target, out, prompts=long))
    broken = tmp_path / "c.jsonl"
    broken.write_text('{"prompt": "fine"}\n{"prompt": ')
    with pytest.raises(UsageError, match=r"c\.jsonl line 2 is not JSON"):
        distill(config(target, out, prompts=str(broken)))
    with pytest.raises(UsageError, match=r"there is no file missing\.jsonl"):
        distill(config(target, out, prompts="missing.jsonl"))
    with pytest.raises(UsageError, match="--sequences must be at least 1, not 0"):
        distill(config(target, out, sequences=0))
    with pytest.raises(UsageError, match=r"--length must lie in 64\.\.1024"):
        distill(config(target, out, length=32))
    assert not out.exists()


def test_prompts_are_padded_behind_their_turns() -> None:
    assert table([[[1, 2], [3]], [[4]]]).tolist() == [[[1, 2], [3, -1]], [[4, -1], [-1, -1]]]
    assert table([[[4]]]).tolist() == [[[4]]]


def test_a_template_marker_spelled_as_text_is_found() -> None:
    words = tokenizer(320, 2048)

    def ids(*texts: str) -> list[int]:
        return [i for text in texts for i in words(text, add_special_tokens=False)["input_ids"]]

    end = words.eos_token_id
    turns = [ids("<", "eos>!"), ids("<|", "user|>"), [*ids("plain"), end], ids("a <b> c!!")]
    longest = max(map(len, turns))
    rows = torch.tensor([turn + [end] * (longest - len(turn)) for turn in turns])
    roles = torch.zeros_like(rows)
    guard = MarkerGuard(words)
    assert guard.marked(rows, roles) == [True, True, False, False]
    assert not any(guard.marked(rows, roles + 1)), "answers are the target's own"


def test_tokens_that_end_a_sentence_or_a_line() -> None:
    words = tokenizer(320, 2048)
    assert sorted(words.decode([i]) for i in closing_ids(words)) == ["\n", "!", ".", "?"]


# Memory, and interrupted commands


def test_a_batch_that_does_not_fit_is_refused_before_any_work(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10_000_000)  # noqa: ARG005
    with pytest.raises(UsageError, match=r"^--batch 4096 needs .* GB on cpu, .*; give --batch \d+"):
        distill(config(target, tmp_path / "out", batch=4096))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)  # noqa: ARG005
    with pytest.raises(UsageError, match="give a smaller --length"):
        distill(config(target, tmp_path / "out", batch=None))


def test_the_batch_is_chosen_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)  # noqa: ARG005
    assert [memory.batch_size(None, each, cpu) for each in (1, 10, 100, 700)] == [256, 64, 4, 1]
    assert memory.batch_size(90, 10, cpu) == 90
    with pytest.raises(UsageError, match="give --batch 64 or leave it out"):
        memory.batch_size(101, 10, cpu)


def test_free_memory_heeds_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes(torch.device("cpu")) > 10_000
    for name, text in (("max", "9000"), ("current", "5000"), ("stat", "anon 1\ninactive_file 700")):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert memory.free_bytes(torch.device("cpu")) == 4700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) > 10_000


def test_the_bytes_of_a_sequence_are_those_that_a_writer_allocates(
    model: LlamaForCausalLM,
) -> None:
    writer = Writer(model, CONVERSATION, WriterSettings(batch=4, length=128), torch.Generator())
    assert sequence_bytes(model, 128) > writer._cache.rows.nbytes / 4
    assert sequence_bytes(model, 128) < writer._cache.rows.nbytes / 4 + 20_000


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "python"],
)
def test_out_of_memory_halves_the_batch(
    error: Exception,
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, room = Writer.write, [5]

    def write(writer: Writer, *args: Any) -> tuple[Tensor, Tensor]:
        if writer.settings.batch > room[0]:
            raise error
        return whole(writer, *args)

    monkeypatch.setattr(Writer, "write", write)
    out = tmp_path / "out"
    distill(config(target, out, sequences=10))
    assert [shard["batch"] for shard in card_of(out)["shards"]] == [5, 5]
    assert "out of memory; going on with 5 at a time" in capsys.readouterr().err
    room[0] = 0
    with pytest.raises(UsageError, match=r"^out of memory; "):
        distill(config(target, tmp_path / "other"))


def test_an_interrupted_folder_is_continued(
    target: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, left = Writer.write, [1]

    def write(writer: Writer, *args: Any) -> tuple[Tensor, Tensor]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return whole(writer, *args)

    out = tmp_path / "out"
    flags = [*("--model", target, "--out", str(out), "--sequences", "48", "--batch", "16")]
    flags += [*("--length", "64", "--user-tokens", "24", "--device", "cpu")]
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", write)
        assert main(flags) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert main(flags) == 0
    assert f"{out} holds 16 of 48 sequences" in capsys.readouterr().err
    shards = [[s["ids_sha256"] for s in card_of(where)["shards"]] for where in (out, folder)]
    assert shards[0] == shards[1]
    assert main([*flags, "--length", "96"]) == 2
    said = capsys.readouterr().err
    assert f"error: {out} holds shards written with --length 64, not 96" in said


def test_progress_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with Progress("distill", 2_000_000, "token") as bar:
        bar.update(1_000_000)
    lines = capsys.readouterr().err
    assert "\r" not in lines
    shown = r"^distill: 1,000,000 of 2,000,000 tokens, [\d,]+ tokens/s, about 1 s left$"
    assert re.search(shown, lines, re.MULTILINE)


def test_a_conversation_of_fewer_turns_ends_with_its_own(model: LlamaForCausalLM) -> None:
    """In a batch of longer ones; no empty question is answered."""
    given = two_turns()
    given[:, 1] = -1
    alone = write(model, GIVEN, given[:, :1])
    assert all(torch.equal(a, b) for a, b in zip(write(model, GIVEN, given), alone, strict=True))


def test_a_sequence_answers_one_prompt_after_another_as_if_each_stood_alone() -> None:
    model = tiny_model(VOCAB, seed=2)
    given, settings = two_turns()[:, :1], WriterSettings(batch=3, length=96, answer_tokens=12)
    ids, roles = write(model, settings, given)
    assert len(ids) > 6
    check_greedy(model, ids, roles)
    alone, marks = write(model, replace(settings, batch=12), given)
    assert torch.equal(ids[:6], alone[:6])
    assert torch.equal(roles[:6], marks[:6])


def test_prompts_are_replaced_in_place(model: LlamaForCausalLM) -> None:
    writer = Writer(model, CONVERSATION, WriterSettings(batch=3, length=160), torch.Generator())
    given = two_turns()
    writer.write(given)
    after = writer.write(given[:3])
    fresh = write(model, WriterSettings(batch=3, length=160), given[:3])
    assert all(torch.equal(a, b) for a, b in zip(after, fresh, strict=True))


def test_answers_are_cut_and_the_cut_is_no_answer(model: LlamaForCausalLM) -> None:
    settings = replace(GIVEN, answer_tokens=5)
    ids, roles = write(model, settings, two_turns())
    check_greedy(model, ids, roles)
    cut = 0
    for row in range(len(ids)):
        found = list(parts(ids[row].tolist(), roles[row].tolist()))
        for kind, words, marks in found[:4]:
            if kind == "answer":
                assert len(words) <= 5
                cut += marks == [1] * 5 + [0]
    assert cut >= 12
