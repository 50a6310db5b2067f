"""Muon (https://kellerjordan.github.io/posts/muon/) with float32 products, for processors.

`torch.optim.Muon` orthogonalises in bfloat16, which a processor without bfloat16 instructions
emulates: there its step takes longer than the forward and backward together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum, no weight decay and the original scaling."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix [m, n] with a gradient; takes no closure."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    self._update(parameter, gradient, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = orthogonalised(
            gradient.lerp(average, momentum), group["ns_coefficients"], group["ns_steps"]
        )
        rows, columns = parameter.shape
        parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """About U V^T of a matrix [m, n] = U S V^T, by `steps` Newton-Schulz iterations."""
    a, b, c = coefficients
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
