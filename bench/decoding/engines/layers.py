"""The weights of Llama-like models as engines with fused projections read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms of each head's query and key, before the rotation (Qwen3)."""

    q: Tensor  # [D]
    k: Tensor  # [D]
    eps: float


@dataclass(frozen=True)
class Layer:
    """One layer's weights. H query heads, G key heads of D; hidden size d."""

    attention_norm: Tensor
    qkv: Tensor  # [(H + 2G) D, d]
    qkv_bias: Tensor | None  # [(H + 2G) D]
    head_norms: HeadNorms | None
    o: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor  # [2 ffn, d]
    down: Tensor


def layer(module: Any) -> Layer:
    """Of a transformers layer, whose modules keep views of what is joined here."""
    attention, mlp = module.self_attn, module.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biased = attention.q_proj.bias is not None
    return Layer(
        attention_norm=module.input_layernorm.weight,
        qkv=_joined("weight", *projections),
        qkv_bias=_joined("bias", *projections) if biased else None,
        head_norms=_head_norms(attention),
        o=attention.o_proj.weight,
        feed_forward_norm=module.post_attention_layernorm.weight,
        gate_up=_joined("weight", mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj.weight,
    )


def _head_norms(attention: Any) -> HeadNorms | None:
    q_norm = getattr(attention, "q_norm", None)
    if q_norm is None:
        return None
    return HeadNorms(q_norm.weight, attention.k_norm.weight, q_norm.variance_epsilon)


@torch.no_grad()
def _joined(name: str, *modules: nn.Linear) -> Tensor:
    """A parameter of all modules as one tensor, of which they hold views from now on."""
    parts: list[Tensor] = [getattr(module, name) for module in modules]
    rows = [part.shape[0] for part in parts]
    first, starts = parts[0], [0]
    for count in rows:
        starts.append(starts[-1] + count * first[0].numel())
    together = all(
        part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.storage_offset() == first.storage_offset() + start
        for part, start in zip(parts, starts, strict=False)
    )
    if together:  # by another engine's target before
        return first.as_strided((sum(rows), *first.shape[1:]), first.stride())
    whole = torch.cat(parts)
    for module, part in zip(modules, torch.split(whole, rows), strict=True):
        setattr(module, name, nn.Parameter(part, requires_grad=False))
    return whole
