"""Intervals on simulated runs whose truth is known; figures against numbers worked out by hand."""

import numpy as np
import pytest

from bench.statistics import Estimates, Floats, Ints, estimates, holm, interval
from reports.measures.ratios import speedup_of


def simulated(
    sets: int, prompts: int, repeats: int, spread: float, noise: float, seed: int
) -> tuple[Floats, float]:
    """[sets, prompts, repeats, 4] seconds and tokens of the reference and of a method, and the true
    ratio of what all prompts take.

    Answers differ in length, prompts in time per token and in how much the method gains (`spread`,
    of the logarithm), single runs by `noise`, which is of each side, and by what both share.
    """
    draw = np.random.default_rng(seed)
    one, each = (sets, prompts, 1), (sets, prompts, repeats)
    tokens = np.exp(draw.normal(4.5, 0.4, one)) * np.ones(each)
    shared = np.exp(draw.normal(0, 0.1, one) + draw.normal(0, 0.05, (sets, 1, repeats)))
    gain = 2 * np.exp(draw.normal(0, spread, one))
    seconds = tokens * shared * np.exp(draw.normal(0, noise, each))
    faster = tokens * shared / gain * np.exp(draw.normal(0, noise, each))
    return np.stack([seconds, tokens, faster, tokens], axis=-1), 2 * np.exp(-(spread**2) / 2)


def estimated(sums: Floats, kept: Ints | None = None, rows: int | None = None) -> Estimates:
    """Of every set of [sets, prompts, repeats, 4], from the records `kept`."""
    sets, prompts, repeats = np.indices(sums.shape[:3]).reshape(3, -1)
    at = np.arange(len(sets)) if kept is None else kept
    parts, count = sums.reshape(-1, 4)[at], len(sums) if rows is None else rows
    return estimates(sets[at], prompts[at], repeats[at], parts, speedup_of, count)


def coverage(found: Estimates, truth: float) -> float:
    return float(((found.low <= truth) & (truth <= found.high)).mean())


@pytest.mark.parametrize(("spread", "noise"), [(0.3, 0.02), (0.15, 0.05), (0.02, 0.05)])
@pytest.mark.parametrize(("sets", "prompts"), [(3000, 16), (2000, 40), (1500, 80)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    sets: int, prompts: int, spread: float, noise: float
) -> None:
    """93 to 97 % of the time, whether prompts differ most or repeats do."""
    sums, truth = simulated(sets, prompts, 3, spread, noise, seed=1)
    assert 0.93 <= coverage(estimated(sums), truth) <= 0.97


def test_drawing_records_holds_it_too_rarely() -> None:
    """The control: repeats of one prompt are no new prompts."""
    sums, truth = simulated(500, 40, 3, 0.3, 0.02, seed=1)
    single = sums.reshape(500, -1, 1, 4)
    assert coverage(estimated(single), truth) < 0.8


def test_no_difference_is_found_as_rarely_as_the_level_says() -> None:
    sums, truth = simulated(1500, 24, 3, 0.15, 0.05, seed=2)
    sums[..., 0] /= truth  # the reference is as fast
    p = estimated(sums).p
    assert 0.03 <= (p < 0.05).mean() <= 0.07


def test_a_difference_in_the_noise_is_not_found_and_a_large_one_is() -> None:
    sums, _ = simulated(1, 24, 3, 0.1, 0.02, seed=3)
    assert estimated(sums).p[0] < 1e-6
    sums[..., 2] *= estimated(sums).value[0]  # as slow as the reference
    found = estimated(sums)
    assert found.p[0] > 0.5
    assert found.low[0] < 1 < found.high[0]


def test_value_and_error_are_those_worked_out_by_hand() -> None:
    """Three prompts of one record: sums 1, 2, 3 over 1, 1, 1; without each 5/2, 4/2, 3/2."""
    parts = np.array([[1.0, 1], [2, 1], [3, 1]])
    found = estimates(
        np.zeros(3, dtype=np.int64),
        np.arange(3),
        np.zeros(3, dtype=np.int64),
        parts,
        lambda sums: sums[..., 0] / sums[..., 1],
        1,
    )
    assert found.value[0] == pytest.approx(2.0)
    error = np.sqrt(2 * np.var(np.log([2.5, 2.0, 1.5])))
    t = np.log(2) / error  # of two degrees of freedom: p = 1 - t / sqrt(2 + t^2)
    assert found.p[0] == pytest.approx(1 - t / np.sqrt(2 + t * t))
    assert found.low[0] < 1 < 2 < found.high[0]
    assert interval(parts, lambda sums: sums[..., 0] / sums[..., 1]) == (
        found.low[0],
        found.high[0],
    )


def test_repeats_that_are_copies_change_nothing() -> None:
    sums, _ = simulated(1, 12, 1, 0.3, 0.02, seed=4)
    once, copied = estimated(sums), estimated(np.repeat(sums, 5, axis=2))
    for one, other in zip(once, copied, strict=True):
        assert one[0] == pytest.approx(other[0])


def shuffled(records: int) -> Ints:
    return np.random.default_rng(5).permutation(records)


def test_the_order_of_records_does_not_matter() -> None:
    sums, _ = simulated(3, 10, 2, 0.3, 0.02, seed=6)
    for one, other in zip(estimated(sums), estimated(sums, shuffled(60)), strict=True):
        assert one.tolist() == other.tolist()


def test_rows_are_estimated_alone_whatever_stands_beside_them() -> None:
    """Also where some repeats failed, so that rows have other layouts."""
    sums, _ = simulated(4, 9, 3, 0.3, 0.05, seed=7)
    kept = shuffled(108)[:98]
    found = estimated(sums, kept, rows=5)
    for line in range(4):
        own = kept[kept // 27 == line] % 27
        alone = estimated(sums[line : line + 1], own)
        for one, other in zip(found, alone, strict=True):
            assert one[line] == pytest.approx(other[0])
    assert all(np.isnan(values[4]) for values in found)  # a row without records


def test_one_prompt_gives_a_figure_and_no_interval() -> None:
    sums, _ = simulated(1, 1, 6, 0.3, 0.02, seed=8)
    found = estimated(sums)
    assert np.isfinite(found.value[0])
    assert np.isnan([found.low[0], found.high[0], found.p[0]]).all()
    assert np.isnan(interval(np.empty((0, 2)), lambda sums: sums[..., 0] / sums[..., 1])).all()


def test_figures_without_noise_have_intervals_without_width() -> None:
    same = np.tile([4.0, 2, 2, 2], (1, 5, 2, 1))
    found = estimated(same)
    assert (found.low[0], found.value[0], found.high[0]) == pytest.approx((2.0, 2.0, 2.0))
    assert found.p[0] == 0.0
    same[..., 0] = 2.0
    assert estimated(same).p[0] == 1.0


def test_what_cannot_be_divided_has_no_figure() -> None:
    found = estimated(np.zeros((1, 4, 2, 4)))
    assert all(np.isnan(values[0]) for values in found)


def test_holm_s_correction() -> None:
    assert holm(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06], nan_ok=True
    )
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


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
    assert holm(values).tolist() == pytest.approx(expected)
