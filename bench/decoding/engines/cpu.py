"""Engine `compile` on a CPU: a Llama-like model's tree forward in some twenty calls a layer, with
packed matrices.

Between products, transformers' modules spend as long on dispatch, norms, rotary positions and masks
as one row's products take. Here projections that read the same input are one product, all heads
that share keys are rows of one attention, and the cache is cut into views once for all layers.
Prefill runs the modules as they are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.engines import forms, layers, ops, packed
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.layers import HeadNorms
from bench.decoding.engines.packed import PackedProduct, Product
from bench.decoding.target import Step
from bench.decoding.tree import TokenTree, Topology

FORWARDS = 7  # timed at each number of rows
SURELY = 0.97  # of the other's time


class _Layer:
    """One layer's products and norms."""

    def __init__(self, module: Any, product: Callable[..., Product]) -> None:
        weights = layers.layer(module)
        self.attention_norm = weights.attention_norm
        self.head_norms = weights.head_norms
        self.feed_forward_norm = weights.feed_forward_norm
        self.qkv, self.o = product(weights.qkv, weights.qkv_bias), product(weights.o)
        self.gate_up, self.down = product(weights.gate_up), product(weights.down)


class CpuTarget(EagerTarget):
    """Engine `compile` without a GPU."""

    engine: ClassVar[str] = "compile"

    def __init__(self, model: Any, name: str = "") -> None:
        super().__init__(model, name)
        size = sum(p.nbytes for p in model.parameters())
        self._packs = packed.packs(self.dtype) and packed.room(size)
        self._heads: int = self.config.num_attention_heads
        self._shared = self._heads // self.cache.rows.shape[3]  # query heads for a key head
        self._norm_shape = (self.hidden_size,)
        self._eps: float = self.config.rms_norm_eps
        self._layers = [_Layer(module, self.product) for module in model.base_model.layers]
        self._final: Tensor = model.base_model.norm.weight
        self._score = self.product(self.head().weight)
        self._cos = self._sin = torch.empty(0)  # [rows, 1, D], made by `reserve`
        self._root_rows = 1  # a single node's products are padded to this many

    @classmethod
    def unavailable(cls, model: Any) -> str | None:
        return forms.unsupported(model.config, cls.engine)

    def product(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        return (PackedProduct if self._packs else Product)(weight, bias)

    def prepare(self, module: nn.Module) -> None:
        if self._packs:
            packed.pack(module)

    def reserve(self, rows: int) -> None:
        before = self.cache.capacity
        super().reserve(rows)
        if self.cache.capacity != before:
            positions = torch.arange(self.cache.capacity)[None]
            like = torch.empty(1, dtype=self.dtype)
            cos, sin = self.model.base_model.rotary_emb(like, positions)  # [1, rows, D]
            half = sin.shape[-1] // 2
            self._cos = cos[0][:, None]
            # rotated = x cos + [-x2, x1] sin; with the sign in sin, [x2, x1] is a roll
            self._sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)[:, None]

    @torch.no_grad()
    def choose_root_width(self) -> None:
        """A single node's products are padded to as many rows as the matrix unit takes at once
        where that is faster by more than SURELY."""
        self.reserve(FORWARDS)
        root = TokenTree(self.tensor([0]), Topology.of([-1], self.device))
        seconds: dict[int, list[float]] = {1: [], packed.ROWS: []}
        for _ in range(FORWARDS):
            for rows, found in seconds.items():
                self._root_rows = rows
                self.cache.length = 0
                start = time.perf_counter()
                self.forward(root)
                found.append(time.perf_counter() - start)
        one, few = (statistics.median(found) for found in seconds.values())
        self._root_rows = packed.ROWS if few < SURELY * one else 1

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, logits_to_keep: int
    ) -> Step:
        if logits_to_keep:  # a prefill's chunk
            return super()._forward(ids, positions, mask, logits_to_keep)
        x = F.embedding(ids, self.embeddings().weight)  # [w, d]
        if len(ids) == 1:
            x = x.expand(self._root_rows, -1).contiguous()
        turn = self._cos[positions], self._sin[positions]  # each [w, 1, D]
        if mask is not None:  # for every head of those that share keys
            mask = mask.repeat(1, 1, self._shared, 1)
        taps = {}
        rows = self.cache.rows[:, :, :, :, : self.cache.live]
        for k, (layer, cached) in enumerate(zip(self._layers, rows.unbind(), strict=True), 1):
            normed = F.rms_norm(x, self._norm_shape, layer.attention_norm, self._eps)
            attended = self._attend(layer.qkv(normed), layer.head_norms, turn, cached, mask)
            x = layer.o.added(attended, x)
            normed = F.rms_norm(x, self._norm_shape, layer.feed_forward_norm, self._eps)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)
            x = layer.down.added(F.silu(gate) * up, x)
            if k in self._taps.states:
                taps[k] = x[: len(ids)]
        hidden = F.rms_norm(x, self._norm_shape, self._final, self._eps)
        logits = self._score(hidden)[: len(ids)]
        self.logits_check.see(logits)
        return Step(logits, hidden[: len(ids)], taps)

    def _attend(
        self,
        qkv: Tensor,
        norms: HeadNorms | None,
        turn: tuple[Tensor, Tensor],
        cached: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Attention of a tree's nodes, whose keys and values are written to the cache.

        Args:
            qkv: [n, (H + 2G) D], n at least w.
            norms: of every head's query and key, or None.
            turn: cos and sin, each [w, 1, D].
            cached: a layer's live keys and values, [2, 1, G, rows, D].
            mask: [1, 1, H / G w, rows], or None where everything is seen.

        Returns:
            [n, H D].
        """
        cos, sin = turn
        n, (w, _, size) = qkv.shape[0], cos.shape
        shared, kv_heads = self._shared, cached.shape[2]
        vectors = qkv.view(n, -1, size)[:w]
        turned, v = vectors[:, :-kv_heads], vectors[:, -kv_heads:]
        if norms is not None:
            q, k = ops.normed_heads(turned[:, : self._heads], turned[:, self._heads :], norms)
            turned = torch.cat((q, k), dim=1)
        turned = torch.addcmul(turned * cos, turned.roll(size // 2, dims=-1), sin)
        q, k = turned[:, : self._heads], turned[:, self._heads :]
        start = self.cache.length
        keys, values = cached.unbind()
        keys[0, :, start : start + w].copy_(k.transpose(0, 1))
        values[0, :, start : start + w].copy_(v.transpose(0, 1))
        q = q.reshape(w, kv_heads, shared, size).permute(1, 2, 0, 3)  # [G, H / G, w, D]
        q = q.reshape(1, kv_heads, shared * w, size)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        out = out.view(kv_heads, shared, w, size).permute(2, 0, 1, 3).reshape(w, -1)
        return out if n == w else out.expand(n, -1).contiguous()
