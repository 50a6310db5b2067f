"""The folder that distillation writes: numbered shards, each complete or absent, then a card."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench import cli, files
from bench.errors import UsageError
from bench.training.data import CARD


class DistilledFolder:
    """The shards of one folder, in order.

    Attributes:
        path: the folder.
        settings: what determines the conversations; every shard carries them.
        cards: of the shards.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Find the shards of an earlier command. UsageError where it had other settings."""
        self.path = path
        self.settings = settings
        self.cards: list[dict[str, Any]] = []
        while (found := self._read(self._next())) is not None:
            self.cards.append(found)

    @property
    def written(self) -> int:
        """Sequences written so far, those that were dropped included."""
        return sum(card["batch"] for card in self.cards)

    @property
    def dropped(self) -> Counter[str]:
        """Sequences dropped, by reason."""
        return sum((Counter(card["dropped"]) for card in self.cards), Counter())

    def rows(self) -> Iterator[Tensor]:
        """The ids [n, T] of each shard."""
        for card in self.cards:
            with safe_open(self.path / card["file"], "pt") as shard:
                yield shard.get_tensor("ids")

    def add(
        self,
        ids: Tensor,
        roles: Tensor,
        dropped: Counter[str],
        *,
        batch: int,
        computed: int,
        seconds: float,
    ) -> None:
        """Save a shard: the kept rows, ids int32 [n, T] and roles uint8 [n, T], of `batch`
        sequences that took `computed` tokens and `seconds` to write."""
        path = self._next()
        card = {
            "file": path.name,
            "batch": batch,
            "sequences": len(ids),
            "tokens": ids.numel(),
            "computed_tokens": computed,
            "answer_tokens": int(roles.sum()),
            "dropped": dict(dropped),
            "seconds": round(seconds, 3),
            "ids_sha256": files.sha256_of_bytes(ids.numpy().tobytes()),
        }
        tensors = {"ids": ids.contiguous(), "roles": roles.contiguous()}
        metadata = {"card": json.dumps(card), "settings": json.dumps(self.settings)}
        with files.replacing(path) as part:
            save_file(tensors, part, metadata=metadata)
        self.cards.append(card)

    def write_card(self, **more: Any) -> dict[str, Any]:
        """Write the card of all shards, with `more` in it, and return it."""
        seconds = sum(card["seconds"] for card in self.cards)
        computed = sum(card["computed_tokens"] for card in self.cards)
        content = {
            **more,
            "settings": self.settings,
            "sequences": sum(card["sequences"] for card in self.cards),
            "answer_tokens": sum(card["answer_tokens"] for card in self.cards),
            "dropped": dict(self.dropped),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(computed / max(seconds, 1e-9)),
            "shards": self.cards,
        }
        files.write_text(self.path / CARD, json.dumps(content, indent=1) + "\n")
        return content

    def _next(self) -> Path:
        return self.path / f"{len(self.cards):05d}.safetensors"

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The card of a shard; None where there is none that can be read."""
        try:
            with safe_open(path, "pt") as shard:
                metadata = shard.metadata()
            card: dict[str, Any] = json.loads(metadata["card"])
            known = json.loads(metadata.get("settings", "null"))
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        if known is None:
            raise UsageError(
                f"{self.path} holds shards of an earlier version; choose another --out"
            )
        if changed := [name for name in self.settings if known.get(name) != self.settings[name]]:
            name = changed[0]
            raise UsageError(
                f"{self.path} holds shards written with {cli.flag(name)} {known.get(name)}, not "
                f"{self.settings[name]}; choose another --out, or delete that folder"
            )
        return card


def digest(words: Tensor) -> bytes:
    """Of token ids, to find repeats."""
    return hashlib.sha256(words.numpy().tobytes()).digest()
