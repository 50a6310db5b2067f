"""The positions that drafts are trained and evaluated from."""

from __future__ import annotations

import torch
from torch import Tensor

START_TOKENS = 128  # of an answer, which `from_start` prefers
START_WEIGHT = 4.0  # of one of them, relative to later ones


def sample_anchors(
    roles: Tensor, depth: int, count: int, generator: torch.Generator, from_start: bool = False
) -> tuple[Tensor, Tensor]:
    """Random anchors t with x_{t+1} and x_{t+2} in an answer.

    Args:
        roles: bool [B, T], True in answers.
        depth: levels drafted from an anchor.
        count: anchors of a sequence, A.
        generator: on the roles' device.
        from_start: prefer the first tokens of an answer.

    Returns:
        (anchors int64 [B, A], weights float [B, A, depth]: 1 where x_{t+1} .. x_{t+1+j} are all
        of one answer, else 0).
    """
    batch, length = roles.shape
    span = torch.arange(length, device=roles.device)
    fits = (span >= 1) & (span < length - depth - 1)
    allowed = fits & roles.roll(-1, 1) & roles.roll(-2, 1)
    score = torch.rand(batch, length, generator=generator, device=roles.device)
    if from_start:  # without replacement by weight w: the largest u^(1/w) (Efraimidis, Spirakis)
        early = _places(roles) < START_TOKENS
        score = torch.where(early, score ** (1 / START_WEIGHT), score)
    score = score + allowed
    count = min(count, length)
    anchors = score.topk(count, dim=1).indices.clamp(min=1, max=max(length - depth - 2, 1))
    ahead = anchors[..., None] + torch.arange(1, depth + 2, device=roles.device)
    inside = roles[torch.arange(batch, device=roles.device)[:, None, None], ahead]
    weights = inside.cumprod(dim=-1)[..., 1:].float()
    return anchors, weights * allowed.gather(1, anchors)[..., None]


def _places(roles: Tensor) -> Tensor:
    """int64 [B, T]: how many tokens of its answer stand before each token of bool [B, T]."""
    span = torch.arange(roles.shape[1], device=roles.device).expand(roles.shape)
    outside = torch.where(roles, -1, span).cummax(dim=1).values
    return span - outside - 1


def answer_anchors(role: Tensor, depth: int) -> Tensor:
    """int64 [A]: every anchor t of one sequence, role bool [T], with x_{t+1} .. x_{t+1+depth} in
    one answer."""
    fits = torch.arange(1, len(role) - depth - 1, device=role.device)
    ahead = fits[:, None] + torch.arange(1, depth + 2, device=role.device)
    return fits[role[ahead].all(dim=1)]


def drafted_tokens(ids: Tensor, anchors: Tensor, depth: int) -> Tensor:
    """int64 [B, A, depth]: x_{t+2} .. x_{t+1+depth}, what the levels draft from each anchor t.

    ids: int64 [B, T]; anchors: int64 [B, A].
    """
    batch = torch.arange(len(anchors), device=anchors.device)[:, None, None]
    return ids[batch, anchors[..., None] + torch.arange(2, depth + 2, device=anchors.device)]
