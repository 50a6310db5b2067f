"""The fixed history: one conversation for every method, engine and machine."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from baselines.autoregressive import Autoregressive
from bench.decoding.decoder import Block
from bench.decoding.sampling import Sampling
from bench.errors import UsageError
from bench.files import canonical_sha256
from bench.questions import history
from bench.questions import sets as prompts
from bench.questions.history import Prompt
from bench.records import validation
from bench.records.runs import FIGURES, REFERENCE
from bench.run import methods
from bench.run.prompting import Renderer
from bench.targets import synthetic
from tests import harness
from tests.harness import run

MODEL = "synthetic:predictable"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.work_in(tmp_path, monkeypatch)


def answers(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "history.jsonl").read_text().splitlines()]


def prompt_hashes(folder: str, turn: int) -> dict[str, str]:
    """The hash of each question's prompt at one turn, which every record agrees on."""
    found = [r for r in harness.kept(folder) if r["turn"] == turn]
    hashes = {r["prompt_id"]: r["prompt_sha256"] for r in found}
    assert all(hashes[r["prompt_id"]] == r["prompt_sha256"] for r in found)
    return hashes


# In whole runs


def test_every_method_sees_the_references_greedy_answers() -> None:
    assert run("--out", "run", "--temperature", "0", "1", "--repeats", "2") == 0
    found = harness.kept("run")
    said = {entry["prompt_id"]: entry for entry in answers("run")}
    assert sorted(said) == ["1", "2", "3"]
    greedy = {
        r["prompt_id"]: r
        for r in found
        if (r["method"], r["turn"], r["temperature"]) == (REFERENCE, 1, 0)
    }
    for question, entry in said.items():
        assert entry["status"] == "ok"
        assert entry["text"] == greedy[question]["text"]
        assert entry["prompt_sha256"] == greedy[question]["prompt_sha256"]
        assert (entry["model"], entry["turn"], entry["max_new_tokens"]) == (MODEL, 1, 12)
    for turn in (1, 2):
        assert sorted(prompt_hashes("run", turn)) == sorted(said)
    for record in found:
        expected = (
            None if record["turn"] == 1 else canonical_sha256([said[record["prompt_id"]]["text"]])
        )
        assert record["history"] == expected


