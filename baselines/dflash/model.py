"""DFlash's draft model (arXiv 2602.06036): a few layers fill a block of masked positions in one
pass, conditioned on the target's inner states.

Notation: x_i tokens, e_i their embeddings in the target, m^l_i the target's residual stream after l
layers at position i, d the hidden size, V the vocabulary, K the drafted positions; t is the newest
position whose states are known, x_{t+1} the newest token. x^ is x standardised, S^-1 maps a
standardised hidden state back to the scale of h.

    c_i = norm(W_c [m^a_i^; m^b_i^; ...]),  i <= t                      context feature
    u   = [e^_{t+1}; mask; ...; mask]       [K + 1, d], at t+1 .. t+1+K
    u  <- layer(u; context c_1 .. c_t)      for each layer; in the block, in both directions
    z_j = S^-1 norm(u_j),  j = 1 .. K
    q_j = softmax(LM head z_j)              of x_{t+1+j}

Every layer makes keys and values of its own from the same c, so that those of verified positions
are cached.

The q_j do not depend on each other. With `markov` = r they do (DSpark, arXiv 2607.05147): the
logits of position j gain row x_{t+j} of a table T [V, V] of rank r, here between the target's own
embeddings and LM head:

    z_j = S^-1 (norm(u_j) + W_out SiLU(W_in e^_{t+j})),  W_in [r, d], W_out [d, r]

Beyond the paper, which trains for days: states are standardised, and W_c reads their RMS norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
class DFlashConfig:
    """Shape of a draft.

    Attributes:
        hidden_size: d, the target's.
        heads: attention heads of a layer.
        ffn: inner size of its feed-forward part.
        layers: number of layers.
        depth: K, the drafted positions of a block.
        taps: layers of the target after which the residual stream is read.
        markov: rank r of the table on the token drafted before; 0 for none.
        rope_theta: base of the rotary positions.
        eps: of the RMS norms.
    """

    hidden_size: int
    heads: int
    ffn: int
    layers: int
    depth: int
    taps: tuple[int, ...]
    markov: int = 0
    rope_theta: float = 1e5
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden size {self.hidden_size} does not split into {self.heads} even heads"
            )

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "taps": list(self.taps)}


class MarkovHead(nn.Module):
    """What the token before adds to z, in deviations of h."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.from_token = nn.Linear(size, rank, bias=False)
        self.out = nn.Linear(rank, size, bias=False)

    def features(self, e: Tensor) -> Tensor:
        """SiLU(W_in e^) [..., r] of standardised embeddings [..., d]."""
        return F.silu(self.from_token(e))

    def forward(self, e: Tensor) -> Tensor:
        """[..., d] of standardised embeddings [..., d]."""
        added: Tensor = self.out(self.features(e))
        return added


class DFlash(Draft):
    """The draft model; embeddings and LM head are the target's, frozen."""

    config: DFlashConfig

    def __init__(self, config: DFlashConfig) -> None:
        super().__init__()
        self.config = config
        d, eps, taps = config.hidden_size, config.eps, len(config.taps) * config.hidden_size
        self.token_norm, self.tap_norm, self.state_norm = map(Standardise, (d, taps, d))
        self.fusion = nn.Linear(taps, d, bias=False)  # W_c
        self.context_norm = RMSNorm(d, eps)
        self.mask = nn.Parameter(torch.zeros(d))
        self.layers = nn.ModuleList(
            ContextLayer(d, config.heads, config.ffn, eps) for _ in range(config.layers)
        )
        self.out_norm = RMSNorm(d, eps)
        self.markov = MarkovHead(d, config.markov) if config.markov else None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DFlash:
        return cls(DFlashConfig(**{**config, "taps": tuple(config["taps"])}))

    @property
    def taps(self) -> tuple[int, ...]:
        return self.config.taps

    @property
    def blocks(self) -> list[ContextLayer]:
        """The layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, ContextLayer)]

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Matrices that add to a residual stream are zero, and the output norm is small."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                deviation = module.in_features**-0.5
                weight = torch.randn(module.weight.shape, generator=generator) * deviation
                module.weight.copy_(weight)
        for layer in self.blocks:
            layer.o_proj.weight.zero_()
            layer.down.weight.zero_()
        if self.markov is not None:
            self.markov.out.weight.zero_()
        self.mask.copy_(torch.randn(self.mask.shape, generator=generator))
        self.out_norm.weight.fill_(0.3)

    def standardise(self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor]) -> None:
        self.token_norm.measure(embeddings)
        self.state_norm.measure(hidden)
        self.tap_norm.measure(torch.cat(taps, dim=-1))

    def forward(
        self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor], anchors: Tensor
    ) -> tuple[None, Tensor]:
        """(None, z [B, A, K, d]) of a block behind every anchor; see `Draft.forward`."""
        span = torch.arange(embeddings.shape[1], device=anchors.device)
        visible = block_mask(span <= anchors[..., None], self.config.depth + 1)
        tokens = anchors[..., None] + torch.arange(1, self.config.depth + 2, device=span.device)
        batch = torch.arange(len(anchors), device=span.device)[:, None, None]
        known = embeddings[batch, tokens[..., :-1]]  # [B, A, K, d], x_{t+1} .. x_{t+K}
        c = self.context(self.tapped(taps))  # [B, T, d]
        u = self.block(known[:, :, 0])  # [B, A, K + 1, d]
        for layer in self.blocks:
            keys, values = layer.keys_values(c, self.rotation(span))
            q, k, v = layer.queries(u, self.rotation(tokens))
            u = layer.combine(u, attend_blocks(q, k, v, keys, values, visible))
        if self.markov is None:
            return None, self.outputs(u)
        return None, self.outputs(u, self.markov(self.token_norm(known)))

    def tapped(self, taps: list[Tensor]) -> Tensor:
        """The residual streams [..., d], standardised and joined, in their RMS norm."""
        m: Tensor = self.tap_norm(torch.cat(taps, dim=-1))
        return F.rms_norm(m, m.shape[-1:])

    def context(self, tapped: Tensor) -> Tensor:
        """c [..., d] from what `tapped` returns."""
        c: Tensor = self.context_norm(self.fusion(tapped))
        return c

    def block(self, e: Tensor) -> Tensor:
        """u [..., K + 1, d] behind the newest token, whose embedding is e [..., d]."""
        newest = self.token_norm(e)[..., None, :]
        masks = self.mask.to(newest.dtype).expand(*e.shape[:-1], self.config.depth, -1)
        return torch.cat((newest, masks), dim=-2)

    def outputs(self, u: Tensor, added: Tensor | float = 0.0) -> Tensor:
        """z [..., K, d] from the last layer's u [..., K + 1, d] and what `markov` adds."""
        return self.state_norm.inverse(self.out_norm(u[..., 1:, :]) + added)

    def rotation(self, positions: Tensor) -> Rotation:
        """(cos, sin) of rotary positions [..., n], each [..., n, 1, head_dim / 2]."""
        config = self.config
        return rotation(positions, config.hidden_size // config.heads, config.rope_theta)
