"""What engines with static shapes compute, in plain torch; on a GPU by Triton kernels of the same
names.

The cache's length is read on the device, so that one captured graph serves every length, and only
live rows are read. Shapes: w tree nodes, H query heads, G key heads, D a head's size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.decoding.engines.layers import HeadNorms
from bench.decoding.engines.shapes import TILE, multiplies


def linear(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None = None,
    eps: float = 0.0,
    *,
    halves: bool = False,
    bias: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
    fixed: bool = False,
) -> Tensor:
    """x [w, K] by weight [N, K] -> [w, N], fused with its neighbours in this order.

    Args:
        norm: weight [K] of an RMS norm of x before, with `eps`.
        halves: weight [2N, K] holds a gate and what it gates, as in `gated`.
        bias: [N], added.
        silu: SiLU of that.
        residual: [w, N] or [1, N], added.
        affine: (scale, shift), each [N].
        fixed: the same sums in the same order for a row, however many rows there are.
    """
    if on_gpu(x) and (fixed or multiplies(x.shape[0], x.itemsize, weight)):
        from bench.decoding.engines import kernels

        return kernels.linear(x, weight, norm, eps, halves, bias, silu, residual, affine, fixed)
    if norm is not None:
        _, x = add_norm(x, None, norm, eps)
    if fixed:
        out = _in_tiles(x, weight)
        out = _swiglu(out) if halves else out
    else:
        out = gated(x, weight) if halves else F.linear(x, weight, bias)
        bias = None if not halves else bias
    out = out if bias is None else out + bias
    out = F.silu(out) if silu else out
    out = out if residual is None else out + residual
    return out if affine is None else out * affine[0] + affine[1]


def parts(x: Tensor, weight: Tensor, fixed: bool = False) -> Tensor:
    """x [w, K] by weight [N, K] -> [P, w, N], to be summed over P parts of K; `fixed` as `linear`
    has it."""
    if on_gpu(x) and (fixed or x.itemsize == 2):
        from bench.decoding.engines import kernels

        return kernels.parts(x, weight, fixed)
    if fixed:
        return _in_tiles(x, weight)[None]
    halves = zip(x.chunk(2, 1), weight.chunk(2, 1), strict=True)
    return torch.stack([F.linear(*half) for half in halves])


def gated(x: Tensor, weight: Tensor) -> Tensor:
    """x [w, K] by weight [2N, K], a gate and what it gates -> [w, N]: SiLU(gate) * up."""
    if on_gpu(x):
        from bench.decoding.engines import kernels

        return kernels.gated(x, weight)
    return _swiglu(F.linear(x, weight))


def _swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def _in_tiles(x: Tensor, weight: Tensor) -> Tensor:
    """x [w, K] by weight [N, K] -> [w, N], in products of TILE rows each."""
    padded = F.pad(x, (0, 0, 0, -x.shape[0] % TILE))
    return torch.cat([F.linear(tile, weight) for tile in torch.split(padded, TILE)])[: x.shape[0]]


def add_norm(x: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + sum of change, its RMS norm with `weight` [K]), each [w, K].

    x: [w, K]; change: [P, w, K] as `parts` leaves it, or None.
    """
    if on_gpu(x):
        from bench.decoding.engines import kernels

        return kernels.add_norm(x, change, weight, eps)
    total = x if change is None else x + change.sum(dim=0).to(x.dtype)
    return total, F.rms_norm(total, total.shape[-1:], weight, eps)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    visible: Tensor,
    context: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Attention of tree nodes to the committed rows and to the tree's own rows behind them.

    Args:
        q: [w, H, D], rotated.
        keys, values: [G, rows, D]; rows `length` .. `length + m - 1` are the tree's.
        length: int64 [1].
        visible: bool [w, m].
        context: False hides the committed rows.
        scale: of the scores; D ** -0.5 if None.

    Returns:
        [w, H, D].
    """
    if on_gpu(q) and _fits(q.shape[-1]):
        from bench.decoding.engines import kernels

        return kernels.attend(q, keys, values, length, visible, context, scale)
    rows = torch.arange(keys.shape[1], device=q.device)
    seen = torch.zeros(q.shape[0], keys.shape[1], dtype=torch.bool, device=q.device)
    if context:
        seen |= rows < length
    own = length + torch.arange(visible.shape[1], device=q.device)
    seen = seen.index_copy(1, own, visible)
    return _sdpa(q, keys, values, seen, scale)


def attend_rotated(
    qkv: Tensor,
    heads: int,
    norms: HeadNorms | None,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    depths: Tensor,
    length: Tensor,
    visible: Tensor,
) -> Tensor:
    """Norm the tree's queries and keys if asked, rotate them, write its keys and values to the
    cache, attend.

    Args:
        qkv: [w, (H + 2G) D], a projection's output.
        heads: H.
        norms: of every head's query and key, or None.
        keys, values: [G, rows, D], written at rows `length` .. `length + w - 1`.
        cos, sin: [positions, D / 2].
        depths: int64 [w]; a node's position is `length` plus its depth.
        length: int64 [1].
        visible: bool [w, w].

    Returns:
        [w, H D].
    """
    if on_gpu(qkv) and _fits(keys.shape[-1]):
        from bench.decoding.engines import kernels

        places = (cos, sin, depths, length, visible)
        return kernels.attend_rotated(qkv, heads, norms, keys, values, *places)
    w, size, kv_heads = qkv.shape[0], keys.shape[-1], keys.shape[0]
    q, k, v = torch.split(qkv.view(w, -1, size), [heads, kv_heads, kv_heads], dim=1)
    q, k = normed_heads(q, k, norms)
    turn = tuple(table[length + depths][:, None] for table in (cos, sin))
    q, k = (rotated(x, *turn) for x in (q, k))
    rows = length + torch.arange(w, device=qkv.device)
    keys.index_copy_(1, rows, k.transpose(0, 1))
    values.index_copy_(1, rows, v.transpose(0, 1))
    return attend(q, keys, values, length, visible).flatten(1)


def rotate_rows(
    qkv: Tensor,
    heads: int,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    length: Tensor,
    depth: int,
    first: int,
    consecutive: bool = False,
) -> Tensor:
    """Rotate queries and keys of w rows, write keys and values to the cache.

    Args:
        qkv: [w, (H + 2G) D], a projection's output; its queries may be overwritten.
        heads: H; 0 for keys and values alone.
        keys, values: [G, rows, D], written at rows `length + first` and on.
        cos, sin: [positions, D / 2].
        length: int64 [1].
        depth: all are at position `length + depth`; the first of them where they are
            `consecutive`.

    Returns:
        the queries, [w, H, D].
    """
    w, size, kv_heads = qkv.shape[0], keys.shape[-1], keys.shape[0]
    vectors = qkv.view(w, heads + 2 * kv_heads, size)
    if on_gpu(qkv):
        from bench.decoding.engines import kernels

        kernels.rotate_rows(qkv, heads, keys, values, cos, sin, length, depth, first, consecutive)
        return vectors[:, :heads]
    q, k, v = torch.split(vectors, [heads, kv_heads, kv_heads], dim=1)
    order = torch.arange(w, device=qkv.device)
    position = length + depth + order * consecutive
    turn = tuple(table[position][:, None] for table in (cos, sin))  # [w, 1, D / 2]
    q, k = (rotated(x, *turn) for x in (q, k))
    rows = length + first + order
    keys.index_copy_(1, rows, k.transpose(0, 1))
    values.index_copy_(1, rows, v.transpose(0, 1))
    return q


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values, indices), each [n, count]: the largest of each row of [n, V], best first, in
    float32; and the row's log-sum-exp [n]."""
    if on_gpu(logits) and count <= 16:
        from bench.decoding.engines import kernels

        return kernels.top(logits, count)
    wide = logits.float()
    best = wide.topk(count, dim=-1)
    return best.values, best.indices, wide.logsumexp(dim=-1)