def test_the_history_is_in_the_prompt_and_in_the_key() -> None:
    assert run("--out", "one") == 0
    lines = answers("one")
    lines[0]["text"] = "something else"
    Path("other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("--out", "two", "--history", "other.jsonl") == 0
    assert prompt_hashes("one", 1) == prompt_hashes("two", 1)
    one, two = prompt_hashes("one", 2), prompt_hashes("two", 2)
    assert [question for question in one if one[question] != two[question]] == ["1"]
    changed = {r["key"] for r in harness.kept("one")} - {r["key"] for r in harness.kept("two")}
    expected = {r["key"] for r in harness.kept("one") if (r["prompt_id"], r["turn"]) == ("1", 2)}
    assert changed == expected


def test_another_runs_history_is_used_and_the_reference_is_not_asked() -> None:
    assert run("--out", "one") == 0
    given = Path("one/history.jsonl").read_bytes()
    # Another budget, so that this run's own answers would differ.
    flags = ("--max-new-tokens", "5", "--history", "one/history.jsonl", "--out", "two")
    assert run(*flags) == 0
    assert prompt_hashes("two", 2) == prompt_hashes("one", 2)
    assert Path("two/history.jsonl").read_bytes() == given
    assert validation.check("two") == []
    before = harness.contents(Path("two"))
    assert run(*flags) == 0
    assert harness.contents(Path("two")) == before
    assert run("--max-new-tokens", "5", "--out", "three") == 0
    assert prompt_hashes("three", 2) != prompt_hashes("one", 2)


def test_first_turns_need_no_history(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--out", "run", "--turns", "1") == 0
    assert Path("run/history.jsonl").read_bytes() == b""
    assert {r["turn"] for r in harness.kept("run")} == {1}
    assert validation.check("run") == []
    Path("empty.jsonl").touch()
    assert run("--out", "given", "--turns", "1", "--history", "empty.jsonl") == 0
    assert capfd.readouterr().out == ""


class Fragile(Autoregressive):
    """A reference that fails on one question until it `works`."""

    name: ClassVar[str] = REFERENCE
    works: ClassVar[bool] = False

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        blocks = super().decode(prompt_ids, sampling)
        yield next(blocks)
        if len(prompt_ids) < 40 and not self.works:  # the third question's first turn
            raise RuntimeError("out\nof luck")
        yield from blocks


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(REFERENCE, f"{__name__}:Fragile", methods.GROUP),
        EntryPoint("prompt_lookup", "baselines.prompt_lookup:PromptLookup", methods.GROUP),
    ]
    monkeypatch.setattr(methods, "entry_points", lambda group: points)  # noqa: ARG005
    monkeypatch.setattr(Fragile, "works", False)


FRAGILE = ("--methods", "prompt_lookup", "--out", "run")


@pytest.mark.usefixtures("fragile")
def test_a_failed_answer_skips_the_later_turn() -> None:
    assert run(*FRAGILE) == 1
    entry = answers("run")[2]
    assert (entry["status"], entry["text"]) == ("error", None)
    assert entry["error"] == "RuntimeError: out of luck"
    found = {(r["method"], r["prompt_id"], r["turn"]): r for r in harness.kept("run")}
    assert len(found) == 2 * harness.TURNS
    for method in (REFERENCE, "prompt_lookup"):
        skipped = found.pop((method, "3", 2))
        assert skipped["status"] == "skipped"
        assert "the reference failed at turn 1: RuntimeError: out of luck" in skipped["error"]
        assert skipped["prompt_tokens"] is None
        assert all(skipped[name] is None for name in FIGURES)
    assert found.pop((REFERENCE, "3", 1))["status"] == "error"
    assert {record["status"] for record in found.values()} == {"ok"}
    assert validation.check("run") == []


@pytest.mark.usefixtures("fragile")
def test_a_failed_answer_is_asked_for_again_and_its_records_grow_no_longer() -> None:
    assert run(*FRAGILE) == 1
    before = Path("run/records.jsonl").read_bytes()
    assert run(*FRAGILE) == 1
    assert Path("run/records.jsonl").read_bytes() == before
    assert [entry["prompt_id"] for entry in answers("run")][:3] == ["1", "2", "3"]


@pytest.mark.usefixtures("fragile")
def test_a_failed_answer_is_written_once() -> None:
    assert run(*FRAGILE) == 1
    before = Path("run/history.jsonl").read_bytes()
    assert run(*FRAGILE) == 1
    assert Path("run/history.jsonl").read_bytes() == before


@pytest.mark.usefixtures("fragile")
def test_a_skipped_turn_counts_once_the_answer_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*FRAGILE) == 1
    monkeypatch.setattr(Fragile, "works", True)
    assert run(*FRAGILE) == 0
    assert answers("run")[-1]["status"] == "ok"
    assert prompt_hashes("run", 2).keys() == {"1", "2", "3"}
    found = harness.kept("run")
    assert {record["status"] for record in found} == {"ok"}
    assert len(found) == 2 * harness.TURNS


@pytest.mark.usefixtures("fragile")
def test_a_failed_answer_of_a_given_history_skips_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*FRAGILE) == 1
    monkeypatch.setattr(Fragile, "works", True)
    flags = ("--methods", "prompt_lookup", "--out", "two", "--history", "run/history.jsonl")
    assert run(*flags) == 0
    assert prompt_hashes("two", 2).keys() >= {"1", "2"}
    skipped = [r for r in harness.kept("two") if r["status"] == "skipped"]
    assert [(r["prompt_id"], r["turn"]) for r in skipped] == [("3", 2)] * 2


# The file


ENTRY = {
    "model": MODEL,
    "dataset_sha256": "d" * 64,
    "prompt_id": "1",
    "turn": 1,
    "status": "ok",
    "text": "six",
    "error": None,
}


