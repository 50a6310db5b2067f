"""What stands between forwards and drafts: tokens, their embeddings, rows of the cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.decoding.engines.kernels.common import chained, follow, rounded


@triton.jit
def _statistics(mean, scale, D: tl.constexpr, BD: tl.constexpr):
    """([D], [D]) of what embeddings are standardised by."""
    d = tl.arange(0, BD)
    shift = tl.load(mean + d, mask=d < D, other=0.0).to(tl.float32)
    return shift, tl.load(scale + d, mask=d < D, other=1.0).to(tl.float32)


@triton.jit
def _embed_one(
    token, weight, shift, factor, out, D: tl.constexpr, BD: tl.constexpr, STANDARD: tl.constexpr
):
    """One token's embedding, standardised if asked, to `out`."""
    d = tl.arange(0, BD)
    x = tl.load(weight + token * D + d, mask=d < D, other=0.0)
    if STANDARD:
        x = tl.div_rn(rounded(x.to(tl.float32) - shift, out), factor)
    tl.store(out + d, x.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def _embed(
    tokens,
    weight,
    mean,
    scale,
    out,
    D: tl.constexpr,
    BD: tl.constexpr,
    STANDARD: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A token a program."""
    shift, factor = 0.0, 1.0
    if STANDARD:
        shift, factor = _statistics(mean, scale, D, BD)
    follow(CHAINED)
    i = tl.program_id(0)
    _embed_one(tl.load(tokens + i), weight, shift, factor, out + i * D, D, BD, STANDARD)


@triton.jit
def _sprout(
    above,
    best,
    parent,
    rank,
    place,
    vocabulary,
    weight,
    mean,
    scale,
    nodes,
    trigrams,
    x,
    RANKS: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Token j of node i's trigram, and its embedding where the node is expanded next."""
    i, j = tl.program_id(0), tl.program_id(1)
    source, order, goal = tl.load(parent + i), tl.load(rank + i), tl.load(place + i)
    shift, factor = _statistics(mean, scale, D, BD)
    follow(CHAINED)
    if j < 2:
        token = tl.load(above + source * 3 + j + 1)
    else:
        token = tl.load(vocabulary + tl.load(best + source * RANKS + order))
    tl.store(nodes + i * 3 + j, token)
    if goal >= 0:
        at = goal * 3 + j
        tl.store(trigrams + at, token)
        _embed_one(token, weight, shift, factor, x + at * D, D, BD, True)


@triton.jit
def _move(
    rows,
    length_at,
    path,
    accepted_at,
    stride,
    HEIGHT: tl.constexpr,
    BH: tl.constexpr,
    D: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One block of rows, all of which are read before any is written."""
    follow(CHAINED)
    accepted = tl.load(accepted_at)
    first = tl.load(length_at) - accepted - 1
    i = 1 + tl.arange(0, BH)
    moved = i <= tl.minimum(accepted, HEIGHT)
    d = tl.arange(0, D)
    base = rows + tl.program_id(0).to(tl.int64) * stride
    source = first + tl.load(path + i, mask=moved, other=0)
    kept = tl.load(base + source[:, None] * D + d[None, :], mask=moved[:, None], other=0.0)
    tl.debug_barrier()
    tl.store(base + (first + i)[:, None] * D + d[None, :], kept, mask=moved[:, None])


def embed(tokens: Tensor, weight: Tensor, standard: tuple[Tensor, Tensor] | None) -> Tensor:
    (n,), d = tokens.shape, weight.shape[1]
    out = torch.empty(n, d, dtype=weight.dtype, device=weight.device)
    arguments = (tokens, weight, *(standard or (weight, weight)), out)
    given = {"D": d, "BD": triton.next_power_of_2(d), "STANDARD": standard is not None}
    _embed[(n,)](*arguments, num_warps=4, **given, **chained(weight))
    return out


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
    m, d = parent.shape[0], weight.shape[1]
    nodes, trigrams = above.new_empty(m, 3), above.new_empty(expanded, 3)
    x = torch.empty(expanded, 3 * d, dtype=weight.dtype, device=weight.device)
    arguments = (above, best, parent, rank, place, vocabulary, weight, *standard)
    shape = {"RANKS": best.shape[1], "D": d, "BD": triton.next_power_of_2(d)}
    _sprout[(m, 3)](*arguments, nodes, trigrams, x, num_warps=4, **shape, **chained(weight))
    return nodes, trigrams, x


def move(rows: Tensor, length: Tensor, path: Tensor, accepted: Tensor, height: int) -> None:
    live, size = rows.shape[-2:]
    block = triton.next_power_of_2(height)
    _move[(rows.numel() // (live * size),)](
        rows,
        length,
        path,
        accepted,
        live * size,
        HEIGHT=height,
        BH=block,
        D=size,
        num_warps=1 if block * size <= 1024 else 4,
        **chained(rows),
    )
