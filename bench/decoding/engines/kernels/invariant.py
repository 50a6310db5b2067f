"""Attention whose every sum has the same terms in the same order at every width of the tree.

Keys are taken in order of position, in parts of `PART` positions that start at its multiples. A
part of committed positions is read as it lies in the cache. In an open part each node reads its
own path: committed rows, then its ancestors' rows by a table. A drafted path is therefore summed
as the same tokens are once they are committed, by the same instructions: a tile of a matrix
product treats each of its rows alike, so it does not matter which other queries share the tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.decoding.engines.kernels.common import chained, follow
from bench.decoding.engines.layers import HeadNorms
from bench.decoding.engines.shapes import PART, TILE

PROGRAMS = 32  # programs that share a head's parts
SLOTS = 16  # parts that are merged at once


@triton.jit
def _rotate(
    qkv,
    q_norm,
    k_norm,
    keys,
    values,
    cos,
    sin,
    depths,
    length_at,
    stride,
    cache_stride,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One vector of one node: queries are rotated in place, keys rotated into the cache, values
    copied into it; queries and keys after their norms where there are any (NORM)."""
    follow(CHAINED)
    node, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, HALF)
    length = tl.load(length_at).to(tl.int32)
    source = qkv + node * stride + head * 2 * HALF
    a, b = tl.load(source + d), tl.load(source + HALF + d)
    row = (length + node) * 2 * HALF
    if head >= HEADS + KV_HEADS:
        goal = values + (head - HEADS - KV_HEADS) * cache_stride + row
    else:
        if NORM:
            x, y = a.to(tl.float32), b.to(tl.float32)
            squares = tl.sum(x * x, axis=0) + tl.sum(y * y, axis=0)
            inverse = tl.rsqrt(squares / (2 * HALF) + eps)
            norm = k_norm if head >= HEADS else q_norm
            first, second = (
                tl.load(norm + d).to(tl.float32),
                tl.load(norm + HALF + d).to(tl.float32),
            )
            a, b = (x * inverse * first).to(a.dtype), (y * inverse * second).to(a.dtype)
        turn = (length + tl.load(depths + node).to(tl.int32)) * HALF + d
        c, s = tl.load(cos + turn).to(tl.float32), tl.load(sin + turn).to(tl.float32)
        x, y = a.to(tl.float32), b.to(tl.float32)
        a, b = (x * c - y * s).to(a.dtype), (y * c + x * s).to(a.dtype)
        goal = keys + (head - HEADS) * cache_stride + row if head >= HEADS else source
    tl.store(goal + d, a)
    tl.store(goal + HALF + d, b)


@triton.jit
def _ancestors(visible, depths, table, W: tl.constexpr, BW: tl.constexpr, CHAINED: tl.constexpr):
    """One node's path: table[node, k] is its ancestor k levels below the root."""
    follow(CHAINED)
    node = tl.program_id(0)
    j = tl.arange(0, BW)
    above = tl.load(visible + node * W + j, mask=j < W, other=0) != 0
    depth = tl.load(depths + j, mask=j < W, other=0)
    tl.store(table + node * W + depth, j, mask=above)