def line(**changes: Any) -> str:
    return json.dumps(ENTRY | changes) + "\n"


def test_read_leaves_a_torn_line_out() -> None:
    found = history.read(line() + line(turn=2) + line(turn=3)[:-1], "there")
    assert [place[3] for place in found] == [1, 2]
    assert found[MODEL, "d" * 64, "1", 1]["text"] == "six"
    assert history.read("", "there") == {}


def test_a_later_line_of_the_same_turn_wins() -> None:
    failed = line(status="error", text=None, error="RuntimeError: x")
    (entry,) = history.read(failed + line(text="seven"), "there").values()
    assert (entry["status"], entry["text"]) == ("ok", "seven")


@pytest.mark.parametrize(
    "bad",
    ["{\n", "\n", "[1]\n", "3\n", '{"model": "x"}\n', line(model=[1]), line().replace("s", "z")],
)
def test_a_damaged_line_is_named(bad: str) -> None:
    with pytest.raises(UsageError, match="there line 2 is not an answer"):
        history.read(line() + bad, "there")


@pytest.mark.parametrize("changes", [{"text": None}, {"text": 5}])
def test_an_answer_that_is_no_text_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="there line 1 is not an answer"):
        history.read(line(**changes), "there")


TOKENIZER = synthetic.tokenizer(64, 2048)
RENDER = Renderer(TOKENIZER, None, vocabulary=64, positions=2048, max_new_tokens=8)


def test_prompts_grow_by_the_answers() -> None:
    rows = [{"question_id": 1, "category": "sums", "turns": ["one", "two", "three"]}]
    questions = prompts.load(str(harness.ask(Path("three.jsonl"), rows)), None)
    asked: list[Prompt] = []

    def answer(prompt: Prompt) -> dict[str, Any]:
        asked.append(prompt)
        return {"status": "ok", "text": f"answer {prompt.turn}"}

    assert history.missing([questions], None, MODEL, {}) == 2
    found = list(history.prompts(questions, None, MODEL, RENDER, {}, answer))
    assert [prompt.turn for prompt in found] == [1, 2, 3]
    assert asked == found[:2]
    texts = [TOKENIZER.decode(prompt.ids) for prompt in found]
    assert texts[2] == (
        "user: one\nassistant: answer 1\nuser: two\nassistant: answer 2\nuser: three\nassistant: "
    )
    assert all(texts[2].startswith(text) for text in texts)
    said = ["answer 1", "answer 2"]
    assert [prompt.history for prompt in found] == [
        None,
        canonical_sha256(said[:1]),
        canonical_sha256(said),
    ]
    assert len({prompt.sha256 for prompt in found}) == 3


def test_known_answers_are_not_asked_for() -> None:
    questions = prompts.load(harness.QUESTIONS, None)
    known = {
        (MODEL, questions.sha256, "1", 1): {"status": "ok", "text": "known"},
        ("another", questions.sha256, "2", 1): {"status": "ok", "text": "not of this model"},
        (MODEL, "0" * 64, "3", 1): {"status": "ok", "text": "not of these questions"},
    }
    asked: list[str] = []

    def answer(prompt: Prompt) -> dict[str, Any]:
        asked.append(prompt.prompt_id)
        return {"status": "error", "error": "RuntimeError: x"}

    assert history.missing([questions], None, MODEL, known) == 2
    assert history.missing([questions], 1, MODEL, known) == 0
    found = list(history.prompts(questions, None, MODEL, RENDER, known, answer))
    assert asked == ["2", "3"]
    skipped = [prompt for prompt in found if prompt.skip]
    assert [(prompt.prompt_id, prompt.turn) for prompt in skipped] == [("2", 2), ("3", 2)]
    assert all(prompt.ids == () for prompt in skipped)
    assert found[1].history == canonical_sha256(["known"])
    rest = list(history.prompts(questions, 1, MODEL, RENDER, known, answer))
    assert [prompt.turn for prompt in rest] == [1, 1, 1]
    assert rest[0] == found[0]
