"""Users' turns given by the user, from a JSONL file or a `datasets` name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UsageError, flat
from bench.progress import note

FORMS = "conversations, messages, turns, prompt, instruction"


def read(source: str, tokenizer: Any, longest: int, seed: int) -> list[list[list[int]]]:
    """Users' turns as token ids, [conversation][turn][token], in a seeded order.

    Args:
        source: a JSONL file or a `datasets` name.
        tokenizer: the target's.
        longest: tokens of a turn; a conversation ends before a longer one, and is left out where
            that is its first.
        seed: of the order.

    UsageError where nothing is left.
    """
    conversations = list(_user_turns(source))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(conversations), generator=generator).tolist()
    encoded = []
    for index in order:
        turns: list[list[int]] = []
        for text in conversations[index]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not 0 < len(ids) <= longest:
                break
            turns.append(ids)
        if turns:
            encoded.append(turns)
    if not encoded:
        raise UsageError(f"--prompts {source} has no user's turn of up to {longest} tokens")
    if left_out := len(conversations) - len(encoded):
        total = len(conversations)
        note(f"--prompts: {left_out:,} of {total:,} left out: empty, or over {longest} tokens")
    return encoded


def table(given: Sequence[list[list[int]]]) -> Tensor:
    """int64 [conversations, turns, P] of read turns, padded with -1."""
    turns = max(len(conversation) for conversation in given)
    room = max(len(turn) for conversation in given for turn in conversation)
    padded = torch.full((len(given), turns, room), -1)
    for row, conversation in enumerate(given):
        for k, turn in enumerate(conversation):
            padded[row, k, : len(turn)] = torch.tensor(turn)
    return padded


def _user_turns(source: str) -> Iterator[list[str]]:
    """The users' turns of each conversation: FastChat's `turns`, ShareGPT's `conversations`,
    `messages` with roles, or a `prompt` / `instruction`."""
    for place, row in _rows(source):
        try:
            yield _turns_of(row)
        except (KeyError, TypeError, AttributeError):
            raise UsageError(f"--prompts {source} {place} has none of {FORMS}") from None


def _turns_of(row: dict[str, Any]) -> list[str]:
    """KeyError, TypeError or AttributeError where the row has no known form."""
    if talk := row.get("conversations") or row.get("messages"):
        spoken = [
            (m.get("from") or m.get("role"), m.get("value") or m.get("content")) for m in talk
        ]
        return [str(text) for who, text in spoken if who in ("human", "user") and text]
    if isinstance(row.get("turns"), list):
        return [str(text) for text in row["turns"]]
    text = row.get("prompt") or row["instruction"]
    if not isinstance(text, str):
        raise TypeError("no text")
    return [text]


def _rows(source: str) -> Iterator[tuple[str, Any]]:
    """(what a message calls it, row)."""
    if Path(source).is_file():
        yield from _lines(Path(source))
        return
    if source.endswith((".json", ".jsonl")):
        raise UsageError(f"--prompts: there is no file {source}")
    import datasets

    try:
        rows = datasets.load_dataset(source, split="train")
    except Exception as error:  # `datasets` raises many types
        raise UsageError(f"--prompts {source} cannot be read: {flat(error)}") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Of JSONL, or of one array, as ShareGPT's files are."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts {path} cannot be read: {flat(error)}") from error
    array = text.lstrip().startswith("[")
    for number, part in enumerate([text] if array else text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            content = json.loads(part)
        except ValueError as error:
            raise UsageError(f"--prompts {path} line {number} is not JSON: {error}") from None
        if array:
            yield from ((f"item {index}", row) for index, row in enumerate(content, start=1))
        else:
            yield f"line {number}", content
