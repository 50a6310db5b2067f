"""What all kernels share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rounded(x, like):
    """To the precision of `like` and back: rounded where torch rounds."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def swiglu(gate, up, like):
    gate = rounded(gate, like)
    return rounded(gate / (1.0 + tl.exp(-gate)), like) * rounded(up, like)


@triton.jit
def follow(CHAINED: tl.constexpr):
    """Until here only constants are read: the kernel before may still run. Every kernel calls this,
    so that one that has ended vouches for all before it."""
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


def chained(x: Tensor) -> dict[str, bool]:
    """Options of a launch on x's device."""
    able = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return {"CHAINED": True, "launch_pdl": True} if able else {"CHAINED": False}


@triton.jit
def finish(
    total,
    n,
    inside,
    added,
    bias,
    scale,
    shift,
    like,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    AFFINE: tl.constexpr,
):
    """What follows a product's `total` [rows, outputs n], as `ops.linear` says; `added` is the
    residual."""
    if BIAS:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total = rounded(total, like)
        total = total / (1.0 + tl.exp(-total))
    if RESIDUAL:
        total = rounded(total, like) + added.to(tl.float32)
    if AFFINE:
        total *= tl.load(scale + n, mask=inside, other=0.0).to(tl.float32)[None, :]
        total += tl.load(shift + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    return total
