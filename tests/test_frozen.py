"""Prompts that a run renders once: prompts.jsonl."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.questions.chat import Message
from bench.run.frozen import FILE, FrozenPrompts

ASKED: list[Message] = [{"role": "user", "content": "how much is it?"}]
MORE: list[Message] = [{"role": "user", "content": "and now?"}]


def clock() -> Callable[[Sequence[Message]], list[int]]:
    """A template that prints the time: every call gives other ids."""
    ticks = iter(range(100))
    return lambda messages: [len(messages[-1]["content"]), next(ticks)]


def test_a_template_with_a_clock_gives_the_same_prompt_again(tmp_path: Path) -> None:
    render = clock()
    first = FrozenPrompts(tmp_path, "tiny", "r+1", render)
    ids = first(ASKED)
    assert first(ASKED) == ids
    assert first(MORE) != ids
    again = FrozenPrompts(tmp_path, "tiny", "r+1", render)
    assert again(ASKED) == ids
    assert len((tmp_path / FILE).read_text().splitlines()) == 2


def test_models_have_prompts_of_their_own(tmp_path: Path) -> None:
    render = clock()
    ids = FrozenPrompts(tmp_path, "tiny", None, render)(ASKED)
    assert FrozenPrompts(tmp_path, "other", None, render)(ASKED) != ids
    assert FrozenPrompts(tmp_path, "tiny", None, render)(ASKED) == ids


def test_reading_alone_changes_no_file(tmp_path: Path) -> None:
    FrozenPrompts(tmp_path, "tiny", None, clock(), keep=False)(ASKED)
    assert not (tmp_path / FILE).exists()


def test_a_torn_last_line_is_written_again(tmp_path: Path) -> None:
    FrozenPrompts(tmp_path, "tiny", None, lambda messages: [1, len(messages)])(ASKED)
    path = tmp_path / FILE
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    FrozenPrompts(tmp_path, "tiny", None, lambda messages: [1, len(messages)])(ASKED)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("r+2", r"configuration, tokenizer or chat template of tiny \(r\+1, now r\+2\)"),
        ("s+1", r"revision of tiny \(r\+1, now s\+1\)"),
        (None, r"revision of tiny \(r\+1, now None\)"),
    ],
)
def test_prompts_of_another_revision_are_refused(
    revision: str | None, said: str, tmp_path: Path
) -> None:
    FrozenPrompts(tmp_path, "tiny", "r+1", clock())(ASKED)
    with pytest.raises(UsageError, match=f"other settings: {said}; choose another --out"):
        FrozenPrompts(tmp_path, "tiny", revision, clock())


@pytest.mark.parametrize("change", [{"ids": [0]}, {"colour": 1}])
def test_a_damaged_line_is_named(change: dict[str, object], tmp_path: Path) -> None:
    FrozenPrompts(tmp_path, "tiny", None, clock())(ASKED)
    path = tmp_path / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(UsageError, match="line 1 is not a prompt of a run; restore the file"):
        FrozenPrompts(tmp_path, "tiny", None, clock())
