"""Answers that repeat themselves, and the speedup without them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.measures import Definitions
from reports.read.preparation import good
from reports.read.repetition import REPEATING
from reports.read.rows import rows

DEFINITIONS: Definitions = (
    (
        "Repetition",
        "share of an answer's 4-grams of token ids that occurred in it before: 1 - distinct "
        "4-grams / 4-grams (seq-rep-4 of Welleck et al. 2020, arXiv 1908.04319); 0 for an answer "
        "of fewer than four tokens. Mean over the row's good answers.",
    ),
    ("Good answers", "the row's records that are not failures."),
    (
        "Repeating answers",
        f"those with a repetition above {REPEATING:g}, as a share of the row's good answers.",
    ),
    (
        "Accepted, repeating or not",
        "the accepted length over answers that repeat themselves, and over those that do not.",
    ),
    ("Gain from loops", "the speedup divided by the non-repeating speedup, minus one."),
)


def loops(records: pd.DataFrame, speedups: pd.DataFrame) -> pd.DataFrame:
    """Rows of `speedup` with repetition, answers, repeating (share), accepted_repeating,
    accepted_other and loops (the gain in speedup that is due to them).
    """
    if speedups.empty:
        return speedups
    whole = good(records)
    found = rows(whole[~whole["synthetic"]], records)
    known = found.records["repetition"]
    table = pd.DataFrame({"row": found.facts["row"], "answers": np.bincount(found.of)})
    table["repetition"] = known.groupby(found.of).mean()
    table["repeating"] = found.count(known > REPEATING) / found.count(known.notna())
    names = ("accepted_tokens", "verify_steps")
    for name, which in (("repeating", known > REPEATING), ("other", known <= REPEATING)):
        sums = found.sums(names, which & (found.records["verify_steps"] > 0))
        table[f"accepted_{name}"] = sums["accepted_tokens"] / sums["verify_steps"]
    merged = speedups.merge(table, how="inner", on="row", validate="one_to_one")
    return merged.assign(loops=merged["speedup"] / merged["non_repeating"] - 1)
