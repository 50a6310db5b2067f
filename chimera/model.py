"""Chimera's draft model (arXiv 2402.15758, section 3): trigram encoder, full-context encoder and
residual heads, after the target's own embeddings and before its own LM head.

Notation: x_i tokens, e their embeddings in the target, h_i the target's hidden state after the last
norm at position i, d the hidden size, V the vocabulary, V' the draft vocabulary.

    g_j = W_tri (x + SiLU(W_res x + b)),  x = [e_{j-2}; e_{j-1}; e_j]          trigram encoder
    o_j = layer(query g_j; context c_s for s <= t, o_i for t < i < j, g_j)      full-context encoder
    z_j = o_j + SiLU(W_k [h_t; o_j]),  k = j - t                                residual head k
    q(x_{j+1}) = softmax(LM head z_j)

t is the newest position whose h is known; o_j estimates h_j at later positions.

With `one_pass` the encoder runs once for all depths k = 1 .. K, after the root x_{t+1}; m_k are
learned, x^ is x standardised and s the deviation of h:

    u_k = g_{t+1} + m_k + W_h h_t^
    o_{t+k} = layer(query u_k at position t + k; context c_s for s <= t, u_1 .. u_K)
    z_j = o_j + s (SiLU(W_k [h_t^; o_j^] + b_k)                                 residual head k
                   + W_out SiLU(W_in [e^_{j-2}; e^_{j-1}; e^_j] + A o_j^))      sequential head

so that only the last line depends on the drafted tokens. Block drafters such as DFlash
(arXiv 2602.06036) have one such pass; DSpark (arXiv 2607.05147) adds a sequential part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.drafts.chains import attend_chain
from bench.decoding.drafts.layers import (
    ContextLayer,
    Rotation,
    attend_blocks,
    block_mask,
    rotation,
)
from bench.decoding.drafts.norms import RMSNorm, Standardise
from bench.decoding.drafts.trainable import Draft


@dataclass(frozen=True)
class ChimeraConfig:
    """Shape and kind of a Chimera.

    Attributes:
        hidden_size: d, the target's.
        heads: attention heads of the full-context encoder.
        ffn: inner size of its feed-forward part.
        depth: residual heads, the deepest level that can be drafted.
        taps: inner layers of the target that the context also reads (`chimera_plus`).
        query_state: whether h_t also enters the query (`chimera_plus`).
        rope_theta: base of the rotary positions.
        eps: of the RMS norms.
        trigram: False repeats the newest token's embedding instead (ablation: unigram).
        context: False hides everything but the query itself (ablation: no full context).
        head_state: False gives the heads o instead of h_t (ablation: heads read o only).
        out_norm: whether the encoder's output is normed (in published checkpoints it is not).
        own_heads: size V of heads that compute logits themselves, as in published checkpoints:
            W_k [h_t; o], or W_k o without `head_state`; 0 for residual heads.
        one_pass: whether the encoder runs once for all depths (`chimera_block`).
        sequential: inner size of the sequential head that `one_pass` needs.
        width: inner size w of a draft that is narrower than the target; 0 for d.
    """

    hidden_size: int
    heads: int
    ffn: int
    depth: int
    taps: tuple[int, ...] = ()
    query_state: bool = False
    rope_theta: float = 1e5
    eps: float = 1e-6
    trigram: bool = True
    context: bool = True
    head_state: bool = True
    out_norm: bool = True
    own_heads: int = 0
    one_pass: bool = False
    sequential: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        if self.size % (2 * self.heads):
            raise ValueError(f"hidden size {self.size} does not split into {self.heads} even heads")
        if self.one_pass != (self.sequential > 0):
            raise ValueError("one_pass and an inner size of the sequential head go together")
        if self.one_pass and not (self.trigram and self.context and self.head_state):
            raise ValueError("one_pass needs trigram, context and head_state")
        if self.one_pass and self.own_heads:
            raise ValueError("one_pass needs the target's LM head, not own_heads")
        if self.width and (self.one_pass or self.own_heads):
            other = "one_pass" if self.one_pass else "own_heads"
            raise ValueError(f"{other} needs the target's size, not a width")

    @property
    def size(self) -> int:
        """Of the draft's own states."""
        return self.width or self.hidden_size

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "taps": list(self.taps)}


