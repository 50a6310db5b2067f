"""The speedup as a product: accepted length times the relative cost of a step."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.measures import Definitions
from reports.measures.ratios import SIDES, ratio, speedup_of
from reports.read.preparation import pairs
from reports.read.rows import ordered, rows

DEFINITIONS: Definitions = (
    (
        "Speedup = accepted length × t_ref / t_step",
        "a method gains by the tokens per step and loses by the extra cost of a step over one of "
        "the reference. All four come from the same records: the pairs in which both sides have "
        "times by phase. The phase clock costs time, so that this speedup is not the headline's.",
    ),
    ("t_ref", "time of the reference's decode loop per verify step: one token."),
    ("t_step", "time of the method's decode loop per verify step, drafting included."),
    (
        "t_ref / t_step",
        "a step of the reference over a step of the method; its 95 % interval below it.",
    ),
    ("Product", "accepted length × t_ref / t_step."),
    (
        "Remainder",
        "speedup / (accepted length × t_ref / t_step) - 1. The speedup is measured by the host's "
        "clock, the two times by the phases; the remainder is the difference of the two clocks.",
    ),
)

_STEPS = ("loop_s_ref", "verify_steps_ref", "loop_s", "verify_steps")


def factors(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method: speedup, accepted, accepted_low, accepted_high, ref_ms, step_ms,
    cheaper (t_ref / t_step), cheaper_low, cheaper_high, product, remainder and pairs.
    """
    both = pairs(records)
    both = both[~both["reference"] & ~both["synthetic"] & both["decoded"]]
    stepped = (both[["verify_steps", "verify_steps_ref"]] > 0).all(axis=1)
    timed = both[["loop_s", "loop_s_ref"]].notna().all(axis=1)
    found = rows(both[stepped & timed], records)
    if found.facts.empty:
        return pd.DataFrame()
    every = pd.Series(True, index=found.records.index)
    sums = found.sums([*_STEPS, *SIDES])
    length = found.estimates(("accepted_tokens", "verify_steps"), ratio, every)
    cheaper = found.estimates(_STEPS, speedup_of, every)
    speedup = speedup_of(sums[list(SIDES)].to_numpy(dtype=np.float64))
    table = found.facts.assign(
        speedup=speedup,
        accepted=length.value,
        accepted_low=length.low,
        accepted_high=length.high,
        ref_ms=1000 * sums["loop_s_ref"] / sums["verify_steps_ref"],
        step_ms=1000 * sums["loop_s"] / sums["verify_steps"],
        cheaper=cheaper.value,
        cheaper_low=cheaper.low,
        cheaper_high=cheaper.high,
        product=length.value * cheaper.value,
        remainder=speedup / (length.value * cheaper.value) - 1,
        pairs=np.bincount(found.of),
    )
    return ordered(records, table)
