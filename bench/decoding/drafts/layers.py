"""Parts of draft models that attend to the target's states: rotary positions, a decoder layer, and
the same layer in few kernels.

Shapes: d the hidden size, H heads of D numbers each; "..." stands for any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.drafts.norms import RMSNorm
from bench.decoding.drafts.products import Product, fused, plain
from bench.decoding.engines import ops

Rotation = tuple[Tensor, Tensor]


def rotation(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """(cos, sin) of rotary positions [..., n], each [..., n, 1, head_dim / 2]."""
    half = head_dim // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float32)
    angle = positions[..., None, None] * theta ** (-steps / half)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """x [..., n, H, D] at its rotary positions."""
    cos, sin = (part.to(x.dtype) for part in turn)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class ContextLayer(nn.Module):
    """A decoder layer whose keys and values come from a context, too:

        y = u + W_o attention(W_q norm(u); [W_k; W_v] [c, norm(u)])
        out = y + W_down (SiLU(W_gate norm(y)) * W_up norm(y))

    Keys and values are linear in normed states, so those of the context are computed once and
    cached.
    """

    def __init__(self, size: int, heads: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = RMSNorm(size, eps)
        self.ffn_norm = RMSNorm(size, eps)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.kv_proj = nn.Linear(size, 2 * size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)
        self.gate_up = nn.Linear(size, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, size, bias=False)

    def keys_values(self, c: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """Keys and values [..., n, H, D] of normed states [..., n, d]."""
        k, v = self.kv_proj(c).chunk(2, dim=-1)
        return rotate(self._split(k), turn), self._split(v)

    def queries(self, u: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [..., n, H, D] of the layer's inputs [..., n, d]."""
        normed = self.query_norm(u)
        q = rotate(self._split(self.q_proj(normed)), turn)
        k, v = self.keys_values(normed, turn)
        return q, k, v

    def combine(self, u: Tensor, attended: Tensor, product: Product = plain) -> Tensor:
        """The layer's output [..., d] from its input u and the attention's result [..., d]."""
        y = product(self.o_proj, attended, residual=u)
        inner = product(self.gate_up, y, self.ffn_norm, halves=True)
        return product(self.down, inner, residual=y)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


class FusedLayer:
    """A `ContextLayer` in few kernels, for engines that have them."""

    def __init__(self, layer: ContextLayer) -> None:
        self._layer = layer
        self._qkv = torch.cat((layer.q_proj.weight, layer.kv_proj.weight))

    def project(self, u: Tensor) -> Tensor:
        """Queries, keys and values [n, 3d] of inputs u [n, d], not rotated."""
        norm = self._layer.query_norm
        return ops.linear(u, self._qkv, norm.weight, norm.eps or 0.0)

    def combine(self, u: Tensor, attended: Tensor) -> Tensor:
        """The layer's output [n, d] from u and the attention's result [n, d]."""
        return self._layer.combine(u, attended, fused)


def block_mask(seen: Tensor, block: int) -> Tensor:
    """bool [B, A J, T + A J]: what each row of A anchors' blocks of J rows sees in training, the
    anchor's context, `seen` bool [B, A, T], and its own block in both directions."""
    batch, anchors = seen.shape[:2]
    own = torch.eye(anchors, dtype=torch.bool, device=seen.device).expand(batch, -1, -1)
    own = own.repeat_interleave(block, dim=-1)  # [B, A, A J]
    return torch.cat((seen, own), dim=-1).repeat_interleave(block, dim=1)


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, visible: Tensor
) -> Tensor:
    """Attention in training of blocks over the shared context and themselves; [B, A, J, H D].

    q, k, v: [B, A, J, H, D]; keys, values: [B, T, H, D]; visible: as `block_mask` makes it.
    """
    attended = F.scaled_dot_product_attention(
        q.flatten(1, 2).transpose(1, 2),
        torch.cat((keys, k.flatten(1, 2)), dim=1).transpose(1, 2),
        torch.cat((values, v.flatten(1, 2)), dim=1).transpose(1, 2),
        attn_mask=visible[:, None],
    )
    return attended.transpose(1, 2).reshape(*q.shape[:3], -1)


def write_rows(into: Tensor, rows: Tensor, keys: Tensor, values: Tensor) -> None:
    """Keys and values [n, H, D] into `rows` int64 [n] of a draft's cache [2, H, rows, D]."""
    into.index_copy_(2, rows, torch.stack((keys, values)).transpose(1, 2).to(into.dtype))


def nbytes(module: nn.Module | None) -> int:
    """Bytes of a module's parameters; 0 for None."""
    return sum(p.nbytes for p in module.parameters()) if module is not None else 0
