"""Verify steps in bins of a count of tokens: what positions and contexts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.statistics import Ints
from reports.read.preparation import good
from reports.read.rows import Rows, ordered, rows
from reports.read.steps import flat


def name_of(edges: Sequence[int], at: int) -> str:
    """A bin in words: 33–64, 2,049 and more."""
    if at + 1 == len(edges):
        return f"{edges[at]:,} and more"
    return f"{edges[at]:,}–{edges[at + 1] - 1:,}"


def stepped(records: pd.DataFrame) -> Rows:
    known = good(records)
    stepped = ~known["synthetic"] & ~known["reference"] & (known["verify_steps"] > 0)
    return rows(known[stepped], records)


def bins_of(tokens: Any, edges: Sequence[int]) -> Ints:
    """The bin of each count."""
    counts = np.asarray(tokens, dtype=np.int64)
    known = np.searchsorted(edges, np.arange(counts.max(initial=0) + 1), side="right") - 1
    found: Ints = np.maximum(known, 0)[counts]
    return found


def binned(records: pd.DataFrame, found: Rows, known: Ints, edges: Sequence[int]) -> pd.DataFrame:
    """Steps in bins of the tokens known before them: `known` [records] and those of the answer."""
    if found.facts.empty:
        return pd.DataFrame()
    steps = flat(found.records["accept_lengths"])
    bins = bins_of(steps.start + known[steps.record], edges)
    place, size = found.of[steps.record] * len(edges) + bins, len(found.facts) * len(edges)
    counts = np.bincount(place, minlength=size)
    tokens = np.bincount(place, weights=steps.length, minlength=size)
    filled = np.flatnonzero(counts)
    table = found.facts.iloc[filled // len(edges)].assign(
        bin=filled % len(edges),
        accepted=tokens[filled] / counts[filled],
        steps=counts[filled],
    )
    return ordered(records, table.reset_index(drop=True))


def named(rows: pd.DataFrame, edges: Sequence[int]) -> list[tuple[object, str]]:
    """The bins that rows have, each with its name."""
    bins = sorted(rows["bin"].unique().tolist()) if len(rows) else []
    return [(at, name_of(edges, at)) for at in bins]
