"""The largest logits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.decoding.engines.kernels.common import chained, follow

SLICE = 4096  # logits a program


@triton.jit
def _slice_top(
    logits,
    index,
    value,
    peaks,
    sums,
    V: tl.constexpr,
    COUNT: tl.constexpr,
    SLICE: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The COUNT largest of a slice of a row, best first, the lower index first among equals; the
    slice's largest and its sum of exponentials over that."""
    follow(CHAINED)
    part, row = tl.program_id(0), tl.program_id(1)
    parts = tl.num_programs(0)
    j = part * SLICE + tl.arange(0, SLICE)
    left = tl.load(logits + row * V + j, mask=j < V, other=-float("inf")).to(tl.float32)
    peak = tl.max(left, axis=0)
    tl.store(peaks + row * parts + part, peak)
    tl.store(sums + row * parts + part, tl.sum(tl.exp(left - peak), axis=0))
    place = (row * parts + part) * COUNT
    for k in tl.static_range(COUNT):
        best = tl.max(left, axis=0)
        at = tl.min(tl.where(left == best, j, V), axis=0)
        tl.store(index + place + k, at)
        tl.store(value + place + k, best)
        left = tl.where(j == at, -float("inf"), left)


@triton.jit
def _merge_top(
    from_index,
    from_value,
    peaks,
    sums,
    index,
    value,
    total,
    PARTS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The slices' best as one row's."""
    follow(CHAINED)
    row = tl.program_id(0)
    s = tl.arange(0, SLOTS)
    p = tl.arange(0, WIDTH)
    FOUND: tl.constexpr = PARTS * COUNT
    left = tl.load(from_value + row * FOUND + s, mask=s < FOUND, other=-float("inf"))
    ids = tl.load(from_index + row * FOUND + s, mask=s < FOUND, other=0)
    peak = tl.load(peaks + row * PARTS + p, mask=p < PARTS, other=-float("inf"))
    mass = tl.load(sums + row * PARTS + p, mask=p < PARTS, other=0.0)
    top = tl.max(peak, axis=0)
    tl.store(total + row, top + tl.log(tl.sum(mass * tl.exp(peak - top), axis=0)))
    for k in tl.static_range(COUNT):
        best = tl.max(left, axis=0)
        at = tl.min(tl.where(left == best, s, SLOTS), axis=0)  # slices are in order of index
        tl.store(index + row * COUNT + k, tl.sum(tl.where(s == at, ids, 0), axis=0).to(tl.int64))
        tl.store(value + row * COUNT + k, best)
        left = tl.where(s == at, -float("inf"), left)


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    n, v = logits.shape
    width = min(triton.next_power_of_2(v), SLICE)
    parts = triton.cdiv(v, width)
    device = logits.device
    found = torch.empty(2, n, parts, count, dtype=torch.int32, device=device)
    values = found[1].view(torch.float32)
    peaks, sums = torch.empty(2, n, parts, dtype=torch.float32, device=device)
    options = {"COUNT": count, **chained(logits)}
    _slice_top[(parts, n)](
        logits, found[0], values, peaks, sums, V=v, SLICE=width, num_warps=4, **options
    )
    index = torch.empty(n, count, dtype=torch.long, device=device)
    value = torch.empty(n, count, dtype=torch.float32, device=device)
    total = torch.empty(n, dtype=torch.float32, device=device)
    slots = {"WIDTH": triton.next_power_of_2(parts), "SLOTS": triton.next_power_of_2(parts * count)}
    _merge_top[(n,)](
        found[0], values, peaks, sums, index, value, total, PARTS=parts, num_warps=1, **slots,
        **options,
    )  # fmt: skip
    return value, index, total
