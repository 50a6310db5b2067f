"""Intervals and significance tests of ratios over questions and repeats.

Arrays in, arrays out; knows nothing of records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Figure: TypeAlias = Callable[[Floats], Floats]  # sums [..., parts] -> a figure from 0 [...]

RESAMPLES = 4000
SEED = 20240225  # of the resamples alone: the same records give the same intervals
LEVEL = 0.95
SAME = 1e-9  # figures nearer to 1 than this are 1: it is how floats add up

METHOD = (
    f"Bootstrap of {RESAMPLES:,} resamples: questions are drawn with replacement, then repeats of "
    "each; pairs stay together. The spread, on a logarithmic scale, is set to a jackknife's "
    "standard error and to Student's t, as plain bootstraps of few questions are too narrow. None "
    "for a single question."
)


class Estimates(NamedTuple):
    """Figures with the ends of their intervals, and the p of the hypothesis that a figure is 1;
    nan where it is not known. [rows] each.
    """

    value: Floats
    low: Floats
    high: Floats
    p: Floats


def estimates(
    rows: Ints, prompts: Ints, repeats: Ints, parts: Floats, figure: Figure, count: int
) -> Estimates:
    """Figures of `count` rows from records, each in one row, of one prompt and one repeat.

    rows, prompts, repeats: [records]; parts: [records, parts], what the figure's sums are of.
    Records of one prompt and repeat (turns) are drawn together. p: two-sided, of Student's t for
    the figure's logarithm over its standard error. The order of the records does not matter.
    """
    found = Estimates(*(np.full(count, np.nan) for _ in Estimates._fields))
    for members, sizes, cells in _layouts(rows, prompts, repeats, parts):
        step = max(1, 8_000_000 // (RESAMPLES * cells.shape[2]))
        for start in range(0, len(members), step):
            part = slice(start, start + step)
            for to, values in zip(found, _estimates(cells[part], sizes, figure), strict=True):
                to[members[part]] = values
    return found


def jackknifed(
    rows: Ints, prompts: Ints, repeats: Ints, parts: Floats, figure: Figure, count: int
) -> tuple[Floats, Floats, Ints]:
    """Figures as `estimates` has them, the standard errors of their logarithms over prompts (nan
    for a single prompt), and their prompts. [count] each.
    """
    value, error = np.full(count, np.nan), np.full(count, np.nan)
    sizes = np.zeros(count, dtype=np.int64)
    for members, layout, cells in _layouts(rows, prompts, repeats, parts):
        with np.errstate(all="ignore"):
            value[members] = figure(cells.sum(axis=1))
            if len(layout) > 1:
                error[members] = _jackknife(cells, layout, figure)
        sizes[members] = len(layout)
    return value, error, sizes


def interval(sums: Floats, figure: Figure) -> tuple[float, float]:
    """The interval of one figure; sums: [prompts, parts], one repeat of each prompt."""
    if not len(sums):
        return (np.nan, np.nan)
    found = _estimates(np.asarray(sums, dtype=np.float64)[None], (1,) * len(sums), figure)
    return (float(found.low[0]), float(found.high[0]))


def holm(values: npt.ArrayLike) -> Floats:
    """p-values corrected for their number (Holm 1979, step-down); nan stays nan."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p)  # nan last
    known = int(np.isfinite(p).sum())
    adjusted = np.full(len(p), np.nan)
    factors = np.arange(known, 0, -1)
    steps = np.maximum.accumulate(p[order[:known]] * factors)
    adjusted[order[:known]] = np.minimum(1.0, steps)
    return adjusted


# ---------------------------------------------------------------------------------- the parts


