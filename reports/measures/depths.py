"""Acceptance by depth of the draft, and steps by the tokens that they emit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from reports.measures import Definitions

DEFINITIONS: Definitions = (
    (
        "Tokens per step",
        "share of the verify steps that emitted that many tokens, the bonus token included.",
    ),
    (
        "Depth",
        "share of the verify steps that accepted at least that many drafted tokens; below it, the "
        "share of those that accepted all shallower ones. A step that the end of the answer cut "
        "short counts with the tokens kept.",
    ),
)

DEEPEST, MOST = 8, 8  # depths and tokens per step that have a column


def by_depth(lengths: pd.DataFrame) -> pd.DataFrame:
    """One row for each row of `accepted` and depth from 1: depth, reached (share of steps
    that accept as many drafted tokens or more) and onward (of those that accept all before).
    """
    lines: list[dict[str, Any]] = []
    for row in _drafting(lengths):
        steps = np.array(_counts(row["histogram"], DEEPEST + 1))  # that emit 1, 2, ... tokens
        accept = steps[::-1].cumsum()[::-1]  # that accept 0, 1, ... drafted tokens or more
        lines += [
            {
                **row,
                "depth": depth,
                "reached": accept[depth] / accept[0],
                "onward": accept[depth] / accept[depth - 1] if accept[depth - 1] else np.nan,
            }
            for depth in range(1, len(accept))
        ]
    return pd.DataFrame(lines)


def by_tokens(lengths: pd.DataFrame) -> pd.DataFrame:
    """One row for each row of `accepted` and number of tokens from 1 to MOST, which counts
    for all above it: tokens and share (of the steps that emit as many).
    """
    return pd.DataFrame(
        [
            {**row, "tokens": at + 1, "share": count / sum(row["histogram"].values())}
            for row in _drafting(lengths)
            for at, count in enumerate(_counts(row["histogram"], MOST))
        ]
    )


def _drafting(lengths: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows that have accepted lengths of a draft."""
    if lengths.empty:
        return []
    known = lengths[lengths["accepted"].notna() & ~lengths["reference"]]
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def _counts(histogram: dict[int, int], most: int) -> list[int]:
    """Steps that emit 1, 2, ... tokens, up to the most there are; the last of `most` counts all
    above it too."""
    counts = [0] * min(most, max(histogram))
    for tokens, steps in histogram.items():
        counts[min(tokens, most) - 1] += steps
    return counts
