"""Attention of a token tree over a long cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.decoding.engines.kernels import tiles
from bench.decoding.engines.kernels.common import chained, follow
from bench.decoding.engines.layers import HeadNorms


@triton.jit
def _load_half(base, row, here, half: tl.constexpr, HALF: tl.constexpr):
    """[rows, HALF]: the first or second half of vectors at `base + row`."""
    d = tl.arange(0, HALF) + half * HALF
    return tl.load(base + row[:, None] + d[None, :], mask=here[:, None], other=0.0)


@triton.jit
def _normed(a, b, norm, eps, HALF: tl.constexpr):
    """RMS norm with `norm` [2 HALF] of vectors whose halves are a and b, in float32."""
    d = tl.arange(0, HALF)
    x, y = a.to(tl.float32), b.to(tl.float32)
    inverse = tl.rsqrt((tl.sum(x * x, axis=1) + tl.sum(y * y, axis=1)) / (2 * HALF) + eps)[:, None]
    first, second = tl.load(norm + d).to(tl.float32), tl.load(norm + HALF + d).to(tl.float32)
    return (x * inverse * first[None, :]).to(a.dtype), (y * inverse * second[None, :]).to(a.dtype)


@triton.jit
def _turn(a, b, cos, sin, position, here, HALF: tl.constexpr):
    """Rotary positions on vectors whose halves are a and b."""
    d = tl.arange(0, HALF)
    place = position[:, None] * HALF + d[None, :]
    c = tl.load(cos + place, mask=here[:, None], other=0.0).to(tl.float32)
    s = tl.load(sin + place, mask=here[:, None], other=0.0).to(tl.float32)
    x, y = a.to(tl.float32), b.to(tl.float32)
    return (x * c - y * s).to(a.dtype), (y * c + x * s).to(a.dtype)


@triton.jit
def _fold(qa, qb, ka, kb, v, seen, scale, peak, weight, acc):
    """The softmax so far and one more block of keys. seen: [queries or 1, keys]."""
    score = tl.dot(qa, tl.trans(ka), input_precision="ieee")
    score = tl.dot(qb, tl.trans(kb), score, input_precision="ieee") * scale
    score = tl.where(seen, score, -float("inf"))
    top = tl.maximum(peak, tl.max(score, axis=1))
    calm = tl.where(top == -float("inf"), 0.0, top)  # nothing seen yet
    p = tl.exp(score - calm[:, None])
    fade = tl.exp(peak - calm)
    weight = weight * fade + tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    return top, weight, acc


@triton.jit
def _chunk(length, SPLITS: tl.constexpr, LEAST: tl.constexpr):
    """Committed rows of one part."""
    return tl.cdiv(tl.cdiv(length, LEAST), SPLITS) * LEAST


@triton.jit
def _attend(
    q,
    keys,
    values,
    fresh_k,
    fresh_v,
    q_norm,
    k_norm,
    cos,
    sin,
    depths,
    length_at,
    visible,
    partial,
    peaks,
    sums,
    nodes,
    fresh,
    scale,
    eps,
    q_stride,
    fresh_stride,
    cache_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
    CONTEXT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One part of the keys against the queries of one key head.

    Parts 0 .. SPLITS-1 share the committed rows, which every query sees, as few as have LEAST rows
    each; the last part is the tree itself, under its mask. With ROTATE queries and fresh keys come
    unrotated from the projection, before their norms where there are any (NORM), and the fresh keys
    and values are written to the cache here; otherwise they lie there.
    """
    split, head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    D: tl.constexpr = 2 * HALF
    m = tile * BM + tl.arange(0, BM)
    node = m // GROUP
    own = head * GROUP + m % GROUP  # query head
    here = node < nodes
    follow(CHAINED)
    length = tl.load(length_at).to(tl.int32)
    qa = _load_half(q, node * q_stride + own * D, here, 0, HALF)
    qb = _load_half(q, node * q_stride + own * D, here, 1, HALF)
    if NORM:
        qa, qb = _normed(qa, qb, q_norm, eps, HALF)
    if ROTATE:
        turn = length + tl.load(depths + node, mask=here, other=0).to(tl.int32)
        qa, qb = _turn(qa, qb, cos, sin, turn, here, HALF)
    peak = tl.full((BM,), -float("inf"), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    d = tl.arange(0, D)
    past_k = keys + head * cache_stride
    past_v = values + head * cache_stride
    if split < SPLITS:
        if CONTEXT:
            chunk = _chunk(length, SPLITS, LEAST)
            first = split * chunk
            last = tl.minimum(first + chunk, length)
            here = here & (m * 0 + first < last)  # an empty part leaves nothing
            for start in range(first, last, BN):
                j = start + tl.arange(0, BN)
                live = j < last
                ka = _load_half(past_k, j * D, live, 0, HALF)
                kb = _load_half(past_k, j * D, live, 1, HALF)
                v = tl.load(past_v + j[:, None] * D + d[None, :], mask=live[:, None], other=0.0)
                peak, weight, acc = _fold(
                    qa, qb, ka, kb, v, live[None, :], scale, peak, weight, acc
                )
    else:
        for start in range(0, fresh, BN):
            j = start + tl.arange(0, BN)
            live = j < fresh
            row = (length + j) * D
            if ROTATE:
                base = j * fresh_stride + head * D
                ka = _load_half(fresh_k, base, live, 0, HALF)
                kb = _load_half(fresh_k, base, live, 1, HALF)
                if NORM:
                    ka, kb = _normed(ka, kb, k_norm, eps, HALF)
                shift = length + tl.load(depths + j, mask=live, other=0).to(tl.int32)
                ka, kb = _turn(ka, kb, cos, sin, shift, live, HALF)
                v = tl.load(fresh_v + base[:, None] + d[None, :], mask=live[:, None], other=0.0)
                if tile == 0:
                    half = tl.arange(0, HALF)
                    tl.store(past_k + row[:, None] + half[None, :], ka, mask=live[:, None])
                    tl.store(past_k + row[:, None] + half[None, :] + HALF, kb, mask=live[:, None])
                    tl.store(past_v + row[:, None] + d[None, :], v, mask=live[:, None])
            else:
                ka = _load_half(past_k, row, live, 0, HALF)
                kb = _load_half(past_k, row, live, 1, HALF)
                v = tl.load(past_v + row[:, None] + d[None, :], mask=live[:, None], other=0.0)
            seen = tl.load(
                visible + node[:, None] * fresh + j[None, :],
                mask=here[:, None] & live[None, :],
                other=0,
            )
            peak, weight, acc = _fold(qa, qb, ka, kb, v, seen != 0, scale, peak, weight, acc)
    place = split * nodes * HEADS + node * HEADS + own
    tl.store(peaks + place, peak, mask=here)
    tl.store(sums + place, weight, mask=here)
    tl.store(partial + place[:, None] * D + d[None, :], acc, mask=here[:, None])


@triton.jit
def _combine(
    partial,
    peaks,
    sums,
    out,
    length_at,
    rows,
    D: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    CONTEXT: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The parts' softmaxes as one; a row is one query head of one node."""
    follow(CHAINED)
    row = tl.program_id(0)
    s = tl.arange(0, SLOTS)
    d = tl.arange(0, D)
    real = s == SPLITS  # the tree itself
    if CONTEXT:
        length = tl.load(length_at).to(tl.int32)
        real |= (s < SPLITS) & (s * _chunk(length, SPLITS, LEAST) < length)
    peak = tl.load(peaks + s * rows + row, mask=real, other=-float("inf"))
    weight = tl.load(sums + s * rows + row, mask=real, other=0.0)
    parts = tl.load(
        partial + (s * rows + row)[:, None] * D + d[None, :], mask=real[:, None], other=0.0
    )
    fade = tl.exp(peak - tl.max(peak, axis=0))
    mixed = tl.sum(parts * fade[:, None], axis=0) / tl.sum(weight * fade, axis=0)
    tl.store(out + row * D + d, mixed.to(out.dtype.element_ty))


@triton.jit
def _rotate_rows(
    qkv,
    keys,
    values,
    cos,
    sin,
    length_at,
    depth,
    first,
    stride,
    cache_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    CONSECUTIVE: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One vector of a row of q, k and v: queries are turned where they lie, keys turned into the
    cache, values copied there."""
    follow(CHAINED)
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, HALF)
    length = tl.load(length_at).to(tl.int32)
    source = qkv + row * stride + head * 2 * HALF
    a, b = tl.load(source + d), tl.load(source + HALF + d)
    at = (length + first + row) * 2 * HALF
    if head >= HEADS + KV_HEADS:
        goal = values + (head - HEADS - KV_HEADS) * cache_stride + at
    else:
        position = length + depth + row if CONSECUTIVE else length + depth
        turn = position * HALF + d
        c, s = tl.load(cos + turn).to(tl.float32), tl.load(sin + turn).to(tl.float32)
        x, y = a.to(tl.float32), b.to(tl.float32)
        a, b = (x * c - y * s).to(a.dtype), (y * c + x * s).to(a.dtype)
        goal = keys + (head - HEADS) * cache_stride + at if head >= HEADS else source
    tl.store(goal + d, a)
    tl.store(goal + HALF + d, b)


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
    consecutive: bool,
) -> None:
    kv_heads, _, size = keys.shape
    _rotate_rows[(qkv.shape[0], heads + 2 * kv_heads)](
        qkv,
        keys,
        values,
        cos,
        sin,
        length,
        depth,
        first,
        qkv.stride(0),
        keys.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=size // 2,
        CONSECUTIVE=consecutive,
        num_warps=1,
        **chained(qkv),
    )


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    visible: Tensor,
    context: bool,
    scale: float | None = None,
) -> Tensor:
    """Keys and values of the tree lie in the cache behind the committed rows."""
    n, heads, size = q.shape
    return _attention(
        q, q.stride(0), keys, values, q, q, 0, None, None, None, length, length, visible,
        heads, context, scale,
    ).view(n, heads, size)  # fmt: skip


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
    size, kv_heads = keys.shape[-1], keys.shape[0]
    fresh_k = qkv[:, heads * size :]
    fresh_v = qkv[:, (heads + kv_heads) * size :]
    stride = qkv.stride(0)
    return _attention(
        qkv, stride, keys, values, fresh_k, fresh_v, stride, norms, cos, sin, depths, length,
        visible, heads, True,
    )  # fmt: skip


def _attention(
    q: Tensor,
    q_stride: int,
    keys: Tensor,
    values: Tensor,
    fresh_k: Tensor,
    fresh_v: Tensor,
    fresh_stride: int,
    norms: HeadNorms | None,
    cos: Tensor | None,
    sin: Tensor | None,
    depths: Tensor,
    length: Tensor,
    visible: Tensor,
    heads: int,
    context: bool,
    scale: float | None = None,
) -> Tensor:
    nodes, fresh = visible.shape
    kv_heads, _, size = keys.shape
    group = heads // kv_heads
    queries = nodes * group
    tile = tiles.attention(queries, kv_heads, size, q.element_size())
    bm, bn, splits, least, warps, stages = tile
    options = {"dtype": torch.float32, "device": q.device}
    partial = torch.empty(splits + 1, nodes * heads, size, **options)  # type: ignore[call-overload]
    peaks, sums = (torch.empty(splits + 1, nodes * heads, **options) for _ in range(2))  # type: ignore[call-overload]
    parts = {"SPLITS": splits, "LEAST": least, "CONTEXT": context}
    _attend[(splits + 1, kv_heads, triton.cdiv(queries, bm))](
        q,
        keys,
        values,
        fresh_k,
        fresh_v,
        q if norms is None else norms.q,
        q if norms is None else norms.k,
        q if cos is None else cos,
        q if sin is None else sin,
        depths,
        length,
        visible,
        partial,
        peaks,
        sums,
        nodes,
        fresh,
        size**-0.5 if scale is None else scale,
        0.0 if norms is None else norms.eps,
        q_stride,
        fresh_stride,
        keys.stride(0),
        HEADS=heads,
        GROUP=group,
        HALF=size // 2,
        BM=bm,
        BN=bn,
        NORM=norms is not None,
        ROTATE=cos is not None,
        num_warps=warps,
        num_stages=stages,
        **parts,
        **chained(q),
    )
    out = torch.empty(nodes, heads * size, dtype=q.dtype, device=q.device)
    grid = (nodes * heads,)
    arguments = (partial, peaks, sums, out, length, nodes * heads)
    slots = triton.next_power_of_2(splits + 1)
    _combine[grid](*arguments, D=size, SLOTS=slots, num_warps=1, **parts, **chained(q))
    return out
