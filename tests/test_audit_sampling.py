"""The test of samplers: right ones pass, wrong ones fail, and several tests are corrected."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.audit.sampling import CELLS, LEVEL, Fit, fit, transform
from bench.statistics import holm

VOCAB = 50


def distributions(count: int, seed: int) -> Tensor:
    """[count, V]: peaked and flat distributions, some entries zero."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, VOCAB, generator=generator)
    sharpness = 6 * torch.rand(count, 1, generator=generator)
    probs = (logits * sharpness).softmax(dim=-1)
    return torch.where(probs > 1e-3, probs, 0.0)


def drawn(probs: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def held(probs: Tensor, tokens: Tensor, seed: int = 0) -> Fit:
    return fit(transform(probs, tokens, torch.Generator().manual_seed(seed)))


def test_transforms_of_a_right_sampler_are_uniform() -> None:
    probs = distributions(4000, 0)
    places = transform(probs, drawn(probs, 1), torch.Generator().manual_seed(2))
    assert places.shape == (4000,)
    assert bool(((places >= 0) & (places < 1)).all())
    assert float(places.mean()) == pytest.approx(0.5, abs=0.02)
    counts = torch.histc(places, CELLS, 0, 1)
    assert bool((counts > 320).all())


def test_a_right_sampler_fails_as_often_as_the_level_says() -> None:
    values = [held(probs := distributions(500, n), drawn(probs, 1000 + n), n).p for n in range(200)]
    assert min(values) > LEVEL / len(values)
    for level in (0.05, 0.2, 0.5):
        share = sum(value < level for value in values) / len(values)
        assert share == pytest.approx(level, abs=4 * (level * (1 - level) / len(values)) ** 0.5)


def colder(probs: Tensor) -> Tensor:
    """Temperature 0.8 where 1 was asked for."""
    return probs.pow(1 / 0.8)


def draft_again(probs: Tensor) -> Tensor:
    """The likeliest token is drafted; where it is refused the draw is from p, not the residual."""
    best = probs.max(dim=-1, keepdim=True).values
    return probs * (1 - best) + torch.where(probs == best, best, 0.0)


def no_tail(probs: Tensor) -> Tensor:
    """A top-k that was not asked for."""
    return torch.where(probs >= probs.topk(3).values[:, -1:], probs, 0.0)


@pytest.mark.parametrize("wrong", [colder, draft_again, no_tail], ids=lambda w: w.__name__)
def test_a_wrong_sampler_fails(wrong: object) -> None:
    assert callable(wrong)
    probs = distributions(2048, 3)
    assert held(probs, drawn(probs, 4)).p > 0.01
    assert held(probs, drawn(wrong(probs), 4)).p < 1e-5


def test_a_fresh_draw_for_each_path_fails() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1]]).expand(4000, 3)
    bent = torch.tensor([[0.53, 0.35, 0.13]]).expand(4000, 3)
    assert held(probs, drawn(probs, 0)).p > 0.01
    assert held(probs, drawn(bent, 0)).p < 1e-5


def test_tokens_of_probability_zero_fail() -> None:
    probs = distributions(2000, 5)
    tokens = drawn(probs, 6)
    outside = probs.argmin(dim=-1)
    few = torch.where(torch.arange(2000) < 2, outside, tokens)
    many = torch.where(torch.arange(2000) < 20, outside, tokens)
    found = held(probs, few)
    assert (found.tokens, found.impossible) == (2000, 2)
    assert found.p > 0.01  # so much may be rounding at a cut-off
    assert held(probs, many).p == 0.0


def test_the_order_of_equal_probabilities_does_not_matter() -> None:
    probs = torch.full((3000, 8), 1 / 8)
    assert held(probs, drawn(probs, 7)).p > 0.01
    assert held(probs, torch.zeros(3000, dtype=torch.long)).p < 1e-12


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.0, 0.5], [0.0, 0.5]),
    ],
)
def test_several_tests_are_corrected_together(values: list[float], expected: list[float]) -> None:
    assert holm(np.array(values)) == pytest.approx(expected)
