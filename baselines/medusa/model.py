"""Medusa's heads (arXiv 2401.10774, section 2.1).

    z_k = h + SiLU(W_k h + b_k),  logits = LM head z_k,  k = 0 .. K-1

Head k predicts the token at distance k + 2 from the position of h; the target's own head predicts
the next one. W_k and b_k are initially zero, so that every head starts as the target's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.drafts.trainable import Draft


@dataclass(frozen=True)
class MedusaConfig:
    """Shape of the heads.

    Attributes:
        hidden_size: d, the target's.
        depth: number of heads, K.
        blocks: residual blocks of a head, in sequence.
        own_heads: size V of each head's own LM head, 0 where the target's is shared.
    """

    hidden_size: int
    depth: int
    blocks: int = 1
    own_heads: int = 0

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Medusa(Draft):
    """Residual blocks, and LM heads unless the target's is shared."""

    config: MedusaConfig

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__()
        self.config = config
        d, depth = config.hidden_size, config.depth
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(d, d) for _ in range(config.blocks)) for _ in range(depth)
        )
        self.lm_heads = nn.ModuleList(
            nn.Linear(d, config.own_heads, bias=False)
            for _ in range(depth if config.own_heads else 0)
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Medusa:
        return cls(MedusaConfig(**config))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Every head starts as the target's own."""
        for parameter in self.heads.parameters():
            parameter.zero_()

    def forward(
        self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor], anchors: Tensor
    ) -> tuple[None, Tensor]:
        """(None, z [B, A, K, d]) from anchors int64 [B, A] and hidden [B, T, d]."""
        del embeddings, taps
        batch = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return None, self.states(hidden[batch, anchors])

    def states(self, h: Tensor) -> Tensor:
        """z [..., K, d] from h [..., d]."""
        states = []
        for head in self.heads:
            z = h
            for block in head:  # type: ignore[attr-defined]
                z = z + F.silu(block(z))
            states.append(z)
        return torch.stack(states, dim=-2)

    def logits(self, h: Tensor, shared: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., K, V'] from h [..., d]; `shared` is the LM head if heads lack one."""
        z = self.states(h)
        if not self.lm_heads:
            return shared(z)
        own = [head(z[..., k, :]) for k, head in enumerate(self.lm_heads)]
        return torch.stack(own, dim=-2)
