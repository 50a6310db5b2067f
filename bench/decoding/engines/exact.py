"""Engine `exact`: `compile` with forwards that do not depend on the width, bit for bit.

A verify forward over w nodes gives each of them the logits that a forward over that token alone
gives. Products sum over K in the same order at every width: small matrices by tiles of
`shapes.TILE` rows, one row padded into such a tile; large ones with the rows as columns of a tile,
whose number changes no sum. Attention sums each node's path in order of position
(`kernels.invariant`). The engine's trial compares the bits on the device. Greedy ids are then equal
in half precision too, for every lossless method. The reference runs on the same forwards; prefill
runs the same chunks for every method.

Without a GPU the plain-torch forms run, products in tiles of the same size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.decoding.engines import forms, invariant, shapes
from bench.decoding.engines.buffers import StaticBuffers
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.layers import Layer


class ExactTarget(CompiledTarget):
    """Engine `exact`."""

    engine: ClassVar[str] = "exact"
    exact: ClassVar[bool] = True

    def __init__(self, model: Any, name: str = "") -> None:
        super().__init__(model, name)
        self._tables: dict[int, Tensor] = {}  # ancestors, by width

    @classmethod
    def unavailable(cls, model: Any) -> str | None:
        return forms.unsupported(model.config, cls.engine)

    def _begin(self, buffers: StaticBuffers) -> None:
        w = buffers.width
        if w not in self._tables:
            self._tables[w] = torch.zeros(w, w, dtype=torch.int32, device=self.device)
        invariant.ancestors(buffers.visible, buffers.depths, self._tables[w])

    def _attend(
        self, qkv: Tensor, layer: Layer, keys: Tensor, values: Tensor, buffers: StaticBuffers
    ) -> Tensor:
        tree = (buffers.depths, self.length)
        cached = (keys, values, *self._rotation)
        q = invariant.rotate(qkv, self._heads, layer.head_norms, *cached, *tree)
        table = self._tables[buffers.width]
        return invariant.attend_in_order(q, keys, values, buffers.depths, table, self.length)

    def _whole(self, rows: int, weight: Tensor) -> bool:
        return shapes.whole_tile(self.dtype.itemsize, weight)
