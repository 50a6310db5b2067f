"""Losses of draft training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = 2**26  # logits in memory at a time
DEPTH_DECAY = 0.9  # weight of a level relative to the level before it
SMOOTHING = 0.5  # a of D-PACE


def decaying(weights: Tensor) -> Tensor:
    """w_j 0.9^(j-1) for weights [n, depth] of the levels j = 1 .. depth."""
    levels = torch.arange(weights.shape[1], device=weights.device)
    return weights * DEPTH_DECAY**levels


def dpace(weights: Tensor, q: Tensor) -> Tensor:
    """D-PACE (arXiv 2605.18810): w_k sum_{j >= k} prod_{i <= j} ((1 - a) q_i + a).

    A level counts by how often drafts reach it and by what follows from it. Levels of weight 0 end
    the product.

    Args:
        weights: float [n, depth].
        q: float [n, depth], the draft's probabilities of the true tokens; without gradient.
    """
    reached = (((1 - SMOOTHING) * q + SMOOTHING) * (weights > 0)).cumprod(dim=1)
    onward: Tensor = reached.flip(1).cumsum(dim=1).flip(1)
    return weights * onward


@dataclass(frozen=True)
class LossSettings:
    """How the levels of a draft are weighted and compared with the target.

    Attributes:
        dpace: weight levels by `dpace`, not by `decaying`.
        tv: share of the total variation distance; the rest is cross-entropy. 1 - TV
            is the probability that speculative sampling accepts a draft.
    """

    dpace: bool = False
    tv: float = 0.0


class _HeadLoss(torch.autograd.Function):
    """The loss after an LM head. Its gradient is computed chunk by chunk in the forward, so that no
    [n, V'] tensor outlives its chunk. `own` is trained, `head` is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        head: Tensor,
        own: Tensor | None,
        weights: Tensor,
        labels: Tensor,
        teacher: Tensor | None,
        settings: LossSettings,
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=z.device)
        gradient, used = torch.empty_like(z), torch.empty_like(weights)
        scored = head if own is None else own
        of_own = None if own is None else torch.zeros_like(own, dtype=torch.float32)
        (n, depth), size = weights.shape, head.shape[0]
        step = max(CELLS // (depth * size), 1)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            log_q = (z[rows] @ scored.T).float().log_softmax(dim=-1)
            q = log_q.exp()
            label = labels[rows, :, None]
            true = q.gather(-1, label.clamp(min=0)).masked_fill(label < 0, 0.0)
            if settings.dpace:
                used[rows] = dpace(weights[rows], true.squeeze(-1))
            else:
                used[rows] = decaying(weights[rows])
            weight = used[rows, :, None]
            if teacher is not None:
                p = (teacher[rows] @ head.T).float().softmax(dim=-1)
            else:
                p = torch.zeros_like(q).scatter_(-1, label.clamp(min=0), (label >= 0).float())
            share = settings.tv
            slope = (1 - share) * (q - p)  # of the loss by the logits
            loss = -(1 - share) * (p * log_q).sum(dim=-1, keepdim=True)
            if share:
                # TV(p, q) = 1 - sum min(p, q); d TV / d logit_v = q_v (g_v - sum_u q_u g_u) with
                # g_v = -[q_v < p_v].
                g = -(q < p).float()
                slope += share * q * (g - (q * g).sum(dim=-1, keepdim=True))
                loss += share * (1 - torch.minimum(p, q).sum(dim=-1, keepdim=True))
            total += (loss * weight).sum()
            slope = (slope * weight).to(head.dtype)
            gradient[rows] = (slope @ scored).to(z.dtype)
            if of_own is not None:
                of_own += slope.flatten(0, 1).T @ z[rows].flatten(0, 1)
        ctx.save_for_backward(gradient, of_own)
        ctx.mark_non_differentiable(used)
        return total, used

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, of_own = ctx.saved_tensors
        of_own = None if of_own is None else of_own * grads[0]
        return gradient * grads[0].to(gradient.dtype), None, of_own, None, None, None, None


def next_token_loss(
    z: Tensor,
    head: Tensor,
    weights: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    settings: LossSettings,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum_ij w_ij [(1 - tv) CE(p, q) + tv TV(p, q)], the levels' weights w [n, depth]), with
    q = softmax(head z_ij), or softmax(own z_ij).

    Args:
        z: [n, depth, d], the draft's inputs to the head.
        head: [V', d], frozen.
        weights: float [n, depth], 0 for levels that do not count.
        labels: int64 [n, depth], the true tokens as rows of `head`; -1 outside of it.
        teacher: [n, depth, d], the target's own h: p is its softmax through the same head, so that
            the gradient of CE is that of KL(p || q); None: p is the true token.
        settings: of weights and distance.
        own: [V', d], the draft's own LM head, which is trained too.
    """
    rows, own = z.to(head.dtype), None if own is None else own.to(head.dtype)
    loss, used = _HeadLoss.apply(rows, head, own, weights, labels, teacher, settings)  # type: ignore[no-untyped-call]
    return loss, used


def distillation_loss(o: Tensor, h: Tensor, weights: Tensor) -> Tensor:
    """sum w smooth-L1(o, h) of o and h [..., d], averaged over the dimensions; weights [...]."""
    distance = F.smooth_l1_loss(o.float(), h.float(), reduction="none").mean(dim=-1)
    return (distance * weights).sum()
