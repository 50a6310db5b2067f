"""Products of a draft's matrices with what stands beside them, as an engine computes them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.engines import ops
from bench.decoding.target import TargetModel


class Product(Protocol):
    """x [..., K] by a matrix [N, K], with its neighbours."""

    def __call__(
        self,
        matrix: nn.Linear,
        x: Tensor,
        norm: nn.RMSNorm | None = None,
        halves: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        """matrix(norm(x)); with `halves`, whose first is a gate, SiLU(gate) * up; plus `residual`,
        [..., N]."""


def plain(
    matrix: nn.Linear,
    x: Tensor,
    norm: nn.RMSNorm | None = None,
    halves: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """By the modules."""
    out: Tensor = matrix(x if norm is None else norm(x))
    if halves:
        gate, up = out.chunk(2, dim=-1)
        out = F.silu(gate) * up
    return out if residual is None else out + residual


def fused(
    matrix: nn.Linear,
    x: Tensor,
    norm: nn.RMSNorm | None = None,
    halves: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """In few kernels; x [n, K]."""
    weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps or 0.0)
    return ops.linear(x, matrix.weight, weight, eps, halves=halves, residual=residual)


def products(target: TargetModel) -> Product:
    """The engine's."""
    return fused if target.fuses else plain
