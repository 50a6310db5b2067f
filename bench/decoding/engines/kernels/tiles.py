"""Tiles of the products and of attention, by shape, from sweeps on an H200 (`benchmarks/forms.py`
sweeps them again). Shapes: x [m, k] by weight [n, k]; gated: n outputs of 2n rows."""

from __future__ import annotations

from typing import NamedTuple

import triton


class RowTile(NamedTuple):
    """Of a product of one row."""

    outputs: int  # weight rows of a program
    columns: int  # at a time; all are in flight at once
    warps: int


class FewTile(NamedTuple):
    """Of a product of a few rows by a small matrix."""

    rows: int
    outputs: int
    parts: int  # groups of warps that K is dealt to
    columns: int  # of a part at a time; all are in flight at once
    warps: int


class StreamTile(NamedTuple):
    """Of a product of a few rows by a large matrix."""

    outputs: int  # rows of the weight, gates counted
    columns: int
    parts: int  # programs that share K
    stages: int
    warps: int


class AttentionTile(NamedTuple):
    """Of attention to a long cache."""

    queries: int
    keys: int
    parts: int  # of the context at most
    least: int  # rows of a part
    warps: int
    stages: int


def rest(k: int, columns: int, parts: int = 1) -> int:
    """Columns of a part's last piece where `columns` at a time do not divide K evenly, or 0."""
    left = k % (parts * columns)
    return max(triton.next_power_of_2(triton.cdiv(left, parts)), 16) if left else 0


def row(n: int, k: int, gated: bool) -> RowTile:
    columns = min(triton.next_power_of_2(k), 4096)
    if columns <= 1024:
        return RowTile(2 if gated else 4, columns, 4)
    if columns <= 2048:
        return RowTile(4, 1024, 4) if k < columns <= n else RowTile(2, columns, 8)
    if gated:
        return RowTile(4, columns, 8)
    if n > 4096:
        return RowTile(2, columns, 4)
    return RowTile(1, columns, 8 if k % columns else 4)


def few(m: int, n: int, k: int, gated: bool) -> FewTile:
    """Rows are a matter of programs, so that more of them cost little."""
    long = k > 1024
    if m > 32:
        outputs = 16 if gated and not long else 32
        return FewTile(16, outputs, 4 if long else 2, 128, 4 if long else 2)
    parts = 4 if long or gated or n * k > 2**19 else 2
    return FewTile(16, 16, parts, 128, parts)


def stream(m: int, n: int, k: int, gated: bool, split: bool) -> StreamTile:
    """Some 50 KB of weights in flight on every multiprocessor: few outputs need more parts."""
    if split and n < 2048:
        return StreamTile(64, 128, 8, 4 if m <= 32 else 3, 4)
    if split:
        return StreamTile(64, 128, 4 if m <= 32 else 2, 4, 4)
    if m <= 32 or (n * k < 2**23 if gated else k <= 2560):
        return StreamTile(64, 128, 1, 3, 4)
    if gated:
        return StreamTile(64, 64, 1, 4, 4) if n * k < 2**26 else StreamTile(128, 64, 1, 3, 4)
    return StreamTile(128, 128, 1, 3, 4)


def attention(queries: int, kv_heads: int, size: int, itemsize: int) -> AttentionTile:
    """Enough programs to fill the chip, no more parts than help at a few hundred rows."""
    m = 16 if queries <= 16 else 32 if queries <= 32 else 64
    keys = 64 if m == 64 and size <= 64 else 32
    programs = kv_heads * triton.cdiv(queries, m) * max(m // 32, 1)
    parts: int = 1 << (min(max(288 // programs, 1), 32).bit_length() - 1)
    parts -= parts > 8  # many parts and the tree's are a power of two
    return AttentionTile(m, keys, parts, keys, 4, 3 if size * itemsize <= 256 else 2)
