"""Speedup and accepted length question by question."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bench.statistics import SAME
from reports.measures import Definitions
from reports.measures.ratios import SIDES, speedup_of
from reports.read.preparation import pairs
from reports.read.rows import ordered, rows

DEFINITIONS: Definitions = (
    (
        "Question",
        "speedup and accepted length over all turns and repeats of one question, each a ratio of "
        "sums as in their own tables.",
    ),
    ("Questions", "those with a pair that counts."),
    ("Slowest, median, fastest", "the speedups of single questions; the question below."),
    ("Slower than the reference", "questions on which the method takes longer per token."),
    (
        "Correlation",
        "of the logarithms of speedup and accepted length over questions (Pearson). Near 1 where "
        "the speedup of a question depends mostly on how well it can be drafted.",
    ),
)


def questions(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and question: prompt_id, speedup and accepted."""
    both = pairs(records)
    both = both[~both["reference"] & ~both["synthetic"] & both["counted"]]
    found = rows(both, records, ["question"])
    if found.facts.empty:
        return pd.DataFrame()
    sums = found.sums([*SIDES, "accepted_tokens", "verify_steps"])
    first = np.unique(found.of, return_index=True)[1]
    table = found.facts.assign(
        prompt_id=found.records["prompt_id"].iloc[first].to_numpy(),
        speedup=speedup_of(sums[list(SIDES)].to_numpy(dtype=np.float64)),
        accepted=sums["accepted_tokens"] / sums["verify_steps"].where(sums["verify_steps"] > 0),
    )
    return ordered(records, table)


def spread(single: pd.DataFrame) -> pd.DataFrame:
    """Rows of `questions` in one row for each method: slowest, median, fastest with the questions
    slowest_id and fastest_id, slower, count and correlation.
    """
    known = single.dropna(subset=["speedup"]) if len(single) else single
    groups = known.groupby("row", sort=False) if len(known) else ()
    return pd.DataFrame([_spread(group) for _, group in groups])


def _spread(group: pd.DataFrame) -> dict[str, Any]:
    lines = group.sort_values("speedup", kind="stable").to_dict("records")
    slowest, fastest = lines[0], lines[-1]
    return {
        **{str(name): value for name, value in slowest.items()},
        "slowest": slowest["speedup"],
        "slowest_id": slowest["prompt_id"],
        "median": float(group["speedup"].median()),
        "fastest": fastest["speedup"],
        "fastest_id": fastest["prompt_id"],
        "slower": int((group["speedup"] < 1).sum()),
        "count": len(group),
        "correlation": _correlation(group),
    }


def _correlation(group: pd.DataFrame) -> float:
    logs = np.log(group[["speedup", "accepted"]].dropna().to_numpy(dtype=np.float64)).T
    if logs.shape[1] < 3 or (logs.std(axis=1) < SAME).any():
        return np.nan
    return float(np.corrcoef(logs)[0, 1])
