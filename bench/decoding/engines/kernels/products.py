"""Products of one row by any matrix and of a few rows by small ones; norms and activations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.decoding.engines import shapes
from bench.decoding.engines.kernels import tiles
from bench.decoding.engines.kernels.common import chained, finish, follow, rounded, swiglu
from bench.decoding.engines.kernels.stream import stream


@triton.jit
def _columns(base, rows, inside, start, K: tl.constexpr, BK: tl.constexpr):
    """[rows, BK] of a matrix [.., K] from column `start` on."""
    k = start + tl.arange(0, BK)
    return tl.load(base + rows + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def _entries(base, start, K: tl.constexpr, BK: tl.constexpr):
    """[BK] of a vector [K] from `start` on, in float32."""
    k = start + tl.arange(0, BK)
    return tl.load(base + k, mask=k < K, other=0.0).to(tl.float32)


@triton.jit
def _vector(
    x,
    weight,
    norm,
    bias,
    residual,
    scale,
    shift,
    out,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    AFFINE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    REST: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One row: out[n] = sum_k norm(x)[k] weight[n, k], BN weight rows a program, read once: BK
    columns at a time and REST of what is left, all in flight before the kernel before has ended."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = n < N
    rows = n.to(tl.int64)[:, None] * K
    WHOLE: tl.constexpr = K // BK
    tiles, gates, scales = (), (), ()
    for p in tl.static_range(WHOLE):
        tiles = tiles + (_columns(weight, rows, inside, p * BK, K, BK),)
        if GATED:
            gates = gates + (_columns(weight + N * K, rows, inside, p * BK, K, BK),)
        if NORM:
            scales = scales + (_entries(norm, p * BK, K, BK),)
    if REST:
        tiles = tiles + (_columns(weight, rows, inside, WHOLE * BK, K, REST),)
        if GATED:
            gates = gates + (_columns(weight + N * K, rows, inside, WHOLE * BK, K, REST),)
        if NORM:
            scales = scales + (_entries(norm, WHOLE * BK, K, REST),)
    total = tl.zeros((BN,), tl.float32)
    other = tl.zeros((BN,), tl.float32)
    squares = 0.0
    follow(CHAINED)
    added = total.to(out.dtype.element_ty)
    if RESIDUAL:
        added = tl.load(residual + n, mask=inside, other=0.0)
    pieces = ()
    for p in tl.static_range(WHOLE):
        pieces = pieces + (_entries(x, p * BK, K, BK),)
    if REST:
        pieces = pieces + (_entries(x, WHOLE * BK, K, REST),)
    for p in tl.static_range(WHOLE + (REST > 0)):
        piece = pieces[p]
        if NORM:
            squares += tl.sum(piece * piece, axis=0)
            piece *= scales[p]
        total += tl.sum(tiles[p].to(tl.float32) * piece[None, :], axis=1)
        if GATED:
            other += tl.sum(gates[p].to(tl.float32) * piece[None, :], axis=1)
    if NORM:
        inverse = tl.rsqrt(squares / K + eps)
        total *= inverse
        other *= inverse
    if GATED:  # the first half of the weights is the gate
        total = swiglu(total, other, out)
    total = total[None, :]
    added = added[None, :]
    total = finish(total, n, inside, added, bias, scale, shift, out, BIAS, SILU, RESIDUAL, AFFINE)
    tl.store((out + n)[None, :], total.to(out.dtype.element_ty), mask=inside[None, :])


@triton.jit
def _piece(base, row, inside, start, K: tl.constexpr, PARTS: tl.constexpr, BK: tl.constexpr):
    """[PARTS, rows, BK] of a matrix [.., K]: its columns from `start` on, dealt to the parts."""
    k = start + tl.arange(0, PARTS)[:, None, None] * BK + tl.arange(0, BK)[None, None, :]
    mask = inside[None, :, None] & (k < K)
    return tl.load(base + row[None, :, None] * K + k, mask=mask, other=0.0)


@triton.jit
def _scale(norm, start, K: tl.constexpr, PARTS: tl.constexpr, BK: tl.constexpr):
    """[PARTS, 1, BK] of a norm's weight."""
    k = start + tl.arange(0, PARTS)[:, None, None] * BK + tl.arange(0, BK)[None, None, :]
    return tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)


