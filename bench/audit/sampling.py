"""Does a method's sampler follow the target? Answers are drawn and every token is held against the
target's exact distribution behind the tokens before it.

The test is by the probability integral transform: with the vocabulary in order of falling
probability, a token of probability p with the mass m before it becomes a number drawn uniformly
from [m, m + p). The numbers of a right sampler are independent and uniform on [0, 1), whatever the
distributions were (Rosenblatt 1952, randomised for discrete laws), so that tokens of all positions
count in one chi-square test of equal cells. A sampler that favours what was drafted, samples
colder, or forgets a residual moves mass between likely and unlikely tokens and shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CELLS = 10
LEVEL = 1e-3  # chance that any test of a folder fails although every sampler is right
LEAST = 20 * CELLS  # tokens: fewer test nothing
PROMPTS = 2  # the run's shortest: their prefill is cheap, and the test needs no others
TOKENS = 64  # of an answer
IMPOSSIBLE = 1e-3  # share of tokens outside the law that rounding at a cut-off may explain


@dataclass(frozen=True)
class Fit:
    """How well tokens fit their laws.

    Attributes:
        tokens: how many were tested.
        impossible: those that the law gives no mass.
        statistic: chi-square of the cells.
        p: chance of a statistic this large under the law.
    """

    tokens: int
    impossible: int
    statistic: float
    p: float


def transform(probs: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """float64 [n] in [0, 1): the tokens' randomised transforms; nan for one of probability zero.

    probs: [n, V], the law of each token; tokens: int64 [n]; generator: of the CPU.
    """
    law = probs.double()
    law = law / law.sum(dim=-1, keepdim=True)
    index = torch.arange(law.shape[-1], device=law.device)
    own = law.gather(-1, tokens[:, None])  # [n, 1]
    before = (law > own) | ((law == own) & (index < tokens[:, None]))
    mass = (law * before).sum(dim=-1).cpu()
    share = torch.rand(len(tokens), dtype=torch.float64, generator=generator)
    place = (mass + share * own[:, 0].cpu()).clamp(max=1 - 1e-12)
    return torch.where(own[:, 0].cpu() > 0, place, torch.nan)


def fit(places: Tensor) -> Fit:
    """The test of the transforms, float64 [n]."""
    known = places[~places.isnan()]
    impossible = len(places) - len(known)
    counts = torch.histc(known, CELLS, 0.0, 1.0)
    expected = len(known) / CELLS
    statistic = float((counts - expected).square().sum() / expected) if expected else 0.0
    p = _chi_square_tail(statistic, CELLS - 1)
    if impossible > IMPOSSIBLE * len(places):
        p = 0.0
    return Fit(len(places), impossible, statistic, p)


def _chi_square_tail(statistic: float, freedom: int) -> float:
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
