"""Ratios of sums: the speedup of two sides, and the plain ratio."""

from __future__ import annotations

import numpy as np

from bench.statistics import Floats

SIDES = ("decode_s_ref", "tokens_ref", "decode_s", "tokens")


def speedup_of(sides: Floats) -> Floats:
    """[..., 4] reference seconds and tokens, method's seconds and tokens -> [...]."""
    seconds_ref, tokens_ref, seconds, tokens = np.moveaxis(sides, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = (seconds_ref / tokens_ref) / (seconds / tokens)
    return ratio


def ratio(parts: Floats) -> Floats:
    """[..., 2] -> [...]: the first over the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = parts[..., 0] / parts[..., 1]
    return found