@triton.jit
def _linear(
    x,
    weight,
    norm,
    bias,
    residual,
    scale,
    shift,
    out,
    eps,
    rows,
    residual_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    AFFINE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PARTS: tl.constexpr,
    BK: tl.constexpr,
    REST: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A few rows by a small matrix: BM rows and BN outputs a program. K is dealt to PARTS groups of
    warps, BK columns at a time and REST of what is left, and all loads are in flight at once, those
    of the weights before the kernel before has ended."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    inside, here = n < N, m < rows
    STEP: tl.constexpr = PARTS * BK
    WHOLE: tl.constexpr = K // STEP
    tiles, gates, scales = (), (), ()
    for p in tl.static_range(WHOLE):
        tiles = tiles + (_piece(weight, n, inside, p * STEP, K, PARTS, BK),)
        if GATED:
            gates = gates + (_piece(weight + N * K, n, inside, p * STEP, K, PARTS, BK),)
        if NORM:
            scales = scales + (_scale(norm, p * STEP, K, PARTS, BK),)
    if REST:
        tiles = tiles + (_piece(weight, n, inside, WHOLE * STEP, K, PARTS, REST),)
        if GATED:
            gates = gates + (_piece(weight + N * K, n, inside, WHOLE * STEP, K, PARTS, REST),)
        if NORM:
            scales = scales + (_scale(norm, WHOLE * STEP, K, PARTS, REST),)
    follow(CHAINED)
    pieces = ()
    for p in tl.static_range(WHOLE):
        pieces = pieces + (_piece(x, m, here, p * STEP, K, PARTS, BK),)
    if REST:
        pieces = pieces + (_piece(x, m, here, WHOLE * STEP, K, PARTS, REST),)
    place = m[:, None] * N + n[None, :]
    mask = here[:, None] & inside[None, :]
    added = 0.0
    if RESIDUAL:
        added = tl.load(residual + m[:, None] * residual_stride + n[None, :], mask=mask, other=0.0)
    sums = tl.zeros((PARTS, BM, BN), tl.float32)
    other = tl.zeros((PARTS, BM, BN), tl.float32)
    squares = tl.zeros((PARTS, BM), tl.float32)
    for p in tl.static_range(WHOLE + (REST > 0)):
        piece = pieces[p]
        if NORM:
            wide = piece.to(tl.float32)
            squares += tl.sum(wide * wide, axis=2)
            piece = (wide * scales[p]).to(piece.dtype)
        sums = tl.dot(piece, tl.permute(tiles[p], (0, 2, 1)), sums, input_precision="ieee")
        if GATED:
            # the first half of the weights is the gate
            other = tl.dot(piece, tl.permute(gates[p], (0, 2, 1)), other, input_precision="ieee")
    total = tl.sum(sums, axis=0)
    second = tl.sum(other, axis=0)
    if NORM:
        inverse = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)[:, None]
        total *= inverse
        second *= inverse
    if GATED:
        total = swiglu(total, second, out)
    total = finish(total, n, inside, added, bias, scale, shift, out, BIAS, SILU, RESIDUAL, AFFINE)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


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
    CHAINED: tl.constexpr,
):
    """A row a program, of x and what PARTS sums add to it; their total is stored too."""
    row = tl.program_id(0)
    k = tl.arange(0, BK)
    inside = k < K
    scale = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    follow(CHAINED)
    value = tl.load(x + row * K + k, mask=inside, other=0.0).to(tl.float32)
    if PARTS:
        added = tl.zeros((BK,), tl.float32)
        for part in tl.static_range(PARTS):
            place = change + (part * rows + row) * K + k
            added += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        value = rounded(value + rounded(added, out), out)
        tl.store(total + row * K + k, value.to(out.dtype.element_ty), mask=inside)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / K + eps)
    tl.store(out + row * K + k, (value * inverse * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate(both, out, N: tl.constexpr, BN: tl.constexpr, CHAINED: tl.constexpr):
    """SiLU of a row's first N times its second N."""
    follow(CHAINED)
    row = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    gate = tl.load(both + row * 2 * N + n, mask=n < N, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * N + N + n, mask=n < N, other=0.0).to(tl.float32)
    total = swiglu(gate, up, out)
    tl.store(out + row * N + n, total.to(out.dtype.element_ty), mask=n < N)


def linear(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    eps: float,
    halves: bool,
    bias: Tensor | None,
    silu: bool,
    residual: Tensor | None,
    affine: tuple[Tensor, Tensor] | None,
    fixed: bool = False,
) -> Tensor:
    m, k = x.shape
    n = weight.shape[0] // 2 if halves else weight.shape[0]
    whole = shapes.whole_tile(x.itemsize, weight) if fixed else shapes.whole(m, weight)
    if not whole:
        if norm is not None:
            _, x = add_norm(x, None, norm, eps)
        return stream(x, weight, halves, bias, silu, residual, affine, fixed=fixed)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    added = x if residual is None else residual
    scale, shift = affine if affine is not None else (x, x)
    arguments = (
        x, weight, x if norm is None else norm, x if bias is None else bias, added, scale, shift,
        out, eps,
    )  # fmt: skip
    options: dict[str, object] = {
        "N": n,
        "K": k,
        "NORM": norm is not None,
        "GATED": halves,
        "BIAS": bias is not None,
        "SILU": silu,
        "RESIDUAL": residual is not None,
        "AFFINE": affine is not None,
        **chained(x),
    }
    if m == 1 and not fixed:
        bn, bk, warps = tiles.row(n, k, halves)
        rest = tiles.rest(k, bk)
        _vector[(triton.cdiv(n, bn),)](
            *arguments, BN=bn, BK=bk, REST=rest, num_warps=warps, **options
        )
        return out
    bm, bn, parts, bk, warps = tiles.few(shapes.TILE if fixed else m, n, k, halves)
    _linear[(triton.cdiv(n, bn), triton.cdiv(m, bm))](
        *arguments,
        m,
        0 if added.shape[0] == 1 else added.stride(0),
        BM=bm,
        BN=bn,
        PARTS=parts,
        BK=bk,
        REST=tiles.rest(k, bk, parts),
        num_warps=warps,
        num_stages=1,
        **options,
    )
    return out


def gated(x: Tensor, weight: Tensor) -> Tensor:
    m, n = x.shape[0], weight.shape[0] // 2
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    both = torch.mm(x, weight.t())
    _gate[(triton.cdiv(n, 1024), m)](both, out, N=n, BN=1024, num_warps=4, **chained(x))
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
        **chained(x),
    )
    return total, out
