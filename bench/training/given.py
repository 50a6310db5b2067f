"""Users' turns given by the user, from a JSONL file or a `datasets` name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UsageError, flat


def read(source: str, tokenizer: Any, longest: int, seed: int) -> list[list[list[int]]]:
    """Users' turns as token ids, [conversation][turn][token], in a seeded order.

    Args:
        source: a JSONL file or a `datasets` name.
        tokenizer: the target's.
        longest: tokens of a turn; longer turns are left out.
        seed: of the order.
    """
    conversations = list(_user_turns(source))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(conversations), generator=generator).tolist()
    encoded = []
    for index in order:
        turns = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in conversations[index]
        ]
        if turns and 0 < len(turns[0]) <= longest:
            encoded.append([turn for turn in turns if 0 < len(turn) <= longest])
    if not encoded:
        raise UsageError(f"--prompts {source} has no user's turn of up to {longest} tokens")
    return encoded


def _user_turns(source: str) -> Iterator[list[str]]:
    """The users' turns of each conversation: FastChat's `turns`, ShareGPT's `conversations`,
    `messages` with roles, or a `prompt` / `instruction`."""
    for number, row in enumerate(_rows(source), start=1):
        talk = row.get("conversations") or row.get("messages")
        if talk:
            spoken = [
                (m.get("from") or m.get("role"), m.get("value") or m.get("content")) for m in talk
            ]
            yield [str(text) for who, text in spoken if who in ("human", "user") and text]
        elif isinstance(row.get("turns"), list):
            yield [str(text) for text in row["turns"]]
        elif text := row.get("prompt") or row.get("instruction"):
            yield [str(text)]
        else:
            raise UsageError(
                f"--prompts {source} row {number} has none of conversations, messages, turns, "
                "prompt, instruction"
            )


def _rows(source: str) -> Iterator[dict[str, Any]]:
    import datasets

    path = Path(source)
    try:
        if path.exists():
            kind = "json"
            table = datasets.load_dataset(kind, data_files=str(path), split="train")
        else:
            table = datasets.load_dataset(source, split="train")
    except Exception as error:  # `datasets` raises many types
        reason = flat(error)
        raise UsageError(f"--prompts {source} cannot be read: {reason}") from error
    yield from table


def batch_of(given: list[list[list[int]]], index: int, batch: int) -> Tensor:
    """int64 [batch, turns, P], padded with -1; prompts repeat when they run out."""
    chosen = [given[(index * batch + i) % len(given)] for i in range(batch)]
    turns = max(len(c) for c in chosen)
    room = max(len(turn) for c in chosen for turn in c)
    table = torch.full((batch, turns, room), -1)
    for row, conversation in enumerate(chosen):
        for k, turn in enumerate(conversation):
            table[row, k, : len(turn)] = torch.tensor(turn)
    return table
