"""Attention that sums a path in order of position, whatever the tree: for engine `exact`. In plain
torch; on a GPU by Triton kernels of the same names, as in `ops`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.decoding.engines import ops
from bench.decoding.engines.layers import HeadNorms
from bench.decoding.engines.shapes import PART, TILE


def rotate(
    qkv: Tensor,
    heads: int,
    norms: HeadNorms | None,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    depths: Tensor,
    length: Tensor,
) -> Tensor:
    """Norm a tree's queries and keys if asked, rotate them; write its keys and values to the cache.

    Args:
        as `attend_rotated` takes them; the queries of `qkv` may be overwritten.

    Returns:
        the queries, [w, H, D].
    """
    w, size, kv_heads = qkv.shape[0], keys.shape[-1], keys.shape[0]
    vectors = qkv.view(w, heads + 2 * kv_heads, size)
    if ops.on_gpu(qkv):
        from bench.decoding.engines import kernels

        kernels.rotate(qkv, heads, norms, keys, values, cos, sin, depths, length)
        return vectors[:, :heads]
    q, k, v = torch.split(vectors, [heads, kv_heads, kv_heads], dim=1)
    q, k = ops.normed_heads(q, k, norms)
    turn = tuple(table[length + depths][:, None] for table in (cos, sin))
    q, k = (ops.rotated(x, *turn) for x in (q, k))
    rows = length + torch.arange(w, device=qkv.device)
    keys.index_copy_(1, rows, k.transpose(0, 1))
    values.index_copy_(1, rows, v.transpose(0, 1))
    return q


def ancestors(visible: Tensor, depths: Tensor, table: Tensor) -> None:
    """table[i, k] = the node on i's path k levels below the root; other entries stay.

    Args:
        visible: bool [w, w], each node's path to the root, itself included.
        depths: int64 [w].
        table: int32 [w, w], with nothing but indices of nodes in it.
    """
    if ops.on_gpu(visible):
        from bench.decoding.engines import kernels

        kernels.ancestors(visible, depths, table)
        return
    node, above = visible.nonzero(as_tuple=True)
    table[node, depths[above]] = above.to(table.dtype)


def attend_in_order(
    q: Tensor, keys: Tensor, values: Tensor, depths: Tensor, table: Tensor, length: Tensor
) -> Tensor:
    """Attention of each node to its path in order of position, committed rows and ancestors alike:
    the sums of a drafted path are those of the same tokens once they are committed.

    Args:
        q: [w, H, D], rotated.
        keys, values: [G, rows, D]; rows `length` .. `length + w - 1` are the tree's.
        depths: int64 [w].
        table: int32 [w, w] as `ancestors` leaves it.
        length: int64 [1].

    Returns:
        [w, H D].
    """
    w, heads, size = q.shape
    kv_heads = keys.shape[0]
    if ops.on_gpu(q):
        from bench.decoding.engines import kernels

        return kernels.attend_in_order(q, heads, keys, values, depths, table, length)
    last = length + depths  # [w], positions
    s = torch.arange(int(last.max()) // PART * PART + PART, device=q.device)
    path = table.gather(1, (s[None] - length).clamp(0, w - 1).expand(w, -1)).long()
    seen = s <= last[:, None]  # [w, S]
    rows = torch.where(seen, torch.where(s < length, s, length + path), 0)
    x = q.view(w, kv_heads, -1, size).float() * size**-0.5  # [w, G, H / G, D]
    group = x.shape[2]
    x = F.pad(x, (0, 0, 0, -group % TILE))  # products of one shape, however few heads share a key
    top = torch.full((*x.shape[:3], 1), -torch.inf, device=q.device)
    weight, acc = torch.zeros_like(top), torch.zeros_like(x)
    for rows_of_part, live in zip(
        torch.split(rows, PART, 1), torch.split(seen, PART, 1), strict=True
    ):
        k, v = (t[:, rows_of_part].transpose(0, 1).float() for t in (keys, values))  # [w, G, P, D]
        score = (x @ k.transpose(2, 3)).masked_fill(~live[:, None, None], -torch.inf)
        new = torch.maximum(top, score.amax(dim=3, keepdim=True))
        p, fade = torch.exp(score - new), torch.exp(top - new)
        weight = weight * fade + p.sum(dim=3, keepdim=True)
        acc = acc * fade + p @ v
        top = new
    return (acc / weight)[:, :, :group].to(q.dtype).reshape(w, heads * size)
