"""A draft in training, with its optimisers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.decoding.drafts.trainable import Draft, TrainableDraft
from bench.training.muon import Float32Muon


@dataclass(frozen=True)
class Rates:
    """Learning rates: `muon` of matrices, `adam` of all other parameters and of an LM head, and
    their schedule."""

    muon: float
    adam: float
    warm_up: int
    steps: int

    def factor(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        return 0.5 + 0.5 * math.cos(math.pi * done)


@dataclass(frozen=True)
class Trainee:
    """A draft in training.

    Attributes:
        name: of the entry point.
        kind: what it loads.
        seed: of the initial weights.
        draft: as built.
        wrapped: the same, as accelerate wants it called.
        optimizers, schedulers: one of each for matrices and for other parameters, an LM head among
            them.
    """

    name: str
    kind: TrainableDraft
    seed: int
    draft: Draft
    wrapped: nn.Module
    optimizers: list[Any]
    schedulers: list[Any]

    @classmethod
    def make(
        cls,
        name: str,
        kind: TrainableDraft,
        seed: int,
        draft: Draft,
        rates: Rates,
        accelerator: Accelerator,
    ) -> Trainee:
        """`draft` with initial weights, ready to be trained on the accelerator's device."""
        draft.to(accelerator.device).initialise(seed)
        wrapped, *optimizers = accelerator.prepare(draft, *_optimizers(draft, rates))
        schedulers = [
            torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, rates.factor)
            for optimizer in optimizers
        ]
        accelerator.register_for_checkpointing(*schedulers)
        return cls(name, kind, seed, draft, wrapped, optimizers, schedulers)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.seed}"

    @property
    def depth(self) -> int:
        return self.draft.config.depth

    def chosen(self, taps: dict[int, Tensor]) -> list[Tensor]:
        """The residual streams that the draft reads, in its order."""
        return [taps[k] for k in self.draft.taps]

    def update(self) -> None:
        """One optimiser step with the accumulated gradients."""
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def _optimizers(draft: Draft, rates: Rates) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for parameter in draft.parameters():
        inner = parameter.dim() == 2 and parameter is not draft.own_head
        (matrices if inner else others).append(parameter)
    found: list[torch.optim.Optimizer] = []
    if matrices:
        kind = Float32Muon if matrices[0].device.type == "cpu" else torch.optim.Muon
        found.append(kind(matrices, lr=rates.muon, momentum=0.95, weight_decay=0.0, ns_steps=5))
    if others:
        found.append(torch.optim.AdamW(others, lr=rates.adam, weight_decay=0.0))
    return found