def _layouts(
    rows: Ints, prompts: Ints, repeats: Ints, parts: Floats
) -> Iterator[tuple[Ints, tuple[int, ...], Floats]]:
    """Rows that have as many repeats of as many prompts, together: the rows [n], the repeats of
    each prompt, and their sums [n, cells, parts] in the order of prompts, then repeats.
    """
    if not len(rows):
        return
    order = np.lexsort((*parts.T[::-1], repeats, prompts, rows))  # parts: so that sums are the same
    keys = np.stack([rows, prompts, repeats], axis=1)[order]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
    sums = np.add.reduceat(parts[order], starts, axis=0)  # [cells, parts]
    keys = keys[starts]
    firsts = np.flatnonzero(np.r_[True, (keys[1:, :2] != keys[:-1, :2]).any(axis=1)])
    sizes = np.diff(np.r_[firsts, len(keys)])  # repeats of each row's prompts
    known, lines = np.unique(keys[firsts, 0], return_index=True)
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, layout in enumerate(np.split(sizes, lines[1:])):
        alike.setdefault(tuple(layout.tolist()), []).append(place)
    cells = np.split(sums, firsts[lines[1:]])
    for shared, places in alike.items():
        yield known[places], shared, np.stack([cells[place] for place in places])


def _estimates(cells: Floats, sizes: tuple[int, ...], figure: Figure) -> Estimates:
    """cells: [rows, cells, parts]; sizes: the repeats of each prompt."""
    rows, _, parts = cells.shape
    prompts = len(sizes)
    with np.errstate(all="ignore"):
        value = figure(cells.sum(axis=1))
        if prompts < 2:
            return Estimates(value, *(np.full(rows, np.nan) for _ in range(3)))
        centre = np.log(value)  # [rows]
        error = _jackknife(cells, sizes, figure)
        draws = _weights(sizes) @ cells.transpose(1, 0, 2).reshape(-1, rows * parts)
        away = np.log(figure(draws.reshape(-1, rows, parts))) - centre  # [resamples, rows]
        spread = away.std(axis=0)
        wide = special.stdtrit(prompts - 1, (1 + LEVEL) / 2) / NormalDist().inv_cdf((1 + LEVEL) / 2)
        scale = np.where(spread > SAME, wide * error / spread, 0.0)
        low, high = np.quantile(away, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) * scale
        t = np.where(np.abs(centre) <= SAME, 0.0, np.abs(centre) / error)
        p = 2 * special.stdtr(prompts - 1, -t)
    return Estimates(value, value * np.exp(low), value * np.exp(high), p)


def _jackknife(cells: Floats, sizes: tuple[int, ...], figure: Figure) -> Floats:
    """Standard error [rows] of the figure's logarithm, from leaving out each prompt in turn."""
    count = len(sizes)
    starts = np.r_[0, np.cumsum(sizes)[:-1]]
    prompts = np.add.reduceat(cells, starts, axis=1)  # [rows, prompts, parts]
    without = np.log(figure(prompts.sum(axis=1, keepdims=True) - prompts))
    error: Floats = np.sqrt((count - 1) * without.var(axis=1))
    return error


def _weights(sizes: tuple[int, ...]) -> Floats:
    """[resamples, cells]: how often each cell is drawn. The draw of prompts is the same however
    many repeats they have.
    """
    prompts = len(sizes)
    if len(set(sizes)) == 1:
        return _drawn(prompts, sizes[0]).reshape(RESAMPLES, -1).astype(np.float64)
    columns = [_drawn(prompts, size)[:, place] for place, size in enumerate(sizes)]
    return np.concatenate(columns, axis=1, dtype=np.float64)


@lru_cache(maxsize=64)
def _drawn(prompts: int, repeats: int) -> Ints:
    """[resamples, prompts, repeats]: how often each repeat of each prompt is drawn."""
    even = np.full(prompts, 1 / prompts)
    times = np.random.default_rng([SEED, prompts]).multinomial(prompts, even, RESAMPLES)
    second = np.random.default_rng([SEED, prompts, repeats])
    drawn = second.multinomial(times * repeats, np.full(repeats, 1 / repeats))
    return drawn.astype(np.min_scalar_type(prompts * repeats))
