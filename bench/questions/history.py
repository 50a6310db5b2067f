"""Prompts of a run: conversations with a fixed history.

Before any timed run, the reference answers each turn but the last greedily, once for a run. The
answers are kept in `history.jsonl`, so that every method, engine and machine sees the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench.errors import UsageError
from bench.files import canonical_sha256
from bench.questions.chat import Message
from bench.questions.parsing import Question, Questions

FILE = "history.jsonl"
STAND_IN = "Yes."  # in place of an answer that is not known yet

HistoryEntry: TypeAlias = dict[str, Any]
"""One line of the file: the reference's answer to one turn, or why it failed."""

Entries: TypeAlias = Mapping[tuple[str, str, str, int], HistoryEntry]
"""Entries by (model, dataset sha256, prompt id, turn)."""

Render: TypeAlias = Callable[[Sequence[Message]], list[int]]
"""A conversation that ends with the user's turn -> the prompt's token ids. TooLongError or
UsageError where it cannot be asked."""


class TooLongError(Exception):
    """A prompt that leaves no room for its answer in the model's context; says so in one line."""


@dataclass(frozen=True)
class Prompt:
    """One turn to answer.

    Attributes:
        ids: token ids, empty where the turn is skipped.
        history: sha256 of the earlier answers, None at turn 1.
        skip: why it cannot be asked, or None.
    """

    dataset: str
    dataset_sha256: str
    prompt_id: str
    category: str
    turn: int
    ids: tuple[int, ...]
    history: str | None = None
    skip: str | None = None

    @property
    def sha256(self) -> str:
        """Of the token ids."""
        return canonical_sha256(list(self.ids))


def given(path: Path) -> str:
    """The text of a history file, as the run wrote it: without a byte order mark or carriage
    returns. UsageError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, ValueError) else error.strerror
        raise UsageError(f"cannot read --history {path}: {why}") from None


def read(text: str, origin: str) -> Entries:
    """The lines of a history file. An incomplete last line is left out; any other damaged line is a
    UsageError."""
    entries = {}
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            key = (entry["model"], entry["dataset_sha256"], entry["prompt_id"], entry["turn"])
            if entry["status"] == "ok" and not isinstance(entry["text"], str):
                raise TypeError
            entries[key] = entry
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(
                f"{origin} line {number} is not an answer of a run's history; restore the file"
            ) from None
    return entries


def missing(sets: Iterable[Questions], turns: int | None, model: str, entries: Entries) -> int:
    """How many answers `prompts` would have to ask for."""
    return sum(
        (model, questions.sha256, row["question_id"], turn) not in entries
        for questions in sets
        for row in _rows(questions)
        for turn in range(1, len(row["turns"][:turns]))
    )


def prompts(
    questions: Questions,
    turns: int | None,
    model: str,
    render: Render,
    entries: Entries,
    answer: Callable[[Prompt], HistoryEntry],
) -> Iterator[Prompt]:
    """The turns of a question set in order.

    Args:
        questions: the selected questions.
        turns: how many turns of each question; None for all.
        model: the target's name, as entries have it.
        render: the target's tokenizer and chat template.
        entries: the known part of the history.
        answer: asks the reference for a turn that is not in `entries`.
    """
    for row in _rows(questions):
        messages: list[Message] = []
        answers: list[str] = []
        failed: str | None = None
        selected = row["turns"][:turns]
        for turn, text in enumerate(selected, start=1):
            messages.append({"role": "user", "content": text})
            ids: list[int] = []
            try:
                ids = [] if failed else render(messages)
            except TooLongError as error:
                failed = f"turn {turn} {error}"
            except UsageError as error:
                place = f"{questions.name} question {row['question_id']} turn {turn}"
                raise UsageError(f"{place}: {error}") from error
            prompt = Prompt(
                dataset=questions.name,
                dataset_sha256=questions.sha256,
                prompt_id=row["question_id"],
                category=row["category"],
                turn=turn,
                ids=tuple(ids),
                history=canonical_sha256(answers) if answers else None,
                skip=failed,
            )
            yield prompt
            if turn == len(selected) or failed:
                continue
            key = (model, questions.sha256, prompt.prompt_id, turn)
            entry = entries.get(key) or answer(prompt)
            if entry["status"] != "ok":
                failed = f"the reference failed at turn {turn}: {entry['error']}"
                continue
            answers.append(entry["text"])
            messages.append({"role": "assistant", "content": entry["text"]})


def rehearse(questions: Questions, turns: int | None, render: Render) -> list[Prompt]:
    """The turns with a stand-in for every answer, to find what cannot be rendered or is too long
    before anything is decoded. UsageError for the former."""
    stand_in = {"status": "ok", "text": STAND_IN}
    return list(prompts(questions, turns, "", render, {}, lambda _: stand_in))


def lacks(model: str, prompt: Prompt) -> UsageError:
    """The refusal of a given history without the answer to this turn."""
    return UsageError(
        f"--history has no answer of {model} to {prompt.dataset} question {prompt.prompt_id} "
        f"turn {prompt.turn}; use that run's --turns and --limit"
    )


def _rows(questions: Questions) -> Iterator[Question]:
    yield from questions.dataset