@triton.jit
def _attend_part(
    q,
    keys,
    values,
    depths,
    table,
    length_at,
    partial,
    peaks,
    sums,
    nodes,
    scale,
    q_stride,
    cache_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    PART: tl.constexpr,
    PROGRAMS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Every PROGRAMS-th part of the keys of one head, for one tile of its queries: in a part of
    committed positions those of BM / GROUP nodes, in an open one those of a single node."""
    head, tile = tl.program_id(1), tl.program_id(2)
    m = tl.arange(0, BM)
    d = tl.arange(0, D)
    follow(CHAINED)
    length = tl.load(length_at).to(tl.int32)
    depth = tl.load(depths + tile, mask=tile < nodes, other=-1).to(tl.int32)
    last = length + depth  # the position of the node that owns this tile in an open part
    committed = length // PART  # parts without an open position
    parts = tl.maximum(tl.where(tile < nodes, last // PART + 1, 0), committed)
    for part in range(tl.program_id(0), parts, PROGRAMS):
        closed = part < committed
        query = tile * BM + m
        node = tl.where(closed, query // GROUP, tile)
        own = head * GROUP + tl.where(closed, query % GROUP, m)
        here = (node < nodes) & (m < tl.where(closed, BM, GROUP))
        s = part * PART + tl.arange(0, PART)
        on_path = (s >= length) & (s <= last)
        row = length + tl.load(table + tile * W + (s - length), mask=on_path, other=0)
        row = tl.where(s < length, s, row)
        seen = (s < length) | on_path
        if tl.where(closed, tile * BM, tile * GROUP) < nodes * GROUP:
            at = head * cache_stride + row[:, None] * D + d[None, :]
            k = tl.load(keys + at, mask=seen[:, None], other=0.0)
            v = tl.load(values + at, mask=seen[:, None], other=0.0)
            x = tl.load(
                q + node[:, None] * q_stride + own[:, None] * D + d[None, :],
                mask=here[:, None],
                other=0.0,
            )
            score = tl.dot(x, tl.trans(k), input_precision="ieee") * scale
            score = tl.where(seen[None, :], score, -float("inf"))
            peak = tl.max(score, axis=1)
            p = tl.exp(score - peak[:, None])
            mixed = tl.dot(p.to(v.dtype), v, input_precision="ieee")
            place = (part * nodes + node) * HEADS + own
            tl.store(peaks + place, peak, mask=here)
            tl.store(sums + place, tl.sum(p, axis=1), mask=here)
            tl.store(partial + place[:, None] * D + d[None, :], mixed, mask=here[:, None])


@triton.jit
def _merge_parts(
    partial,
    peaks,
    sums,
    out,
    depths,
    length_at,
    rows,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PART: tl.constexpr,
    SLOTS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One query head of one node: its parts in order, SLOTS at a time."""
    follow(CHAINED)
    row = tl.program_id(0)
    s = tl.arange(0, SLOTS)
    d = tl.arange(0, D)
    last = tl.load(length_at).to(tl.int32) + tl.load(depths + row // HEADS).to(tl.int32)
    parts = last // PART + 1
    top = -float("inf")
    weight = 0.0
    acc = tl.zeros((D,), tl.float32)
    for start in range(0, parts, SLOTS):
        part = start + s
        live = part < parts
        peak = tl.load(peaks + part * rows + row, mask=live, other=-float("inf"))
        total = tl.load(sums + part * rows + row, mask=live, other=0.0)
        mixed = tl.load(
            partial + (part * rows + row)[:, None] * D + d[None, :], mask=live[:, None], other=0.0
        )
        new = tl.maximum(top, tl.max(peak, axis=0))
        fade = tl.exp(peak - new)
        old = tl.exp(top - new)
        weight = weight * old + tl.sum(total * fade, axis=0)
        acc = acc * old + tl.sum(mixed * fade[:, None], axis=0)
        top = new
    tl.store(out + row * D + d, (acc / weight).to(out.dtype.element_ty))


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
) -> None:
    kv_heads, _, size = keys.shape
    _rotate[(qkv.shape[0], heads + 2 * kv_heads)](
        qkv,
        qkv if norms is None else norms.q,
        qkv if norms is None else norms.k,
        keys,
        values,
        cos,
        sin,
        depths,
        length,
        qkv.stride(0),
        keys.stride(0),
        0.0 if norms is None else norms.eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=size // 2,
        NORM=norms is not None,
        num_warps=1,
        **chained(qkv),
    )


def ancestors(visible: Tensor, depths: Tensor, table: Tensor) -> None:
    w = visible.shape[0]
    block = triton.next_power_of_2(w)
    _ancestors[(w,)](visible, depths, table, W=w, BW=block, num_warps=1, **chained(visible))


def attend_in_order(
    q: Tensor,
    heads: int,
    keys: Tensor,
    values: Tensor,
    depths: Tensor,
    table: Tensor,
    length: Tensor,
) -> Tensor:
    nodes = depths.shape[0]
    kv_heads, capacity, size = keys.shape
    group = heads // kv_heads
    parts = triton.cdiv(capacity, PART)
    options = {"dtype": torch.float32, "device": q.device}
    partial = torch.empty(parts, nodes * heads, size, **options)  # type: ignore[call-overload]
    peaks, sums = (torch.empty(parts, nodes * heads, **options) for _ in range(2))  # type: ignore[call-overload]
    out = torch.empty(nodes, heads * size, dtype=q.dtype, device=q.device)
    tiles = max(nodes, triton.cdiv(nodes * group, TILE))
    _attend_part[(min(parts, PROGRAMS), kv_heads, tiles)](
        q,
        keys,
        values,
        depths,
        table,
        length,
        partial,
        peaks,
        sums,
        nodes,
        size**-0.5,
        q.stride(0),
        keys.stride(0),
        HEADS=heads,
        GROUP=group,
        D=size,
        W=nodes,
        BM=TILE,
        PART=PART,
        PROGRAMS=PROGRAMS,
        num_warps=4,
        **chained(q),
    )
    _merge_parts[(nodes * heads,)](
        partial,
        peaks,
        sums,
        out,
        depths,
        length,
        nodes * heads,
        HEADS=heads,
        D=size,
        PART=PART,
        SLOTS=SLOTS,
        num_warps=1 if size <= 64 else 2,
        **chained(q),
    )
    return out