class TrigramEncoder(nn.Module):
    """Short range: a residual block and a projection of three embeddings."""

    def __init__(self, config: ChimeraConfig) -> None:
        super().__init__()
        d = config.size
        self.norm = Standardise(d)
        self.residual = nn.Linear(3 * d, 3 * d)
        self.projection = nn.Linear(3 * d, d, bias=False)
        self._trigram = config.trigram

    def forward(self, embeddings: Tensor) -> Tensor:
        """[..., 3, d], the newest token last -> [..., d]."""
        return self.encode(self.standardised(embeddings))

    def standardised(self, embeddings: Tensor) -> Tensor:
        """[..., 3, d] -> [..., 3d], the input of `encode`."""
        if not self._trigram:
            embeddings = embeddings[..., 2:, :].expand_as(embeddings)
        x: Tensor = self.norm(embeddings).flatten(-2)
        return x

    def encode(self, x: Tensor) -> Tensor:
        """g [..., d] of standardised embeddings [..., 3d]."""
        out: Tensor = self.projection(x + F.silu(self.residual(x)))
        return out


class FullContextEncoder(ContextLayer):
    """Long range: one decoder layer over the target's own states."""

    def __init__(self, config: ChimeraConfig) -> None:
        d, eps = config.size, config.eps
        super().__init__(d, config.heads, config.ffn, eps)
        self.rope_theta = config.rope_theta
        self.sees_context = config.context
        self.state_norm = Standardise(d)
        self.context_norm = RMSNorm(d, eps)
        self.out_norm = RMSNorm(d, eps) if config.out_norm else None
        taps, tapped = len(config.taps), config.hidden_size
        self.tap_norms = nn.ModuleList(Standardise(tapped) for _ in range(taps))
        self.from_taps = nn.Linear(taps * tapped, d, bias=False) if taps else None
        self.from_state = nn.Linear(d, d, bias=False) if config.query_state else None
        self.depths = nn.Parameter(torch.zeros(config.depth, d)) if config.one_pass else None

    def context(self, h: Tensor, taps: list[Tensor]) -> Tensor:
        """c of verified positions, [..., d], from h and the inner layers' states [..., d]."""
        c, tapped = self.own_context(h), self.tapped(taps)
        return c if self.from_taps is None else c + self.from_taps(tapped)

    def tapped(self, taps: list[Tensor]) -> Tensor | None:
        """The inner layers' states [..., d], normed and concatenated; None if none are read."""
        if self.from_taps is None:
            return None
        normed = [
            F.rms_norm(norm(tap), tap.shape[-1:])
            for norm, tap in zip(self.tap_norms, taps, strict=True)
        ]
        return torch.cat(normed, dim=-1)

    def own_context(self, o: Tensor) -> Tensor:
        """c of a drafted position, [..., d], from the encoder's own output o; for a verified
        position, the part of c that comes from h."""
        c: Tensor = self.context_norm(self.state_norm(o))
        return c

    def pull(self, h: Tensor) -> Tensor | None:
        """What h_t adds to every query of a draft, [..., d]; None without `query_state`."""
        if self.from_state is None:
            return None
        added: Tensor = self.from_state(self.state_norm(h))
        return added

    def block(self, g: Tensor) -> Tensor:
        """Inputs [..., depth, d] of one pass for all depths, from the root's g [..., d]."""
        assert self.depths is not None
        return g[..., None, :] + self.depths

    def rotation(self, positions: Tensor) -> Rotation:
        """(cos, sin) of rotary positions [..., n], each [..., n, 1, head_dim / 2]."""
        return rotation(positions, self.q_proj.out_features // self.heads, self.rope_theta)

    def finish(self, u: Tensor, attended: Tensor) -> Tensor:
        """o [..., d] from the input u and the attention's result [..., heads, head_dim]."""
        return self.state_norm.inverse(self.normed(self.combine(u, attended.flatten(-2))))

    def normed(self, x: Tensor) -> Tensor:
        """The layer's output [..., d], normed where the configuration says so."""
        return x if self.out_norm is None else self.out_norm(x)


class ResidualHeads(nn.Module):
    """One head for each depth, which adds a function of h_t and the estimate o to o."""

    def __init__(self, config: ChimeraConfig) -> None:
        super().__init__()
        d = config.size
        self.state_norm = Standardise(d)
        inputs = 2 * d if config.head_state or not config.own_heads else d
        outputs, bias = config.own_heads or d, not config.own_heads
        self.heads = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=bias) for _ in range(config.depth)
        )
        self._reads_state = config.head_state
        self._own = bool(config.own_heads)

    def forward(self, h: Tensor, o: Tensor, depth: int) -> Tensor:
        """z [..., d] of drafts at `depth` (from 1), from h_t and o, each [..., d]; logits [..., V]
        with `own_heads`."""
        head = self.heads[depth - 1]
        if self._own:
            logits: Tensor = head(torch.cat((h, o), dim=-1) if self._reads_state else o)
            return logits
        other = self.state_norm(h if self._reads_state else o)
        pair = torch.cat((other, self.state_norm(o)), dim=-1)
        z: Tensor = o + self.state_norm.scale * F.silu(head(pair))
        return z


