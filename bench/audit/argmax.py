"""The share of a row's tokens that are not the float32 argmax, compared with the reference's.

Every emitted token of a greedy answer is compared with the argmax of a float32 forward over the
tokens before it. Half precision misses it now and then, for every method, the reference too; a
decoder that is wrong misses it more often. The difference of the two shares is paired by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench.statistics import Floats, interval

# A row fails where the whole interval of the difference lies above MARGIN. Methods emit different
# texts after their first difference, and texts differ in their number of near ties: over 16 prompts
# of MT-Bench, correct methods were up to 0.9 points above the reference (SmolLM2 on an H200).
# Rarer errors show as first differences with a gap that rounding does not explain.
MARGIN = 0.01
# A row passes where the interval ends below this; otherwise its answers are too few.
RESOLUTION = 0.05


def compare(counts: Iterable[tuple[int, int, int, int]]) -> dict[str, Any]:
    """The comparison, as `audit.json` has it.

    counts: for each prompt, the tokens that are not the argmax and all tokens of the row's answers,
        then of the reference's.

    The shares and their difference are over all tokens; low and high are the ends of 95 %
    intervals, None for a single prompt. passed: None where the answers are too few to tell.
    """
    sums = np.array(list(counts), dtype=np.float64)  # [prompts, 4]
    difference, low, high = _bounds(sums, lambda s: _share(s, 0) - _share(s, 2))
    share, reference = _bounds(sums, lambda s: _share(s, 0)), _bounds(sums, lambda s: _share(s, 2))
    return {
        "prompts": len(sums),
        "tokens": int(sums[:, 1].sum()),
        **dict(zip(("share", "low", "high"), share, strict=True)),
        **{f"reference_{k}": v for k, v in zip(("share", "low", "high"), reference, strict=True)},
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "margin": MARGIN,
        "passed": verdict(low, high),
    }


def verdict(low: float | None, high: float | None) -> bool | None:
    """Of the interval of the difference."""
    if low is None or high is None:
        return None
    if low > MARGIN:
        return False
    return True if high <= RESOLUTION else None


def _share(sums: Floats, at: int) -> Floats:
    found: Floats = sums[..., at] / sums[..., at + 1]
    return found


def _bounds(
    sums: Floats, figure: Callable[[Floats], Floats]
) -> tuple[float, float | None, float | None]:
    """A figure and its interval, which `statistics.interval` has for figures above 0."""
    low, high = np.log(interval(sums, lambda s: np.exp(figure(s))))
    bounds = (None, None) if np.isnan(low) else (float(low), float(high))
    return (float(figure(sums.sum(axis=0))), *bounds)
