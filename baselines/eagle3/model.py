"""EAGLE-3's draft model (arXiv 2503.01840, section 3): one decoder layer and its own LM head.

Notation: x_i tokens, e_i their embeddings in the target, l_i, m_i, h_i the target's residual stream
at position i after 2, L/2 and L-3 of its L layers, d the hidden size, V' the draft vocabulary.

    f_i = W_fc [l_i; m_i; h_i]          where the target has been, i <= t
    f_i = a_i                           where it has not been, i > t
    y = f_i + W_o attend([RMS(e_{i+1}); RMS(f_i)])      over the same inputs at positions <= i
    a_{i+1} = y + W_down (SiLU(W_gate RMS(y)) * W_up RMS(y))
    q(x_{i+2}) = softmax(W_head RMS(a_{i+1}))

a_{i+1} stands for the unknown f_{i+1} and is the next level's input. In training the layer is
unrolled over its own outputs in the same way ("training-time test", section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bench.decoding.drafts.chains import attend_chain
from bench.decoding.drafts.norms import RMSNorm, Standardise
from bench.decoding.drafts.products import Product, plain
from bench.decoding.drafts.trainable import Draft
from bench.decoding.engines import ops

Rotation = tuple[Tensor, Tensor]  # cos and sin, [..., D / 2] each


@dataclass(frozen=True)
class Eagle3Config:
    """Shape of a draft.

    Attributes:
        hidden_size: d, the target's.
        heads, kv_heads, head_dim: H, G and D of its attention.
        ffn: inner size of its feed-forward part.
        vocabulary: V', rows of its LM head.
        taps: layers of the target after which l, m and h are read.
        depth: levels unrolled in training; more can be drafted.
        rope: transformers' rope parameters, its positions.
        eps: of the RMS norms.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    taps: tuple[int, ...]
    depth: int = 7
    rope: Mapping[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 1e4}
    )
    eps: float = 1e-6

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "taps": list(self.taps)}


