"""Training losses, and the optimiser of matrices on a processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bench.training.losses import LossSettings, distillation_loss, next_token_loss
from bench.training.muon import Float32Muon

VOCAB, D = 20, 16


DECAY, DPACE, TV = LossSettings(), LossSettings(dpace=True), LossSettings(tv=0.5)


@pytest.mark.parametrize("settings", [DECAY, DPACE, TV], ids=["decay", "dpace", "tv"])
@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("hard", [False, True], ids=["teacher", "labels"])
def test_the_loss_in_chunks_is_the_plain_one(
    hard: bool, rows: int, settings: LossSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, depth = 10, 4
    monkeypatch.setattr("bench.training.losses.CELLS", rows * depth * VOCAB)
    generator = torch.Generator().manual_seed(0)
    z, teacher = torch.randn(2, n, depth, D, generator=generator)
    head = torch.randn(VOCAB, D, generator=generator)
    weights = torch.ones(n, depth)
    weights[4] = weights[5, 2:] = 0.0
    labels = torch.randint(VOCAB, (n, depth), generator=generator)
    labels[1, 1] = -1  # outside the draft vocabulary
    p = (teacher @ head.T).softmax(dim=-1)
    if hard:
        weights[1, 1:] = 0.0
        p = F.one_hot(labels.clamp(min=0), VOCAB).float()
    plain_z, own_z = z.clone().requires_grad_(), z.clone().requires_grad_()
    log_q = (plain_z @ head.T).log_softmax(dim=-1)
    levels = weights * 0.9 ** torch.arange(depth)
    if settings.dpace:
        q = log_q.exp().detach().gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        q = torch.where(labels < 0, 0.0, q)
        factor = 0.5 * q + 0.5
        levels = torch.zeros(n, depth)
        for i in range(n):
            kept = int(weights[i].sum())
            for k in range(kept):
                levels[i, k] = sum(float(factor[i, : j + 1].prod()) for j in range(k, kept))
    each = -(p * log_q).sum(dim=-1)
    if settings.tv:
        each = 0.5 * each + 0.5 * 0.5 * (p - log_q.exp()).abs().sum(dim=-1)
    plain = (each * levels).sum()
    own, used = next_token_loss(own_z, head, weights, labels, None if hard else teacher, settings)
    torch.testing.assert_close(used, levels)
    torch.testing.assert_close(own, plain)
    (expected,) = torch.autograd.grad(0.25 * plain, plain_z)
    (gradient,) = torch.autograd.grad(0.25 * own, own_z)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[4].any()


def test_a_head_of_the_drafts_own_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """q comes from it, p from the target's head."""
    monkeypatch.setattr("bench.training.losses.CELLS", 3 * VOCAB)
    generator = torch.Generator().manual_seed(0)
    z, teacher = torch.randn(2, 10, 1, D, generator=generator)
    head, own = (torch.randn(VOCAB, D, generator=generator) for _ in range(2))
    z.requires_grad_()
    own.requires_grad_()
    p, log_q = (teacher @ head.T).softmax(dim=-1), (z @ own.T).log_softmax(dim=-1)
    plain = -(p * log_q).sum()
    labels, weights = torch.zeros(10, 1, dtype=torch.long), torch.ones(10, 1)
    loss, _ = next_token_loss(z, head, weights, labels, teacher, DECAY, own)
    torch.testing.assert_close(loss, plain)
    expected, found = (torch.autograd.grad(0.25 * x, (z, own)) for x in (plain, loss))
    torch.testing.assert_close(found, expected)


def test_the_teacher_itself_has_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    h, head = torch.randn(5, 1, D, generator=generator), torch.randn(VOCAB, D, generator=generator)
    z = h.clone().requires_grad_()
    labels = torch.zeros(5, 1, dtype=torch.long)
    loss, _ = next_token_loss(z, head, torch.ones(5, 1), labels, h, DECAY)
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(gradient, torch.zeros_like(h), atol=1e-5, rtol=0)


def test_the_distillation_loss_by_hand() -> None:
    o = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    h = torch.tensor([[0.5, 3.0], [1.0, 1.0], [9.0, 9.0]])
    # Smooth-L1: half the square up to 1, the distance less a half from there.
    expected = 2.0 * (0.125 + 2.5) / 2
    loss = distillation_loss(o, h, torch.tensor([2.0, 1.0, 0.0]))
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_muon_in_float32_is_torchs_but_for_rounding(shape: tuple[int, int]) -> None:
    settings: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, "ns_steps": 5}
    found = []
    for kind in (Float32Muon, torch.optim.Muon):
        generator = torch.Generator().manual_seed(0)
        matrix = torch.nn.Parameter(torch.randn(shape, generator=generator))
        optimizer = kind([matrix], **settings)
        for _ in range(3):
            matrix.grad = torch.randn(shape, generator=generator)
            optimizer.step()  # type: ignore[no-untyped-call]
        found.append(matrix.detach())
    own, theirs = found
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert (own - theirs).norm() < 0.02 * (theirs - start).norm()
