"""Whether the logits of a turn are finite: summed on the device, read once after the turn."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LogitsCheck:
    """The sum of every row's largest logit since `start`.

    It is finite unless a logit was NaN or infinity: a maximum and a sum pass them on. Logits of
    -inf beside finite ones are tokens that a model rules out, and are fine.
    """

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)

    def start(self) -> None:
        self._sum.zero_()

    def see(self, logits: Tensor) -> None:
        """A function of tensors, so that engines can capture it; logits: [n, V]."""
        self._sum.add_(logits.detach().amax(dim=-1).sum(dtype=torch.float32))

    def finish(self, dtype: torch.dtype) -> None:
        """FloatingPointError, one line, where a logit was NaN or infinite."""
        total = self._sum.item()
        if math.isfinite(total):
            return
        kind = "NaN" if math.isnan(total) else "infinity"
        raise FloatingPointError(
            f"{kind} in the logits, computed in {str(dtype).removeprefix('torch.')}: no token "
            "means anything; try another --dtype, or check the weights"
        )
