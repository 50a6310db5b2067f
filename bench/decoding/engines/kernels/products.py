"""Products of one row by any matrix and of a few rows by small ones; norms and activations."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.decoding.engines import shapes
from bench.decoding.engines.kernels.common import chained, finish, follow, rounded, swiglu
from bench.decoding.engines.kernels.stream import stream


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
    CHAINED: tl.constexpr,
):
    """One row: out[n] = sum_k norm(x)[k] weight[n, k], BN weight rows a program, read once."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = n < N
    rows = n.to(tl.int64)[:, None] * K
    total = tl.zeros((BN,), tl.float32)
    gate = tl.zeros((BN,), tl.float32)
    added = gate.to(out.dtype.element_ty)
    squares = 0.0
    for start in tl.static_range(0, K, BK):
        k = start + tl.arange(0, BK)
        within = k < K
        mask = inside[:, None] & within[None, :]
        tile = tl.load(weight + rows + k[None, :], mask=mask, other=0.0)
        if GATED:
            other = tl.load(weight + rows + N * K + k[None, :], mask=mask, other=0.0)
        if NORM:
            before = tl.load(norm + k, mask=within, other=0.0).to(tl.float32)
        if start == 0:
            follow(CHAINED)
            if RESIDUAL:
                added = tl.load(residual + n, mask=inside, other=0.0)
        part = tl.load(x + k, mask=within, other=0.0).to(tl.float32)
        if NORM:
            squares += tl.sum(part * part, axis=0)
            part *= before
        if GATED:
            gate += tl.sum(tile.to(tl.float32) * part[None, :], axis=1)
            tile = other
        total += tl.sum(tile.to(tl.float32) * part[None, :], axis=1)
    if NORM:
        inverse = tl.rsqrt(squares / K + eps)
        total *= inverse
        gate *= inverse
    if GATED:
        total = swiglu(gate, total, out)
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
        bn, bk, warps = _vector_tile(n, k, halves)
        _vector[(triton.cdiv(n, bn),)](*arguments, BN=bn, BK=bk, num_warps=warps, **options)
        return out
    bm, bn, parts, bk, warps = _linear_tile(shapes.TILE if fixed else m, n, k, halves)
    rest = k % (parts * bk)
    _linear[(triton.cdiv(n, bn), triton.cdiv(m, bm))](
        *arguments,
        m,
        0 if added.shape[0] == 1 else added.stride(0),
        BM=bm,
        BN=bn,
        PARTS=parts,
        BK=bk,
        REST=max(triton.next_power_of_2(triton.cdiv(rest, parts)), 16) if rest else 0,
        num_warps=warps,
        num_stages=1,
        **options,
    )
    return out


def _vector_tile(n: int, k: int, gated: bool) -> tuple[int, int, int]:
    """(weight rows, columns at a time, warps) of a program, from sweeps on an H200."""
    bk = min(triton.next_power_of_2(k), 4096)
    if bk <= 1024:
        return (2 if gated else 4), bk, 4
    if bk <= 2048:
        return 2, bk, 8
    return (4, bk, 8) if gated else (2, bk, 4) if n > 4096 else (1, bk, 4)


def _linear_tile(m: int, n: int, k: int, gated: bool) -> tuple[int, int, int, int, int]:
    """(rows, outputs, parts of K, columns at a time, warps) of a program, from a sweep on an H200:
    rows are a matter of programs, so that more of them cost little."""
    long = k > 1024
    if m > 32:
        return (16, 32, 4, 128, 4) if long else (16, 16 if gated else 32, 2, 128, 2)
    parts = 4 if long or gated or n * k > 2**19 else 2
    return 16, 16, parts, 128, parts


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
