"""Does a method's sampler follow the target? Answers are drawn, and every token is compared with
the target's exact distribution at its position.

The test is by the probability integral transform: with the vocabulary in order of decreasing
probability, a token of probability p with the mass m before it becomes a number drawn uniformly
from [m, m + p). The numbers of a correct sampler are independent and uniform on [0, 1), whatever
the distributions were (Rosenblatt 1952, randomised for discrete distributions), so that tokens of
all positions count in one chi-square test of equal cells. A sampler that favours drafted tokens,
samples at a lower temperature, or forgets a residual moves mass between likely and unlikely tokens,
which the test detects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import chisquare
from torch import Tensor

CELLS = 10
LEVEL = 1e-3  # chance that any test of a folder fails although every sampler is correct
LEAST = 20 * CELLS  # tokens: with fewer the test has no power
PROMPTS = 2  # the run's shortest: their prefill is cheap, and the test needs no others
TOKENS = 64  # of an answer
IMPOSSIBLE = 1e-3  # share of tokens of probability 0 that rounding at a cut-off may explain


@dataclass(frozen=True)
class Fit:
    """How well tokens fit their distributions.

    Attributes:
        tokens: how many were tested.
        impossible: those of probability 0.
        statistic: chi-square of the cells.
        p: chance of a statistic this large for a correct sampler.
    """

    tokens: int
    impossible: int
    statistic: float
    p: float


def transform(probs: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """float64 [n] in [0, 1): the tokens' randomised transforms; nan for one of probability zero.

    probs: [n, V], the distribution of each token; tokens: int64 [n]; generator: of the CPU.
    """
    exact = probs.double()
    exact = exact / exact.sum(dim=-1, keepdim=True)
    index = torch.arange(exact.shape[-1], device=exact.device)
    own = exact.gather(-1, tokens[:, None])  # [n, 1]
    before = (exact > own) | ((exact == own) & (index < tokens[:, None]))
    mass = (exact * before).sum(dim=-1).cpu()
    share = torch.rand(len(tokens), dtype=torch.float64, generator=generator)
    number = (mass + share * own[:, 0].cpu()).clamp(max=1 - 1e-12)
    return torch.where(own[:, 0].cpu() > 0, number, torch.nan)


def fit(transforms: Tensor) -> Fit:
    """The test of the tokens' transforms, float64 [n]."""
    known = transforms[~transforms.isnan()]
    impossible = len(transforms) - len(known)
    statistic, p = 0.0, 1.0
    if len(known):
        statistic, p = map(float, chisquare(torch.histc(known, CELLS, 0.0, 1.0).numpy()))
    if impossible > IMPOSSIBLE * len(transforms):
        p = 0.0
    return Fit(len(transforms), impossible, statistic, p)
