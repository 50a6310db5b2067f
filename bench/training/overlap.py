"""Finding training conversations that overlap with a registered question set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UsageError
from bench.questions import registry, sets

OVERLAP = 10  # tokens in a row that a kept conversation may not share with a question


class OverlapGuard:
    """Finds conversations that share OVERLAP tokens in a row with a registered question.

    Attributes:
        checked: names of the question sets that were read.
        unchecked: the others' names -> why they could not be read.
    """

    def __init__(self, windows: Tensor, checked: list[str], unchecked: dict[str, str]) -> None:
        self._windows = windows
        self.checked = checked
        self.unchecked = unchecked

    @classmethod
    def of(cls, tokenizer: Any, data_dir: str | None) -> OverlapGuard:
        """The guard for every registered set that can be read."""
        checked, unchecked, hashes = [], {}, []
        for name in registry.REGISTRY:
            try:
                questions = sets.load(name, Path(data_dir) if data_dir else None)
            except UsageError as error:
                unchecked[name] = str(error).split(";")[0].split(" (")[0]
                continue
            checked.append(name)
            for row in questions.dataset:
                for turn in row["turns"]:
                    ids = torch.tensor(tokenizer(turn, add_special_tokens=False)["input_ids"])
                    if len(ids) >= OVERLAP:
                        hashes.append(_window_hashes(ids[None].long())[0])
        windows = torch.unique(torch.cat(hashes)) if hashes else torch.empty(0, dtype=torch.long)
        return cls(windows, checked, unchecked)

    def overlapping(self, ids: Tensor) -> Tensor:
        """bool [n] for ids int64 [n, T]."""
        return torch.isin(_window_hashes(ids), self._windows.to(ids.device)).any(dim=1)


def _window_hashes(ids: Tensor) -> Tensor:
    """int64 [n, T - OVERLAP + 1]: a hash of each window, wrapping around."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(1, 2**62, (OVERLAP,), generator=generator) * 2 + 1
    return (ids.unfold(1, OVERLAP, 1) * factors.to(ids.device)).sum(dim=-1)