class SequentialHead(nn.Module):
    """What the drafted tokens add to z after one pass for all depths, in deviations of h."""

    def __init__(self, config: ChimeraConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.sequential
        self.from_tokens = nn.Linear(3 * d, inner, bias=False)
        self.from_estimate = nn.Linear(d, inner, bias=False)
        self.out = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        """[..., d] from standardised embeddings of three tokens, [..., 3d], and `from_estimate` of
        the standardised o, [..., inner]."""
        out: Tensor = self.out(F.silu(self.from_tokens(x) + added))
        return out


class Narrow(nn.Module):
    """What stands around a draft of width w: it reads W_e e and W_h h of the standardised e and h,
    and its outputs x become W_o x, on the scale of h."""

    def __init__(self, config: ChimeraConfig) -> None:
        super().__init__()
        d, w = config.hidden_size, config.width
        self.embedding_norm, self.state_norm = Standardise(d), Standardise(d)
        self.from_embedding = nn.Linear(d, w, bias=False)
        self.from_state = nn.Linear(d, w, bias=False)
        self.to_state = nn.Linear(w, d, bias=False)

    def embeddings(self, e: Tensor) -> Tensor:
        """[..., d] -> [..., w]."""
        out: Tensor = self.from_embedding(self.embedding_norm(e))
        return out

    def states(self, h: Tensor) -> Tensor:
        """[..., d] -> [..., w]."""
        out: Tensor = self.from_state(self.state_norm(h))
        return out

    def wide(self, x: Tensor) -> Tensor:
        """[..., w] -> [..., d]."""
        return self.state_norm.inverse(self.to_state(x))

    def head(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """(matrix [V', w], bias [V']) that score x as the LM head [V', d] scores `wide(x)`."""
        norm, exact = self.state_norm, head.float()
        matrix = (exact * norm.scale.float()) @ self.to_state.weight.float()
        return matrix.to(head.dtype), (exact @ norm.mean.float()).to(head.dtype)


class Chimera(Draft):
    """The draft model; embeddings and LM head are the target's, frozen."""

    config: ChimeraConfig

    def __init__(self, config: ChimeraConfig) -> None:
        super().__init__()
        self.config = config
        self.trigram = TrigramEncoder(config)
        self.encoder = FullContextEncoder(config)
        self.heads = ResidualHeads(config)
        self.sequential = SequentialHead(config) if config.one_pass else None
        self.narrow = Narrow(config) if config.width else None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Chimera:
        return cls(ChimeraConfig(**{**config, "taps": tuple(config["taps"])}))

    @property
    def taps(self) -> tuple[int, ...]:
        return self.config.taps

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Matrices that add to a residual stream are zero, and the output norm is small."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                deviation = module.in_features**-0.5
                weight = torch.randn(module.weight.shape, generator=generator) * deviation
                module.weight.copy_(weight)
                if module.bias is not None:
                    module.bias.zero_()
        for head in self.heads.heads:
            head.weight.zero_()  # type: ignore[operator]
        encoder = self.encoder
        for zero in (encoder.o_proj, encoder.down, encoder.from_taps, encoder.from_state):
            if zero is not None:
                zero.weight.zero_()
        if encoder.depths is not None:
            encoder.depths.zero_()
        if self.sequential is not None:
            self.sequential.out.weight.zero_()
        if encoder.out_norm is not None:
            encoder.out_norm.weight.fill_(0.3)

    @torch.no_grad()
    def standardise(self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor]) -> None:
        """Measure mean and deviation over answer positions; each input is [n, d]."""
        encoder = self.encoder
        pairs: list[tuple[nn.Module, Tensor]] = [*zip(encoder.tap_norms, taps, strict=True)]
        if self.narrow is None:
            pairs += [(self.trigram.norm, embeddings)]
            pairs += [(encoder.state_norm, hidden), (self.heads.state_norm, hidden)]
        else:  # the norms inside of it stay neutral
            pairs += [(self.narrow.embedding_norm, embeddings), (self.narrow.state_norm, hidden)]
        for norm, x in pairs:
            assert isinstance(norm, Standardise)
            norm.measure(x)

    def forward(
        self,
        embeddings: Tensor,
        hidden: Tensor,
        taps: list[Tensor],
        anchors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Draft `depth` levels from every anchor along the true tokens (teacher forcing).

        The encoder reads its own outputs of earlier levels, as when drafting; with `one_pass` it
        runs once for all levels.

        Args:
            embeddings: [B, T, d] of the tokens.
            hidden: [B, T, d]; h.
            taps: of each [B, T, d].
            anchors: int64 [B, A]; t, with 1 <= t < T - depth.

        Returns:
            (o, z), each [B, A, depth, d], for positions t + 1 .. t + depth.
        """
        encoder, batch = self.encoder, torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        if self.narrow is not None:
            embeddings, hidden = self.narrow.embeddings(embeddings), self.narrow.states(hidden)
        span = torch.arange(hidden.shape[1], device=hidden.device)
        keys, values = encoder.keys_values(encoder.context(hidden, taps), encoder.rotation(span))
        seen = span[None, None, :] <= anchors[..., None]  # [B, A, T]
        if not encoder.sees_context:
            seen = torch.zeros_like(seen)
        h = hidden[batch, anchors]  # [B, A, d]
        if self.sequential is not None:
            ahead = anchors[..., None] + torch.arange(1, self.config.depth + 1, device=span.device)
            window = ahead[..., None] + torch.arange(-2, 1, device=span.device)  # [B, A, depth, 3]
            x = self.trigram.standardised(embeddings[batch[..., None, None], window])
            u = self.block_inputs(x[:, :, 0], encoder.pull(h))
            q, k, v = encoder.queries(u, encoder.rotation(ahead))
            attended = attend_blocks(q, k, v, keys, values, block_mask(seen, q.shape[2]))
            o = encoder.finish(u, attended.view(q.shape))
            z, added = self.block_outputs(h, o)
            return o, z + self.heads.state_norm.scale * self.sequential(x, added)
        pull = encoder.pull(h)
        own: list[tuple[Tensor, Tensor]] = []
        outs, zs = [], []
        for level in range(1, self.config.depth + 1):
            positions = anchors + level
            window = torch.stack([positions - 2, positions - 1, positions], dim=-1)
            u = self.trigram(embeddings[batch[..., None], window])
            u = u if pull is None else u + pull
            rotation = encoder.rotation(positions)
            q, k, v = encoder.queries(u, rotation)
            attended = attend_chain(q, keys, values, seen, [*own, (k, v)])
            o = encoder.finish(u, attended)
            if encoder.sees_context:
                own.append(encoder.keys_values(encoder.own_context(o), rotation))
            outs.append(o)
            zs.append(self.heads(h, o, level))
        o, z = torch.stack(outs, dim=2), torch.stack(zs, dim=2)
        return (o, z) if self.narrow is None else (self.narrow.wide(o), self.narrow.wide(z))

    def block_inputs(self, x: Tensor, pull: Tensor | None) -> Tensor:
        """u [..., depth, d] of one pass, from the root's standardised embeddings x [..., 3d] and
        what h_t adds, [..., d]."""
        g = self.trigram.encode(x)
        return self.encoder.block(g if pull is None else g + pull)

    def block_outputs(self, h: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
        """(z without the sequential head [..., depth, d], A o^ [..., depth, inner]) from h_t
        [..., d] and o [..., depth, d]."""
        assert self.sequential is not None
        estimates = enumerate(o.unbind(dim=-2), start=1)
        z = torch.stack([self.heads(h, each, level) for level, each in estimates], dim=-2)
        added: Tensor = self.sequential.from_estimate(self.heads.state_norm(o))
        return z, added
