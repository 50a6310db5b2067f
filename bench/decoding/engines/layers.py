"""A Llama's weights as engines with fused projections read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One layer's weights. H query heads, G key heads of D; hidden size d."""

    attention_norm: Tensor
    qkv: Tensor  # [(H + 2G) D, d]
    o: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor  # [2 ffn, d]
    down: Tensor


def layer(module: Any) -> Layer:
    """Of a transformers layer, whose modules keep views of what is joined here."""
    attention, mlp = module.self_attn, module.mlp
    return Layer(
        attention_norm=module.input_layernorm.weight,
        qkv=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
        o=attention.o_proj.weight,
        feed_forward_norm=module.post_attention_layernorm.weight,
        gate_up=_joined(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj.weight,
    )


@torch.no_grad()
def _joined(*modules: nn.Linear) -> Tensor:
    """Their weights as one matrix, of which the modules hold views from now on."""
    weights = [module.weight for module in modules]
    rows = [weight.shape[0] for weight in weights]
    first, starts = weights[0], [0]
    for count in rows:
        starts.append(starts[-1] + count * first.shape[1])
    together = all(
        weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and weight.storage_offset() == first.storage_offset() + start
        for weight, start in zip(weights, starts, strict=False)
    )
    if together:  # by another engine's target before
        return first.as_strided((sum(rows), first.shape[1]), first.stride())
    whole = torch.cat(weights)
    for module, part in zip(modules, torch.split(whole, rows), strict=True):
        module.weight = nn.Parameter(part, requires_grad=False)
    return whole
