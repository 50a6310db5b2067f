"""Residual streams of inner layers, read by forward hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Taps:
    """Keeps the residual streams of a model's last forward.

    Attributes:
        states: [B, T, d] after k layers, for every k that was added; empty before a forward.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a transformers causal LM."""
        self._layers = model.base_model.layers
        self.states: dict[int, Tensor] = {}

    def add(self, *layers: int) -> None:
        """Keep the stream after k layers, 1 <= k <= the model's number of layers, for each k."""
        for k in layers:
            if not 1 <= k <= len(self._layers):
                raise ValueError(f"tap must lie in 1..{len(self._layers)}, not {k}")
            if k not in self.states:
                self.states[k] = torch.empty(0)
                self._layers[k - 1].register_forward_hook(
                    lambda _module, _args, output, k=k: self.states.__setitem__(k, output)
                )
