"""Triton kernels of the engine `compile`, for few rows against large weights and long caches.

Each has its definition in plain torch in `bench.decoding.ops`, under the same name.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _round(x, like):
    """To the precision of `like` and back: rounded where torch rounds."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _close(total, gate, residual, out, place, mask, GATED: tl.constexpr, RESIDUAL: tl.constexpr):
    """What follows a product, and its store."""
    if GATED:
        gate = _round(gate, out)
        total = _round(gate / (1.0 + tl.exp(-gate)), out) * _round(total, out)
    if RESIDUAL:
        total = _round(total, out) + tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _vector(
    x,
    weight,
    norm,
    residual,
    out,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One row: out[n] = sum_k norm(x)[k] weight[n, k], BN weight rows a program, read once."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = n < N
    rows = n.to(tl.int64)[:, None] * K
    total = tl.zeros((BN,), tl.float32)
    gate = tl.zeros((BN,), tl.float32)
    squares = 0.0
    for start in tl.static_range(0, K, BK):
        k = start + tl.arange(0, BK)
        within = k < K
        mask = inside[:, None] & within[None, :]
        tile = tl.load(weight + rows + k[None, :], mask=mask, other=0.0)
        part = tl.load(x + k, mask=within, other=0.0).to(tl.float32)
        if NORM:
            squares += tl.sum(part * part, axis=0)
            part *= tl.load(norm + k, mask=within, other=0.0).to(tl.float32)
        if GATED:
            gate += tl.sum(tile.to(tl.float32) * part[None, :], axis=1)
            tile = tl.load(weight + rows + N * K + k[None, :], mask=mask, other=0.0)
        total += tl.sum(tile.to(tl.float32) * part[None, :], axis=1)
    if NORM:
        inverse = tl.rsqrt(squares / K + eps)
        total *= inverse
        gate *= inverse
    _close(total, gate, residual, out, n, inside, GATED, RESIDUAL)


@triton.jit
def _matrix(
    x,
    weight,
    out,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A few rows by a small matrix. Each of a grid of parts takes BK of K in one piece, so that all
    loads are in flight at once, and leaves a sum of its own."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    part = tl.program_id(2)
    k = part * BK + tl.arange(0, BK)
    inside, here, within = (n < N)[:, None], (m < rows)[:, None], (k < K)[None, :]
    tile = tl.load(weight + n[:, None] * K + k[None, :], mask=inside & within, other=0.0)
    piece = tl.load(x + m[:, None] * K + k[None, :], mask=here & within, other=0.0)
    total = tl.dot(piece, tl.trans(tile), input_precision="ieee")
    place = (part * rows + m[:, None]) * N + n[None, :]
    tl.store(out + place, total, mask=here & (n < N)[None, :])


@triton.jit
def _rms_norm(
    x,
    change,
    weight,
    total,
    out,
    rows,
    eps,
    K: tl.constexpr,
    BK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A row a program, of x and what PARTS sums add to it; their total is stored too."""
    row = tl.program_id(0)
    k = tl.arange(0, BK)
    inside = k < K
    value = tl.load(x + row * K + k, mask=inside, other=0.0).to(tl.float32)
    if PARTS:
        added = tl.zeros((BK,), tl.float32)
        for part in tl.static_range(PARTS):
            place = change + (part * rows + row) * K + k
            added += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        value = _round(value + _round(added, out), out)
        tl.store(total + row * K + k, value.to(out.dtype.element_ty), mask=inside)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / K + eps)
    scale = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * K + k, (value * inverse * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate(both, out, N: tl.constexpr, BN: tl.constexpr):
    """SiLU of a row's first N times its second N."""
    row = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    gate = tl.load(both + row * 2 * N + n, mask=n < N, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * N + N + n, mask=n < N, other=0.0).to(tl.float32)
    _close(up, gate, out, out, row * N + n, n < N, True, False)


@triton.jit
def _load_half(base, row, here, half: tl.constexpr, HALF: tl.constexpr):
    """[rows, HALF]: the first or second half of vectors at `base + row`."""
    d = tl.arange(0, HALF) + half * HALF
    return tl.load(base + row[:, None] + d[None, :], mask=here[:, None], other=0.0)


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
def _attend(
    q,
    keys,
    values,
    fresh_k,
    fresh_v,
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
    q_stride,
    fresh_stride,
    cache_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    SPLITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ROTATE: tl.constexpr,
    CONTEXT: tl.constexpr,
):
    """One part of the keys against the queries of one key head.

    Parts 0 .. SPLITS-1 share the committed rows, which every query sees; the last part is the tree
    itself, under its mask. With ROTATE queries and fresh keys come unrotated from the projection,
    and the fresh keys and values are written to the cache here; otherwise they lie there.
    """
    split, head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    D: tl.constexpr = 2 * HALF
    length = tl.load(length_at).to(tl.int32)
    m = tile * BM + tl.arange(0, BM)
    node = m // GROUP
    own = head * GROUP + m % GROUP  # query head
    here = node < nodes
    qa = _load_half(q, node * q_stride + own * D, here, 0, HALF)
    qb = _load_half(q, node * q_stride + own * D, here, 1, HALF)
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
            blocks = tl.cdiv(length, BN)
            chunk = tl.cdiv(blocks, SPLITS) * BN
            first = split * chunk
            last = tl.minimum(first + chunk, length)
            for start in range(first, last, BN):
                j = start + tl.arange(0, BN)
                live = j < last
                ka = _load_half(past_k, j * D, live, 0, HALF)
                kb = _load_half(past_k, j * D, live, 1, HALF)
                v = tl.load(past_v + j[:, None] * D + d[None, :], mask=live[:, None], other=0.0)
                score = tl.dot(qa, tl.trans(ka), input_precision="ieee")
                score = tl.dot(qb, tl.trans(kb), score, input_precision="ieee") * scale
                score = tl.where(live[None, :], score, -float("inf"))
                top = tl.maximum(peak, tl.max(score, axis=1))
                p = tl.exp(score - top[:, None])
                fade = tl.exp(peak - top)
                weight = weight * fade + tl.sum(p, axis=1)
                acc = acc * fade[:, None]
                acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
                peak = top
    else:
        for start in range(0, fresh, BN):
            j = start + tl.arange(0, BN)
            live = j < fresh
            row = (length + j) * D
            if ROTATE:
                base = j * fresh_stride + head * D
                ka = _load_half(fresh_k, base, live, 0, HALF)
                kb = _load_half(fresh_k, base, live, 1, HALF)
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
            score = tl.dot(qa, tl.trans(ka), input_precision="ieee")
            score = tl.dot(qb, tl.trans(kb), score, input_precision="ieee") * scale
            score = tl.where(seen != 0, score, -float("inf"))
            top = tl.maximum(peak, tl.max(score, axis=1))
            calm = tl.where(top == -float("inf"), 0.0, top)  # nothing seen yet
            p = tl.exp(score - calm[:, None])
            fade = tl.exp(peak - calm)
            weight = weight * fade + tl.sum(p, axis=1)
            acc = acc * fade[:, None]
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
            peak = top
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
    rows,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """The parts' softmaxes as one; a row is one query head of one node."""
    row = tl.program_id(0)
    s = tl.arange(0, SLOTS)
    d = tl.arange(0, D)
    real = s < PARTS
    peak = tl.load(peaks + s * rows + row, mask=real, other=-float("inf"))
    weight = tl.load(sums + s * rows + row, mask=real, other=0.0)
    fade = tl.exp(peak - tl.max(peak, axis=0))
    parts = tl.load(
        partial + (s * rows + row)[:, None] * D + d[None, :], mask=real[:, None], other=0.0
    )
    mixed = tl.sum(parts * fade[:, None], axis=0) / tl.sum(weight * fade, axis=0)
    tl.store(out + row * D + d, mixed.to(out.dtype.element_ty))


@triton.jit
def _top(logits, index, value, V: tl.constexpr, SLOTS: tl.constexpr, COUNT: tl.constexpr):
    """The COUNT largest of a row, the lower index first among equals."""
    row = tl.program_id(0)
    j = tl.arange(0, SLOTS)
    left = tl.load(logits + row * V + j, mask=j < V, other=-float("inf")).to(tl.float32)
    for k in tl.static_range(COUNT):
        best = tl.max(left, axis=0)
        at = tl.min(tl.where(left == best, j, SLOTS), axis=0)
        tl.store(index + row * COUNT + k, at.to(tl.int64))
        tl.store(value + row * COUNT + k, best)
        left = tl.where(j == at, -float("inf"), left)


def vector(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    eps: float,
    residual: Tensor | None,
    gated: bool,
) -> Tensor:
    k = x.shape[1]
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty(1, n, dtype=x.dtype, device=x.device)
    bn, bk, warps = _vector_tile(n, k, gated)
    _vector[(triton.cdiv(n, bn),)](
        x,
        weight,
        x if norm is None else norm,
        x if residual is None else residual,
        out,
        eps,
        N=n,
        K=k,
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        GATED=gated,
        BN=bn,
        BK=bk,
        num_warps=warps,
    )
    return out


def _vector_tile(n: int, k: int, gated: bool) -> tuple[int, int, int]:
    """(weight rows, columns at a time, warps) of a program, from a sweep on an H200."""
    bk = min(triton.next_power_of_2(k), 4096)
    if bk <= 1024:
        return (2 if gated else 4), bk, 4
    if bk <= 2048:
        return 2, bk, 8
    return (4, bk, 8) if gated else (2, bk, 4) if n > 4096 else (1, bk, 4)


def gated(x: Tensor, weight: Tensor) -> Tensor:
    m, n = x.shape[0], weight.shape[0] // 2
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    both = torch.mm(x, weight.t())
    _gate[(triton.cdiv(n, 1024), m)](both, out, N=n, BN=1024, num_warps=4)
    return out


def parts(x: Tensor, weight: Tensor) -> Tensor:
    m, k, n = *x.shape, weight.shape[0]
    if m > 64 or n > 1024 or not 1024 < k <= 4096:
        return torch.mm(x, weight.t())[None]
    # Long and narrow: the library's kernels leave most of the chip idle.
    bm, bn, bk = (16 if m <= 16 else 32), 32, 256
    grid = (triton.cdiv(n, bn), triton.cdiv(m, bm), triton.cdiv(k, bk))
    out = torch.empty(grid[2], m, n, dtype=torch.float32, device=x.device)
    _matrix[grid](x, weight, out, m, N=n, K=k, BM=bm, BN=bn, BK=bk, num_warps=4)
    return out


def add_norm(x: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    out = torch.empty_like(x)
    total = x if change is None else torch.empty_like(x)
    _rms_norm[(m,)](
        x,
        x if change is None else change,
        weight,
        total,
        out,
        m,
        eps,
        K=k,
        BK=triton.next_power_of_2(k),
        PARTS=0 if change is None else change.shape[0],
        num_warps=4 if k <= 2048 else 8,
    )
    return total, out


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    visible: Tensor,
    context: bool,
) -> Tensor:
    """Keys and values of the tree lie in the cache behind the committed rows."""
    n, heads, size = q.shape
    return _attention(
        q, q.stride(0), keys, values, q, q, 0, None, None, length, length, visible, heads, context
    ).view(n, heads, size)


def attend_rotated(
    qkv: Tensor,
    heads: int,
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
        qkv, stride, keys, values, fresh_k, fresh_v, stride, cos, sin, depths, length, visible,
        heads, True,
    )  # fmt: skip


def _attention(
    q: Tensor,
    q_stride: int,
    keys: Tensor,
    values: Tensor,
    fresh_k: Tensor,
    fresh_v: Tensor,
    fresh_stride: int,
    cos: Tensor | None,
    sin: Tensor | None,
    depths: Tensor,
    length: Tensor,
    visible: Tensor,
    heads: int,
    context: bool,
) -> Tensor:
    nodes, fresh = visible.shape
    kv_heads, _, size = keys.shape
    group = heads // kv_heads
    queries = nodes * group
    bm, bn, splits, warps, stages = _attention_tile(queries, kv_heads, size, q.element_size())
    splits = splits if context else 1
    tiles = triton.cdiv(queries, bm)
    options = {"dtype": torch.float32, "device": q.device}
    partial = torch.empty(splits + 1, nodes * heads, size, **options)  # type: ignore[call-overload]
    peaks, sums = (torch.empty(splits + 1, nodes * heads, **options) for _ in range(2))  # type: ignore[call-overload]
    _attend[(splits + 1, kv_heads, tiles)](
        q,
        keys,
        values,
        fresh_k,
        fresh_v,
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
        size**-0.5,
        q_stride,
        fresh_stride,
        keys.stride(0),
        HEADS=heads,
        GROUP=group,
        HALF=size // 2,
        SPLITS=splits,
        BM=bm,
        BN=bn,
        ROTATE=cos is not None,
        CONTEXT=context,
        num_warps=warps,
        num_stages=stages,
    )
    out = torch.empty(nodes, heads * size, dtype=q.dtype, device=q.device)
    _combine[(nodes * heads,)](
        partial,
        peaks,
        sums,
        out,
        nodes * heads,
        D=size,
        PARTS=splits + 1,
        SLOTS=triton.next_power_of_2(splits + 1),
        num_warps=1,
    )
    return out


def _attention_tile(
    queries: int, kv_heads: int, size: int, itemsize: int
) -> tuple[int, int, int, int, int]:
    """(queries, keys, parts of the context, warps, stages) of a program: enough programs to fill
    the chip, no more parts than help at a few hundred rows."""
    bm = 16 if queries <= 16 else 32 if queries <= 32 else 64
    programs = kv_heads * triton.cdiv(queries, bm) * max(bm // 32, 1)
    splits = min(max(256 // programs, 1), 32)
    splits = 1 << (splits.bit_length() - 1)
    return bm, 32, splits, 4, 3 if size * itemsize <= 256 else 2


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    n, v = logits.shape
    index = torch.empty(n, count, dtype=torch.long, device=logits.device)
    value = torch.empty(n, count, dtype=torch.float32, device=logits.device)
    slots = triton.next_power_of_2(v)
    _top[(n,)](logits, index, value, V=v, SLOTS=slots, COUNT=count, num_warps=16)
    return value, index
