"""Norms of draft models."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / scale per dimension, measured once before training.

    A third of the energy of h and almost half of that of e is a common mean; removing it speeds up
    training. `inverse` maps an estimate back to the scale of h.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.mean

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Mean and deviation of x [n, size]."""
        self.mean.copy_(x.float().mean(dim=0))
        self.scale.copy_(x.float().std(dim=0).clamp(min=1e-4))


class RMSNorm(nn.RMSNorm):
    """RMS norm in its weight's precision, so that it stays one kernel under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))
