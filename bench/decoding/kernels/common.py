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