def argmax(logits: Tensor) -> Tensor:
    """int64 [n]: where each row of [n, V] is largest, the lowest index among equals."""
    if on_gpu(logits):
        from bench.decoding.engines import kernels

        return kernels.top(logits, 1)[1].squeeze(1)
    return logits.argmax(dim=-1)


def embed(tokens: Tensor, weight: Tensor, standard: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Rows [n, d] of weight [V, d] for tokens int64 [n]; standardised by (mean, scale), each [d]:
    (e - mean) / scale."""
    if on_gpu(weight):
        from bench.decoding.engines import kernels

        return kernels.embed(tokens, weight, standard)
    e = F.embedding(tokens, weight)
    return e if standard is None else (e - standard[0]) / standard[1]


def children(
    above: Tensor, best: Tensor, parent: Tensor, rank: Tensor, vocabulary: Tensor
) -> Tensor:
    """int64 [m, 3]: trigrams of the nodes of a level.

    Args:
        above: int64 [n, 3], trigrams of the nodes that were expanded for it.
        best: int64 [n, ranks], their likeliest drafts, indices into `vocabulary`.
        parent, rank: int64 [m], each node's parent among those n, and its rank there.
        vocabulary: int64 [V'], token ids.
    """
    tokens = vocabulary[best[parent, rank]]
    return torch.cat((above[parent, 1:], tokens[:, None]), dim=1)


def sprout(
    above: Tensor,
    best: Tensor,
    parent: Tensor,
    rank: Tensor,
    place: Tensor,
    expanded: int,
    vocabulary: Tensor,
    weight: Tensor,
    standard: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """(trigrams [m, 3] of a level's nodes, those [k, 3] of its nodes that are expanded next, and
    their tokens' embeddings [k, 3d] as `embed` gives them).

    Args:
        above, best, parent, rank, vocabulary: as `children` takes them.
        place: int64 [m], each node's place among those expanded next, in order, or -1.
        expanded: k.
    """
    if on_gpu(weight):
        from bench.decoding.engines import kernels

        return kernels.sprout(
            above, best, parent, rank, place, expanded, vocabulary, weight, standard
        )
    nodes = children(above, best, parent, rank, vocabulary)
    trigrams = nodes[place >= 0]
    x = embed(trigrams.flatten(), weight, standard)
    return nodes, trigrams, x.view(expanded, 3 * weight.shape[1])


def move(rows: Tensor, length: Tensor, path: Tensor, accepted: Tensor, height: int) -> None:
    """Bring an accepted path's rows into its order: row path[i] of the tree becomes its row i.

    Args:
        rows: [..., rows, D], contiguous.
        length: int64 [1], the path counted already.
        path: int64 [w], from the root down; the root's row lies in place.
        accepted: int64 [], nodes on it below the root; rows behind theirs mean nothing.
        height: how many there can be.
    """
    if height == 0:
        return
    if on_gpu(rows) and _fits(rows.shape[-1]):
        from bench.decoding.engines import kernels

        kernels.move(rows, length, path, accepted, height)
        return
    first = length - accepted - 1
    kept = rows.index_select(-2, first + path[1 : height + 1])
    rows.index_copy_(-2, first + torch.arange(1, height + 1, device=rows.device), kept)


def on_gpu(x: Tensor) -> bool:
    """Whether kernels take x; otherwise the definitions in plain torch run."""
    return x.is_cuda


def _fits(size: int) -> bool:
    """Whether the kernels take heads of this size."""
    return size in (32, 64, 128, 256)


def normed_heads(q: Tensor, k: Tensor, norms: HeadNorms | None) -> tuple[Tensor, Tensor]:
    """(q, k) with every head normed, each [w, heads, D]."""
    if norms is None:
        return q, k
    size = q.shape[-1:]
    return F.rms_norm(q, size, norms.q, norms.eps), F.rms_norm(k, size, norms.k, norms.eps)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [w, heads, D] by cos, sin [w, 1, D / 2], in float32 as the kernel does."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def _sdpa(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float | None) -> Tensor:
    """q [w, H, D] over keys, values [G, rows, D] under bool [w, rows] -> [w, H, D]."""
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=seen[None, None],
        scale=scale,
        enable_gqa=keys.shape[0] != q.shape[1],
    )
    return out[0].transpose(0, 1)
