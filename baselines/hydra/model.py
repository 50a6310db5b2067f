"""Hydra's heads (arXiv 2402.05109): Medusa's, and sequential.

    x_k = [h_t; e_{t+1}; ..; e_{t+k}]
    z_k = R_k x_k + r_k + SiLU(W_k x_k + b_k),  logits = LM head z_k,  k = 1 .. K

h_t is the last hidden state that is known, e the target's embeddings. Head k drafts the token at
t + k + 1 and reads those before it along its path: t + 1 is the tree's root, the rest was drafted.
W_k, b_k and r_k are initially zero and R_k takes h_t from x_k, so that every head starts as the
target's own. Embeddings are read s e, with s the ratio of the sizes of h and e in answers: then a
step of training moves both parts of a matrix alike. Published heads have s = 1.
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
class HydraConfig:
    """Shape of the heads.

    Attributes:
        hidden_size: d, the target's.
        depth: number of heads, K.
        layers: residual blocks of a head, in sequence; the first reads x_k.
        own_heads: size V of each head's own LM head, 0 where the target's is shared.
    """

    hidden_size: int
    depth: int
    layers: int = 1
    own_heads: int = 0

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Head(nn.Module):
    """Head k: x_k [..., (k + 1) d] -> z_k [..., d]."""

    def __init__(self, config: HydraConfig, k: int) -> None:
        super().__init__()
        d = config.hidden_size
        self.shortcut = nn.Linear((k + 1) * d, d)  # R_k, r_k
        self.first = nn.Linear((k + 1) * d, d)  # W_k, b_k
        self.rest = nn.ModuleList(nn.Linear(d, d) for _ in range(config.layers - 1))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.shortcut(x) + F.silu(self.first(x))
        for block in self.rest:
            z = z + F.silu(block(z))
        return z


class Hydra(Draft):
    """Sequential heads, and LM heads unless the target's is shared."""

    config: HydraConfig

    def __init__(self, config: HydraConfig) -> None:
        super().__init__()
        self.config = config
        d, depth, own = config.hidden_size, config.depth, config.own_heads
        self.heads = nn.ModuleList(Head(config, k) for k in range(1, depth + 1))
        self.lm_heads = nn.ModuleList(nn.Linear(d, own) for _ in range(depth if own else 0))
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(1))  # s

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Hydra:
        return cls(HydraConfig(**config))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Every head starts as the target's own."""
        d = self.config.hidden_size
        for parameter in self.heads.parameters():
            parameter.zero_()
        for head in self.heads:
            assert isinstance(head, Head)
            head.shortcut.weight[:, :d].fill_diagonal_(1.0)

    def standardise(self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor]) -> None:
        del taps
        size, other = (x.float().square().mean().sqrt() for x in (hidden, embeddings))
        self.scale.copy_(size / other)

    def forward(
        self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor], anchors: Tensor
    ) -> tuple[None, Tensor]:
        """(None, z [B, A, K, d]); the tokens before a drafted one are the true ones."""
        del taps
        batch = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        x, states = hidden[batch, anchors], []  # [B, A, d]
        for k, head in enumerate(self.heads, start=1):
            x = self.extended(x, embeddings[batch, anchors + k])
            states.append(head(x))
        return None, torch.stack(states, dim=-2)

    def extended(self, x: Tensor, e: Tensor) -> Tensor:
        """x_k [..., (k + 1) d] from x_{k-1} and the embedding e_{t+k} [..., d]."""
        return torch.cat((x, (self.scale * e).to(x.dtype)), dim=-1)

    def logits(self, x: Tensor, k: int, shared: Callable[[Tensor], Tensor]) -> Tensor:
        """[..., V'] of head k from x_k; `shared` is the LM head if heads lack one."""
        z: Tensor = self.heads[k - 1](x)
        if not self.lm_heads:
            return shared(z)
        logits: Tensor = self.lm_heads[k - 1](z)
        return logits
