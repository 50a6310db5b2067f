"""Attention of drafts in training: every anchor's own chain of levels over a shared context."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_chain(
    q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, own: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Attention of anchors over the shared context and their own few keys.

    q: [B, A, H, D]; keys, values: [B, T, H, D]; seen: bool [B, A, T]; own: of [B, A, H, D] each.
    """
    scale = q.shape[-1] ** -0.5
    context = torch.einsum("bahd,bthd->bhat", q, keys) * scale
    context = context.masked_fill(~seen[:, None], -torch.inf)
    mine = torch.stack([(q * k).sum(dim=-1) for k, _ in own], dim=-1) * scale  # [B, A, H, j]
    scores = torch.cat((context, mine.transpose(1, 2)), dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    shared, private = weights[..., : keys.shape[1]], weights[..., keys.shape[1] :]
    attended = torch.einsum("bhat,bthd->bahd", shared, values)
    for j, (_, v) in enumerate(own):
        attended = attended + private[..., j].transpose(1, 2)[..., None] * v
    return attended
