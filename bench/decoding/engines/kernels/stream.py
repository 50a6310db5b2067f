"""Products of up to 64 rows by large weights, which are read once, tile by tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.decoding.engines import shapes
from bench.decoding.engines.kernels import tiles
from bench.decoding.engines.kernels.common import chained, finish, follow, swiglu


@triton.jit
def _stream(
    x,
    weight,
    bias,
    residual,
    scale,
    shift,
    out,
    rows,
    residual_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    AFFINE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """BM rows by BN rows of the weight, over one of SPLIT parts of K, as weight x^T: the weight is
    the tensor cores' large operand. Each part leaves a sum of its own. GATED: BN / 2 gates and
    what they gate, in one tile. Tiles of rows that share a tile of the weight run together."""
    WIDE: tl.constexpr = BN // (1 + GATED)  # outputs of this program
    j = tl.arange(0, BN)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * WIDE + j % WIDE
    inside, here = n < N, m < rows
    part = tl.program_id(2)
    PART: tl.constexpr = ((K + SPLIT * BK - 1) // (SPLIT * BK)) * BK
    first = part * PART
    last = tl.minimum(first + PART, K)
    k = tl.arange(0, BK)
    tiles = weight + (n + (j // WIDE) * N).to(tl.int64)[:, None] * K + k[None, :]
    pieces = x + m[None, :] * K + k[:, None]
    total = tl.zeros((BN, BM), tl.float32)
    follow(CHAINED)
    for start in tl.range(first, last, BK, num_stages=STAGES):
        if K % (SPLIT * BK) == 0:
            tile = tl.load(
                tiles + start, mask=inside[:, None], other=0.0, eviction_policy="evict_first"
            )
            piece = tl.load(pieces + start, mask=here[None, :], other=0.0)
        else:
            within = start + k < last
            tile = tl.load(
                tiles + start,
                mask=inside[:, None] & within[None, :],
                other=0.0,
                eviction_policy="evict_first",
            )
            piece = tl.load(pieces + start, mask=within[:, None] & here[None, :], other=0.0)
        total = tl.dot(tile, piece, total, input_precision="ieee")
    if GATED:
        halves = tl.permute(tl.reshape(total, (2, WIDE, BM)), (1, 2, 0))
        gate, up = tl.split(halves)
        total = swiglu(gate, up, out)
    n = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = n < N
    mask = here[:, None] & inside[None, :]
    added = 0.0
    if RESIDUAL:
        added = tl.load(residual + m[:, None] * residual_stride + n[None, :], mask=mask, other=0.0)
    total = finish(
        tl.trans(total), n, inside, added, bias, scale, shift, out, BIAS, SILU, RESIDUAL, AFFINE
    )
    at = out + (part * rows + m[:, None]).to(tl.int64) * N + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


def stream(
    x: Tensor,
    weight: Tensor,
    halves: bool = False,
    bias: Tensor | None = None,
    silu: bool = False,
    residual: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
    split: bool = False,
    fixed: bool = False,
) -> Tensor:
    """As `ops.linear`, [w, N]; with `split` as `ops.parts`, [P, w, N] in float32."""
    m, k = x.shape
    n = weight.shape[0] // 2 if halves else weight.shape[0]
    bm = max(triton.next_power_of_2(m), 16)
    if fixed:  # rows are columns of the product: how many there are changes no sum over K
        bm = min(bm, shapes.FEW)
    bn, bk, parts, stages, warps = tiles.stream(shapes.TILE if fixed else bm, n, k, halves, split)
    shape = (parts, m, n) if split else (m, n)
    out = torch.empty(shape, dtype=torch.float32 if split else x.dtype, device=x.device)
    added = x if residual is None else residual
    scale, shift = affine if affine is not None else (x, x)
    _stream[(triton.cdiv(m, bm), triton.cdiv(n, bn // (1 + halves)), parts)](
        x,
        weight,
        x if bias is None else bias,
        added,
        scale,
        shift,
        out,
        m,
        0 if added.shape[0] == 1 else added.stride(0),
        N=n,
        K=k,
        GATED=halves,
        BIAS=bias is not None,
        SILU=silu,
        RESIDUAL=residual is not None,
        AFFINE=affine is not None,
        BM=bm,
        BN=bn,
        BK=bk,
        SPLIT=parts,
        STAGES=min(stages, _stages(x, bk * (bn + bm))),
        num_warps=warps,
        **chained(x),
    )
    return out


def _stages(x: Tensor, numbers: int) -> int:
    """How many tiles of so many numbers a multiprocessor of x's device has room for."""
    if not x.is_cuda:
        return 2
    device = torch.cuda.get_device_properties(x.device)
    room: int = device.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return max(room // (numbers * x.itemsize), 1)


def parts(x: Tensor, weight: Tensor, fixed: bool = False) -> Tensor:
    if x.shape[0] > shapes.FEW and not fixed:
        return torch.mm(x, weight.t())[None]
    return stream(x, weight, split=True, fixed=fixed)
