"""Prompts of a run: conversations with a fixed history.

Before any clock, the reference answers each turn but the last greedily, once for a run. The
answers are kept in `history.jsonl`, so that every method, engine and machine sees one prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.files import canonical_sha256
from bench.questions import chat
from bench.questions.sets import Questions
from bench.targets.registry import Loaded

FILE = "history.jsonl"

Answers = Mapping[tuple[str, str, str, int], dict[str, Any]]
"""(model, dataset sha256, prompt id, turn) -> a line of the history."""


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


def read(text: str, origin: str) -> Answers:
    """The lines of a history file; a torn last line is left out, a damaged one a UsageError."""
    answers = {}
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            place = (entry["model"], entry["dataset_sha256"], entry["prompt_id"], entry["turn"])
            if entry["status"] == "ok" and not isinstance(entry["text"], str):
                raise TypeError
            answers[place] = entry
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{origin} line {number} is no answer of a run's history") from None
    return answers


def sha256(path: Path) -> str:
    """Of a history file. UsageError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read --history {path}: {error.strerror}") from None


def missing(sets: Iterable[Questions], turns: int | None, model: str, answers: Answers) -> int:
    """How many answers `prompts` would have to ask for."""
    return sum(
        (model, questions.sha256, row["question_id"], turn) not in answers
        for questions in sets
        for row in _rows(questions)
        for turn in range(1, len(row["turns"][:turns]))
    )


def prompts(
    questions: Questions,
    turns: int | None,
    loaded: Loaded,
    answers: Answers,
    answer: Callable[[Prompt], dict[str, Any]],
) -> Iterator[Prompt]:
    """The turns of a question set in order.

    Args:
        questions: the chosen questions.
        turns: how many turns of each question; None for all.
        loaded: the target, for its tokenizer and chat template.
        answers: what is known of the history.
        answer: asks the reference; returns the new line of the history.
    """
    for row in _rows(questions):
        messages: list[chat.Message] = []
        said: list[str] = []
        failed: str | None = None
        chosen = row["turns"][:turns]
        for turn, text in enumerate(chosen, start=1):
            messages.append({"role": "user", "content": text})
            ids = () if failed else tuple(_render(loaded, messages))
            history = canonical_sha256(said) if said else None
            prompt = Prompt(
                dataset=questions.name,
                dataset_sha256=questions.sha256,
                prompt_id=row["question_id"],
                category=row["category"],
                turn=turn,
                ids=ids,
                history=history,
                skip=failed,
            )
            yield prompt
            if turn == len(chosen) or failed:
                continue
            place = (loaded.target.name, questions.sha256, prompt.prompt_id, turn)
            entry = answers.get(place) or answer(prompt)
            if entry["status"] != "ok":
                failed = f"the reference failed at turn {turn}: {entry['error']}"
                continue
            said.append(entry["text"])
            messages.append({"role": "assistant", "content": entry["text"]})


def _render(loaded: Loaded, messages: Sequence[chat.Message]) -> list[int]:
    return chat.render(loaded.tokenizer, messages, loaded.target.chat_template)


def _rows(questions: Questions) -> Iterator[dict[str, Any]]:
    yield from questions.dataset
