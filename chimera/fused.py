"""Chimera's draft model in few kernels, for engines that fuse small products.

The equations are `chimera.model`'s, through `bench.decoding.ops`. Two things are regrouped: x^ is
the encoder's output before its standardisation is taken back, o = scale x^ + mean, so that what
standardises o again reads x^; and what h_t adds to every head and query of a draft,
W_k [h_t; .] + b and W_h h_t, is computed once a step.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding import ops
from bench.decoding.target import TargetModel
from chimera.model import Chimera, Standardise


def fits(model: Chimera, target: TargetModel) -> bool:
    """Whether the engine fuses products of this size and the model has the usual form."""
    config = model.config
    usual = config.trigram and config.context and config.head_state and not config.own_heads
    ours, theirs = model.encoder.state_norm, model.heads.state_norm
    alike = torch.equal(ours.mean, theirs.mean) and torch.equal(ours.scale, theirs.scale)
    return usual and alike and target.fuses(model.trigram.residual.weight)


class FusedDraft:
    """One draft model, bound to a target's embeddings and a draft vocabulary's LM head [V', d]."""

    def __init__(self, model: Chimera, target: TargetModel, head: Tensor) -> None:
        encoder, config = model.encoder, model.config
        self._model, self._target, self._head = model, target, head
        self._length = target.length
        self._tables = (torch.empty(0), torch.empty(0))  # cos, sin [rows, D / 2]
        self._qkv = torch.cat((encoder.q_proj.weight, encoder.kv_proj.weight))
        # What reads the state h_t: the heads' first halves, then the query's part.
        d = config.hidden_size
        heads = [cast(nn.Linear, module) for module in model.heads.heads]
        self._o_heads = [head.weight[:, d:].contiguous() for head in heads]
        self._h_matrix = torch.cat([head.weight[:, :d] for head in heads])
        self._h_bias = torch.cat([head.bias for head in heads])[None]
        if encoder.from_state is not None:
            self._h_matrix = torch.cat((self._h_matrix, encoder.from_state.weight))
            self._h_bias = F.pad(self._h_bias, (0, d))
        self._from_h = torch.zeros_like(self._h_bias.view(-1, d))  # [depth (+ 1), d]
        self._pull = None if encoder.from_state is None else self._from_h[-1:]
        self._gather = target.fuse(self._embedded)
        self._before = target.fuse(self._normed)
        self._standard = target.fuse(encoder.state_norm.forward)

    def reserve(self, rows: int) -> None:
        """Rotary tables of `rows` positions."""
        cos, sin = self._model.encoder.rotation(torch.arange(rows, device=self._head.device))
        self._tables = cos.squeeze(-2).contiguous(), sin.squeeze(-2).contiguous()

    def state(self, h: Tensor) -> None:
        """h_t, [1, d], is known."""
        out = ops.linear(self._standard(h), self._h_matrix, residual=self._h_bias)
        self._from_h.copy_(out.view_as(self._from_h))

    def context(self, hidden: Tensor, taps: list[Tensor], first: Tensor, into: Tensor) -> None:
        """Key and value of true states [n, d] at positions `first` int64 [1] and on, into
        [2, H, rows, D]."""
        encoder = self._model.encoder
        c, tapped = self._before(hidden, taps)
        if encoder.from_taps is not None and tapped is not None:
            c = ops.linear(tapped, encoder.from_taps.weight, residual=c)
        kv = ops.linear(c, encoder.kv_proj.weight)
        ops.place(kv, 0, into[0], into[1], *self._tables, first, 0, 0, consecutive=True)

    def level(
        self, trigrams: Tensor, level: int, visible: Tensor, last: bool, drafted: int, rows: Tensor
    ) -> Tensor:
        """logits [n, V'] behind n nodes, as `Drafter.expand` says; `drafted` rows lie behind the
        true ones of [2, H, rows, D]."""
        model, encoder, eps = self._model, self._model.encoder, self._model.config.eps
        keys, values = rows[0], rows[1]
        place = (keys, values, *self._tables, self._length, level - 1, drafted)
        residual = model.trigram.residual
        x = self._gather(trigrams)  # [n, 3d]
        x = ops.linear(x, residual.weight, bias=residual.bias, silu=True, residual=x)
        u = ops.linear(x, model.trigram.projection.weight, residual=self._pull)
        q = ops.place(
            ops.linear(u, self._qkv, encoder.query_norm.weight, eps), encoder.heads, *place
        )
        attended = ops.attend(q, keys, values, self._length, visible).flatten(1)
        x = ops.linear(attended, encoder.o_proj.weight, residual=u)
        inner = ops.linear(x, encoder.gate_up.weight, encoder.ffn_norm.weight, eps, halves=True)
        x = ops.linear(inner, encoder.down.weight, residual=x)
        if encoder.out_norm is not None:
            _, x = ops.add_norm(x, None, encoder.out_norm.weight, eps)  # x^
        if not last:  # its row as deeper levels see it
            kv = ops.linear(x, encoder.kv_proj.weight, encoder.context_norm.weight, eps)
            ops.place(kv, 0, *place)
        norm = encoder.state_norm
        z = ops.linear(
            x,
            self._o_heads[level - 1],
            bias=self._from_h[level - 1],
            silu=True,
            residual=x,
            affine=(norm.scale, norm.mean),
        )
        return ops.linear(z, self._head)

    def _embedded(self, trigrams: Tensor) -> Tensor:
        """[n, 3] -> [n, 3d]."""
        norm: Standardise = self._model.trigram.norm
        x: Tensor = norm(F.embedding(trigrams, self._target.embeddings().weight))
        return x.flatten(1)

    def _normed(self, hidden: Tensor, taps: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """(the normed state, the taps side by side)."""
        encoder = self._model.encoder
        return encoder.own_context(hidden), encoder.tapped(taps)
