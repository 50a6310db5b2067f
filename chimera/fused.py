"""Chimera's draft model in few kernels, for engines with custom kernels.

The equations are those of `chimera.model`, computed with `bench.decoding.engines.ops`. Two things
are regrouped: x^ is the encoder's output before its standardisation is inverted, with
o = scale x^ + mean, so that modules that standardise o again read x^; and what h_t adds to every
head and query of a draft, W_k [h_t; .] + b and W_h h_t, is computed once per step.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.drafts.layers import FusedLayer
from bench.decoding.engines import ops
from bench.decoding.target import TargetModel
from chimera.model import Chimera


def fits(model: Chimera, target: TargetModel) -> bool:
    """Whether the engine fuses matmuls with their neighbours, and the model has the form that this
    module computes: that of trained drafts, or of published ones."""
    config = model.config
    if not (target.fuses and config.trigram and config.context and config.head_state):
        return False
    if config.own_heads:
        return not config.query_state
    ours, theirs = model.encoder.state_norm, model.heads.state_norm
    return torch.equal(ours.mean, theirs.mean) and torch.equal(ours.scale, theirs.scale)


def draft(
    model: Chimera,
    target: TargetModel,
    embeddings: Tensor,
    head: Tensor | None,
    bias: Tensor | None,
) -> FusedDraft:
    """The fused form of a model that `fits`."""
    kind = FusedBlock if model.config.one_pass else FusedDraft
    return kind(model, target, embeddings, head, bias)


class FusedDraft:
    """A draft model, bound to a target's embeddings [V, d] and to the LM head [V', d] of a draft
    vocabulary, with a bias [V'] if the draft is narrow; None where the checkpoint has its own LM
    heads. Of a narrow draft, d is its width."""

    def __init__(
        self,
        model: Chimera,
        target: TargetModel,
        embeddings: Tensor,
        head: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        encoder, config = model.encoder, model.config
        self._model, self._target, self._head, self._bias = model, target, head, bias
        self._length = target.length
        self._tables = (torch.empty(0), torch.empty(0))  # cos, sin [rows, D / 2]
        self._layer = FusedLayer(encoder)
        heads = [cast(nn.Linear, module) for module in model.heads.heads]
        self._pull: Tensor | None = None
        if head is None:
            self._heads = [head.weight for head in heads]
            self._from_h = torch.zeros_like(self._heads[0][:1, : config.size])  # h_t
        else:
            self._divide(heads)
        norm = model.trigram.norm
        self.embeddings = embeddings, (norm.mean, norm.scale)  # as `ops.embed` does
        self._before = target.fuse(self._normed)
        self._pair = target.fuse(self._paired)

    def _divide(self, heads: list[nn.Linear]) -> None:
        """Split each head's matrix by input: o, or h_t. The query's matrix joins the latter."""
        d, from_state = self._model.config.size, self._model.encoder.from_state
        self._heads = [head.weight[:, d:].contiguous() for head in heads]
        self._h_matrix = torch.cat([head.weight[:, :d] for head in heads])
        self._h_bias = torch.cat([head.bias for head in heads])[None]
        if from_state is not None:
            self._h_matrix = torch.cat((self._h_matrix, from_state.weight))
            self._h_bias = F.pad(self._h_bias, (0, d))
        self._from_h = torch.zeros_like(self._h_bias.view(-1, d))  # [depth (+ 1), d]
        if from_state is not None:
            self._pull = self._from_h[-1:]

    def reserve(self, rows: int) -> None:
        """Rotary tables of `rows` positions."""
        cos, sin = self._model.encoder.rotation(torch.arange(rows, device=self._length.device))
        self._tables = cos.squeeze(-2).contiguous(), sin.squeeze(-2).contiguous()

    def state(self, h: Tensor) -> None:
        """Store what h_t, [1, d], adds."""
        self._keep(self._seen(h))

    def _keep(self, h: Tensor) -> None:
        """Compute what depends on h_t, [1, d], as the heads read it."""
        if self._head is not None:
            h = ops.linear(h, self._h_matrix, residual=self._h_bias)
        self._from_h.copy_(h.view_as(self._from_h))

    def remember(
        self, hidden: Tensor, taps: list[Tensor], path: Tensor, accepted: Tensor, into: Tensor
    ) -> None:
        """See `Drafter.remember`; keys and values are written into [2, H, rows, D]."""
        encoder = self._model.encoder
        c, tapped, h, first = self._before(hidden, taps, path, accepted)
        if encoder.from_taps is not None and tapped is not None:
            c = ops.linear(tapped, encoder.from_taps.weight, residual=c)
        kv = ops.linear(c, encoder.kv_proj.weight)
        ops.rotate_rows(kv, 0, into[0], into[1], *self._tables, first, 0, 0, consecutive=True)
        self._keep(h)

    def embed(self, trigrams: Tensor) -> Tensor:
        """int64 [n, 3] -> [n, 3d], standardised."""
        return ops.embed(trigrams.flatten(), *self.embeddings).view(trigrams.shape[0], -1)

    def level(
        self, x: Tensor, level: int, visible: Tensor, last: bool, drafted: int, rows: Tensor
    ) -> Tensor:
        """logits [n, V'] for n nodes with embeddings x [n, 3d]; see `Drafter.expand`. `drafted`
        rows follow the true ones in [2, H, rows, D]."""
        encoder, eps = self._model.encoder, self._model.config.eps
        keys, values = rows[0], rows[1]
        place = (keys, values, *self._tables, self._length, level - 1, drafted)
        u = self._query(x)
        q = ops.rotate_rows(self._layer.project(u), encoder.heads, *place)
        attended = ops.attend(q, keys, values, self._length, visible).flatten(1)
        x = self._layer.combine(u, attended)
        if encoder.out_norm is not None:
            _, x = ops.add_norm(x, None, encoder.out_norm.weight, eps)  # x^
        if not last:  # its row, for deeper levels
            kv = ops.linear(x, encoder.kv_proj.weight, encoder.context_norm.weight, eps)
            ops.rotate_rows(kv, 0, *place)
        norm, head = encoder.state_norm, self._heads[level - 1]
        if self._head is None:  # logits = W_k [h_t; o]
            return ops.linear(self._pair(self._from_h, x), head)
        z = ops.linear(
            x,
            head,
            bias=self._from_h[level - 1],
            silu=True,
            residual=x,
            affine=(norm.scale, norm.mean),
        )
        return ops.linear(z, self._head, bias=self._bias)

    def _query(self, x: Tensor) -> Tensor:
        """Inputs u [n, d] of the layer, from embeddings x [n, 3d]."""
        trigram = self._model.trigram
        residual = trigram.residual
        x = ops.linear(x, residual.weight, bias=residual.bias, silu=True, residual=x)
        return ops.linear(x, trigram.projection.weight, residual=self._pull)

    def _normed(
        self, hidden: Tensor, taps: list[Tensor], path: Tensor, accepted: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """(the path's normed states, its taps concatenated, h_t, the position of the first)."""
        encoder = self._model.encoder
        tapped = encoder.tapped([tap[path] for tap in taps])
        h = self._seen(hidden[path[accepted]])
        return encoder.own_context(hidden[path]), tapped, h, self._length - accepted - 1

    def _seen(self, h: Tensor) -> Tensor:
        """h_t [1, d] as the heads read it."""
        if self._head is None:
            return h
        seen: Tensor = self._model.encoder.state_norm(h)
        return seen

    def _paired(self, h: Tensor, x: Tensor) -> Tensor:
        """[h; o] [n, 2d] from h [1, d] and x^ [n, d]."""
        o = self._model.encoder.state_norm.inverse(x)
        return torch.cat((h.expand_as(o), o), dim=-1)


class FusedBlock(FusedDraft):
    """A model with one pass for all depths. Its residual heads are one product with A: row k of the
    pass needs head k, and the other heads' results for it are not used."""

    def __init__(
        self,
        model: Chimera,
        target: TargetModel,
        embeddings: Tensor,
        head: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        super().__init__(model, target, embeddings, head, bias)
        assert model.sequential is not None
        assert head is not None
        self._lm_head, self._sequential = head, model.sequential
        self._after = torch.cat((*self._heads, model.sequential.from_estimate.weight))
        depth = model.config.depth
        self._depths = torch.arange(depth, device=head.device)
        self._visible = torch.ones(depth, depth, dtype=torch.bool, device=head.device)
        self._shared = self._added = torch.empty(0)  # of the pass: [depth, d], [depth, inner]
        self._block, self._own = target.fuse(model.encoder.block), target.fuse(self._own_heads)

    def level(
        self, x: Tensor, level: int, visible: Tensor, last: bool, drafted: int, rows: Tensor
    ) -> Tensor:
        if level == 1:
            self._run_pass(x, rows)
        norm, shared = self._model.encoder.state_norm, self._shared[level - 1 : level]
        inner = ops.linear(
            x, self._sequential.from_tokens.weight, bias=self._added[level - 1], silu=True
        )
        z = ops.linear(
            inner, self._sequential.out.weight, residual=shared, affine=(norm.scale, norm.mean)
        )
        return ops.linear(z, self._lm_head)

    def _run_pass(self, x: Tensor, rows: Tensor) -> None:
        """The encoder and heads for all depths, from the root's embeddings x [1, 3d]."""
        encoder, eps = self._model.encoder, self._model.config.eps
        u = self._block(self._query(x)[0])  # [depth, d]
        place = (rows[0], rows[1], *self._tables, self._depths, self._length, self._visible)
        attended = ops.attend_rotated(self._layer.project(u), encoder.heads, None, *place)
        x = self._layer.combine(u, attended)
        norm = None if encoder.out_norm is None else encoder.out_norm.weight
        after = ops.linear(x, self._after, norm, eps)  # of x^
        heads = x.numel()  # outputs of all heads, depth d
        self._shared = self._own(x, after[:, :heads], self._from_h)
        self._added = after[:, heads:]

    def _own_heads(self, x: Tensor, heads: Tensor, from_h: Tensor) -> Tensor:
        """x^ + SiLU(W_k [h_t^; x^] + b_k) [depth, d]; `heads` [depth, depth d] has the x^ part of
        every head for every row."""
        depth, d = x.shape
        own = heads.view(depth, depth, d).diagonal().T  # [depth, d]
        return self._model.encoder.normed(x) + F.silu(own + from_h[:depth])