def tapped_layers(layers: int) -> tuple[int, ...]:
    """(2, L/2, L-3); of a target with few layers, the nearest that there are."""
    return (min(2, layers), max(layers // 2, 1), max(layers - 3, 1))


class Eagle3(Draft):
    """The draft model; the embeddings are the target's.

    Attributes:
        vocabulary: int64 [V'], target ids of the head's rows, where the checkpoint says them; None:
            the first V' of a trained file's vocabulary.
    """

    config: Eagle3Config
    vocabulary: Tensor | None = None

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        self.config = config
        d, inner = config.hidden_size, config.heads * config.head_dim
        outputs = inner + 2 * config.kv_heads * config.head_dim
        self.tap_norm = Standardise(3 * d)  # nothing is measured in published drafts
        self.fc = nn.Linear(3 * d, d, bias=False)
        self.input_layernorm, self.hidden_norm = RMSNorm(d, config.eps), RMSNorm(d, config.eps)
        self.qkv = nn.Linear(2 * d, outputs, bias=False)
        self.o_proj = nn.Linear(inner, d, bias=False)
        self.post_attention_layernorm = RMSNorm(d, config.eps)
        self.gate_up = nn.Linear(d, 2 * config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, d, bias=False)
        self.norm = RMSNorm(d, config.eps)
        self.lm_head = nn.Linear(d, config.vocabulary, bias=False)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Eagle3:
        return cls(Eagle3Config(**{**config, "taps": tuple(config["taps"])}))

    @property
    def taps(self) -> tuple[int, ...]:
        return self.config.taps

    @property
    def own_head(self) -> Tensor:
        return self.lm_head.weight

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Matrices that add to the residual stream are zero: a = f at first."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                weight = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(weight * module.in_features**-0.5)
        self.o_proj.weight.zero_()
        self.down.weight.zero_()

    @torch.no_grad()
    def standardise(self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor]) -> None:
        """Measure the taps' mean and deviation; the output norm starts at a part of the deviation
        of h, so that the head, which starts as the target's, gives flat distributions."""
        self.tap_norm.measure(torch.cat(taps, dim=-1))
        self.norm.weight.copy_(0.3 * hidden.float().std(dim=0))

    # The equations. Shapes: any number n of positions, or leading batch dimensions.

    def features(self, taps: list[Tensor], product: Product = plain) -> Tensor:
        """f [n, d] of verified positions from l, m and h, each [n, d]."""
        return product(self.fc, self.tap_norm(torch.cat(taps, dim=-1)))

    def inputs(self, embeddings: Tensor, f: Tensor) -> Tensor:
        """[RMS(e_{i+1}); RMS(f_i)] [n, 2d]."""
        return torch.cat((self.input_layernorm(embeddings), self.hidden_norm(f)), dim=-1)

    def rotation(self, rows: int, device: torch.device) -> Rotation:
        """(cos, sin) float32 [rows, D / 2] of the positions from 0."""
        config = LlamaConfig(
            hidden_size=self.config.hidden_size,
            num_attention_heads=self.config.heads,
            head_dim=self.config.head_dim,
            rope_parameters=dict(self.config.rope),
        )
        positions = torch.arange(rows, device=device)[None]
        like = torch.empty(1, device=device)
        cos, sin = LlamaRotaryEmbedding(config).to(device)(like, positions)  # [1, rows, D]
        half = self.config.head_dim // 2
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()

    def heads(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(q [n, H, D], k, v [n, G, D]) of a product [n, (H + 2G) D], at positions with cos and
        sin, [n, D / 2] each."""
        H, G = self.config.heads, self.config.kv_heads
        split = qkv.view(*qkv.shape[:-1], -1, self.config.head_dim)
        q, k, v = split.tensor_split((H, H + G), dim=-2)
        turn = cos[..., None, :], sin[..., None, :]
        return ops.rotated(q, *turn), ops.rotated(k, *turn), v

    def finish(self, f: Tensor, attended: Tensor, product: Product = plain) -> Tensor:
        """a [n, d] from the layer's input f and the attention's result [n, H D]."""
        y = product(self.o_proj, attended, residual=f)
        inner = product(self.gate_up, y, norm=self.post_attention_layernorm, halves=True)
        return product(self.down, inner, residual=y)

    def logits(self, a: Tensor, product: Product = plain) -> Tensor:
        """[n, V'] over the draft vocabulary."""
        return product(self.lm_head, a, norm=self.norm)

    def forward(
        self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor], anchors: Tensor
    ) -> tuple[None, Tensor]:
        """(None, RMS(a) [B, A, depth, d]): training-time test. From every anchor t, int64 [B, A],
        level j reads a of level j-1 (f_t at first) and e_{t+j}; it attends to the verified
        positions before t and to the levels of its own anchor."""
        length, depth = hidden.shape[1], self.config.depth
        batch = torch.arange(len(hidden), device=hidden.device)[:, None]
        span = torch.arange(length, device=hidden.device)
        cos, sin = self.rotation(length, hidden.device)
        f = self.features(taps)  # [B, T, d]
        x = self.inputs(embeddings.roll(-1, dims=1), f)
        _, keys, values = (self._repeated(part) for part in self.heads(self.qkv(x), cos, sin))
        seen = span[None, None] < anchors[..., None]  # [B, A, T]
        own: list[tuple[Tensor, Tensor]] = []
        a, found = f[batch, anchors], []
        for level in range(1, depth + 1):
            place = anchors + level - 1
            x = self.inputs(embeddings[batch, place + 1], a)
            parts = self.heads(self.qkv(x), cos[place], sin[place])
            q, k, v = (self._repeated(part) for part in parts)
            own.append((k, v))
            a = self.finish(a, attend_chain(q, keys, values, seen, own).flatten(-2))
            found.append(self.norm(a))
        return None, torch.stack(found, dim=2)

    def _repeated(self, x: Tensor) -> Tensor:
        """[..., H, D] of [..., H, D] or [..., G, D]."""
        return x.repeat_interleave(self.config.heads // x.shape[-2], dim=-2)
