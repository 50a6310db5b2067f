"""Engine `compile`: a layer of a Llama-like model in six to nine kernels, draft code without custom
kernels through torch.compile, all in CUDA graphs.

One row, or a few rows with small matrices, run a layer as [norm, q k v] -> [rotate, write to the
cache, attend] -> [combine] -> [o, add] -> [norm, gate and up, SwiGLU] -> [down, add]; a few rows
with large matrices have [add, norm] as a separate kernel, which adds the partial sums of o and
down. More rows than `shapes.FEW` go to the library. Projections that read the same input are one
matrix; the modules keep views of it, so no weight is stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch.nn import functional as F

from bench.decoding.engines import forms, layers, ops, shapes
from bench.decoding.engines.buffers import StaticBuffers
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.engines.layers import Layer
from bench.decoding.target import Function, Step

# Relative error of a product, one rounding of the norm, the result and the residual each
PRODUCT_NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 0.002}


class CompiledTarget(GraphTarget):
    """Engine `compile`."""

    engine: ClassVar[str] = "compile"
    fuses: ClassVar[bool] = True
    _rotation: tuple[Tensor, Tensor]  # cos, sin [rows, D / 2], made by `reserve`

    def __init__(self, model: Any, name: str = "") -> None:
        super().__init__(model, name)
        self._heads: int = self.config.num_attention_heads
        self._eps: float = self.config.rms_norm_eps
        self._layers = [layers.layer(module) for module in model.base_model.layers]
        self._final: Tensor = model.base_model.norm.weight

    @classmethod
    def unavailable(cls, model: Any) -> str | None:
        return super().unavailable(model) or forms.unsupported(model.config, cls.engine)

    def fuse(self, function: Function) -> Function:
        if self.device.type != "cuda":
            return function
        compiled = torch.compile(function, fullgraph=True, dynamic=False)

        def call(*arguments: object) -> Any:
            # Every level of every draft is a shape of its own, and none may fall back.
            with dynamo_config.patch(recompile_limit=1024, accumulated_recompile_limit=4096):
                return compiled(*arguments)

        return call  # type: ignore[return-value]

    def reserve(self, rows: int) -> None:
        before = self.cache.capacity
        super().reserve(rows)
        if self.cache.capacity != before:
            positions = torch.arange(self.cache.capacity, device=self.device)[None]
            like = torch.empty(1, device=self.device)
            cos, sin = self.model.base_model.rotary_emb(like, positions)  # [1, rows, D]
            half = cos.shape[-1] // 2
            cos, sin = (t[0, :, :half].float().contiguous() for t in (cos, sin))
            self._rotation = cos, sin

    def run(self, buffers: StaticBuffers) -> Step:
        self._begin(buffers)
        taps = {}
        x = ops.embed(buffers.tokens, self.embeddings().weight)  # [w, d]
        change = None  # what the block before adds to x, not added yet
        for k, (layer, cached) in enumerate(
            zip(self._layers, self.cache.layers, strict=True), start=1
        ):
            x, qkv = self._project(x, change, layer.attention_norm, layer.qkv, bias=layer.qkv_bias)
            attended = self._attend(qkv, layer, cached.keys[0], cached.values[0], buffers)
            x, change = self._add(x, attended, layer.o)
            x, inner = self._project(x, change, layer.feed_forward_norm, layer.gate_up, gated=True)
            x, change = self._add(x, inner, layer.down)
            if k in self._taps.states:
                x, change = x if change is None else x + change.sum(dim=0).to(x.dtype), None
                taps[k] = x
        _, hidden = ops.add_norm(x, change, self._final, self._eps)
        logits = ops.linear(hidden, self.head().weight, fixed=self.exact)
        self.logits_check.see(logits)
        return Step(logits, hidden, taps)

    def _begin(self, buffers: StaticBuffers) -> None:
        """What a forward's layers share is made here."""

    def _attend(
        self, qkv: Tensor, layer: Layer, keys: Tensor, values: Tensor, buffers: StaticBuffers
    ) -> Tensor:
        """[w, H D] from qkv [w, (H + 2G) D], a layer's keys and values [G, rows, D]."""
        tree = (buffers.depths, self.length, buffers.visible)
        cached = (keys, values, *self._rotation)
        return ops.attend_rotated(qkv, self._heads, layer.head_norms, *cached, *tree)

    def _whole(self, rows: int, weight: Tensor) -> bool:
        """Whether one kernel takes the product with norm and residual."""
        return shapes.whole(rows, weight)

    @torch.no_grad()
    def faulty_product(self, rows: int) -> str | None:
        for name, found, expected in self._products(rows):
            off = float((found.double() - expected).norm() / expected.norm())
            if not off <= PRODUCT_NEAR[self.dtype]:  # NaN is not
                return f"the product with {name} is off by {off:.1%}"
        return None

    def _products(self, rows: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, the product as a forward has it, the same in float64), each [rows, N], for a layer
        and the head, with norm, SwiGLU and residual, on random inputs."""
        layer, head = self._layers[0], self.head().weight
        generator = torch.Generator(self.device).manual_seed(rows)

        def normal(size: int) -> Tensor:
            x = torch.randn(rows, size, generator=generator, device=self.device)
            return x.to(self.dtype)

        x = normal(self.hidden_size)
        for name, weight, norm, gated, bias in (
            ("q, k and v", layer.qkv, layer.attention_norm, False, layer.qkv_bias),
            ("gate and up", layer.gate_up, layer.feed_forward_norm, True, None),
        ):
            normed = F.rms_norm(x.double(), x.shape[-1:], norm.double(), self._eps)
            expected = normed @ weight.double().t()
            if gated:
                gate, up = expected.chunk(2, dim=-1)
                expected = F.silu(gate) * up
            if bias is not None:
                expected += bias.double()
            yield name, self._project(x, None, norm, weight, gated, bias)[1], expected
        for name, weight in (("o", layer.o), ("down", layer.down)):
            inner = normal(weight.shape[1])
            total, change = self._add(x, inner, weight)
            found = total if change is None else total + change.sum(dim=0).to(total.dtype)
            yield name, found, x.double() + inner.double() @ weight.double().t()
        logits = ops.linear(x, head, fixed=self.exact)
        yield "the head", logits, x.double() @ head.double().t()

    def _project(
        self,
        x: Tensor,
        change: Tensor | None,
        norm: Tensor,
        weight: Tensor,
        gated: bool = False,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x + change, weight norm(x + change) + bias), the latter gated if asked."""
        how: dict[str, Any] = {"halves": gated, "bias": bias, "fixed": self.exact}
        if change is None and self._whole(x.shape[0], weight):
            return x, ops.linear(x, weight, norm, self._eps, **how)
        x, normed = ops.add_norm(x, change, norm, self._eps)
        return x, ops.linear(normed, weight, **how)

    def _add(self, x: Tensor, inner: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """x and what is still to be added to it [P, w, d], or their sum and None."""
        if self._whole(x.shape[0], weight):
            return ops.linear(inner, weight, residual=x, fixed=self.exact), None
        return x, ops.parts(inner, weight, fixed=self.exact)
