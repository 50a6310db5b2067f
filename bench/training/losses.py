"""Losses of draft training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 4096  # rows whose logits are in memory at a time


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy after a frozen LM head. Its gradient is computed chunk by chunk in the forward,
    so that no [n, V'] tensor outlives its chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        head: Tensor,
        weights: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        total = torch.zeros((), device=z.device)
        gradient = torch.empty_like(z)
        for start in range(0, z.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            log_q = (z[rows] @ head.T).float().log_softmax(dim=-1)
            weight = weights[rows, None]
            if teacher is not None:
                p = (teacher[rows] @ head.T).float().softmax(dim=-1)
            else:
                assert labels is not None
                p = F.one_hot(labels[rows], head.shape[0]).float()
            total -= (p * log_q * weight).sum()
            gradient[rows] = (((log_q.exp() - p) * weight).to(head.dtype) @ head).to(z.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None


def next_token_loss(
    z: Tensor,
    head: Tensor,
    weights: Tensor,
    teacher: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """sum_i w_i CE(p_i, softmax(head z_i)).

    Args:
        z: [n, d], the draft's inputs to the head.
        head: [V', d], frozen.
        weights: float [n].
        teacher: [n, d], the target's own h: p is its softmax through the same head, so that the
            gradient is that of KL(p || q).
        labels: int64 [n]: p is the true token.
    """
    rows = z.to(head.dtype)
    loss: Tensor = _HeadLoss.apply(rows, head, weights, teacher, labels)  # type: ignore[no-untyped-call]
    return loss


def distillation_loss(o: Tensor, h: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i smooth-L1(o_i, h_i) of o and h [n, d], averaged over the dimensions."""
    distance = F.smooth_l1_loss(o.float(), h.float(), reduction="none").mean(dim=-1)
    return (distance * weights).sum()
