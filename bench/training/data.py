"""Batches of the target's own conversations, the same for every draft that trains on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench import files
from bench.errors import UsageError

CARD = "data.json"  # in a folder of shards
REACH = 8  # tokens kept behind the last answer, since drafts reach beyond it
STEP = 64  # lengths of training sequences are its multiples
HELD_SHARE = 16
HELD_MOST = 256


@dataclass(frozen=True)
class Batch:
    """ids int64 [B, T]; roles bool [B, T], True where the target answered."""

    ids: Tensor
    roles: Tensor


class Shards:
    """Conversations of one or more folders, grouped by length, on one device.

    Attributes:
        card: sequences, tokens and hashes, for the cards of what is trained on them.
    """

    def __init__(self, folders: Sequence[str], held_out: int | None, device: torch.device) -> None:
        """Keep `held_out` sequences of each length for `held`; None: one of HELD_SHARE, at most
        HELD_MOST. UsageError where data is missing."""
        groups: dict[int, list[dict[str, Tensor]]] = {}
        cards = [_card(Path(folder)) for folder in folders]
        for folder, card in zip(folders, cards, strict=True):
            for shard in card["shards"]:
                tensors = load_file(Path(folder) / shard["file"])
                groups.setdefault(tensors["ids"].shape[1], []).append(tensors)
        self._train: list[Batch] = []
        self._held: list[Batch] = []
        for length in sorted(groups):
            ids = torch.cat([shard["ids"] for shard in groups[length]]).to(device)
            roles = torch.cat([shard["roles"] for shard in groups[length]]).to(device).bool()
            kept = len(ids) - _held(len(ids), held_out)
            self._held.append(Batch(ids[kept:], roles[kept:]))
            self._train += _by_length(Batch(ids[:kept], roles[:kept]))
        if not sum(len(batch.ids) for batch in self._held):
            raise UsageError(
                f"{', '.join(folders)}: fewer than two sequences of one length; write more data "
                "with bench.training.distill"
            )
        self.card = {
            "sequences": sum(card["sequences"] for card in cards),
            "answer_tokens": sum(card["answer_tokens"] for card in cards),
            "sha256": files.sha256_of_bytes(json.dumps(cards, sort_keys=True).encode()),
            "settings": [card["settings"] for card in cards],
        }
        self.target = {card["target"] for card in cards}

    def schedule(self, tokens: int, seed: int, epoch: int) -> list[tuple[int, Tensor]]:
        """(group, rows) of every batch of about `tokens` tokens, in an order determined by `seed`
        and `epoch`."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        batches = []
        for group, data in enumerate(self._train):
            size = max(min(tokens // data.ids.shape[1], len(data.ids)), 1)
            order = torch.randperm(len(data.ids), generator=generator)
            batches += [(group, rows) for rows in torch.split(order, size) if len(rows) == size]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in shuffled]

    def batch(self, group: int, rows: Tensor) -> Batch:
        data = self._train[group]
        rows = rows.to(data.ids.device)
        return Batch(data.ids[rows].long(), data.roles[rows])

    def count(self, group: int) -> int:
        """Training sequences of a group."""
        return len(self._train[group].ids)

    def length(self, group: int) -> int:
        """Tokens of each of them."""
        return self._train[group].ids.shape[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest training sequences."""
        return max(batch.ids.shape[1] for batch in self._train)

    def held(self, size: int) -> list[Batch]:
        """The held-out sequences in batches of at most `size`."""
        return [
            Batch(data.ids[rows].long(), data.roles[rows])
            for data in self._held
            for rows in torch.split(torch.arange(len(data.ids)), size)
        ]

    def held_roles(self) -> list[Tensor]:
        """Bool [n, T] of the held-out sequences of each length."""
        return [data.roles for data in self._held]

    def frequent(self, vocabulary: int, size: int) -> Tensor:
        """int64 [V']: the `size` most frequent answer tokens, the most frequent first."""
        counts = torch.zeros(vocabulary, dtype=torch.long, device=self._train[0].ids.device)
        for data in self._train:
            counts += torch.bincount(data.ids[data.roles], minlength=vocabulary)
        return counts.argsort(descending=True, stable=True)[:size].cpu()


def _by_length(batch: Batch) -> list[Batch]:
    """The conversations by where their last answer ends, without the rest of their rows, so that
    the target runs few tokens that say nothing. The shortest are first."""
    length = batch.ids.shape[1]
    last = (batch.roles * torch.arange(1, length + 1, device=batch.roles.device)).amax(dim=1)
    ends = (last + REACH + STEP - 1) // STEP * STEP
    found = []
    for end in torch.unique(ends).tolist():
        rows = ends == end
        found.append(Batch(batch.ids[rows, :end], batch.roles[rows, :end]))
    return found


def _held(count: int, asked: int | None) -> int:
    """How many of `count` sequences of a length are held out. UsageError for none or all."""
    if asked is None:
        return min(max(count // HELD_SHARE, 1), HELD_MOST, max(count - 1, 0))
    if not 1 <= asked < count:
        raise UsageError(
            f"--held-out {asked} of {count} sequences cannot be; give 1 to {count - 1}, leave it "
            "out, or write more data"
        )
    return asked


def _card(folder: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"{folder} holds no data card; run python -m bench.training.distill"
        ) from None
    return card
