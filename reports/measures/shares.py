"""Verification share: the decode loop's time by phase."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.records.runs import PHASES
from reports.measures import Definitions
from reports.measures.ratios import ratio
from reports.read.preparation import LOOP, good
from reports.read.rows import ordered, rows

DEFINITIONS: Definitions = (
    (
        "Verification share",
        "time in the target's verify forwards divided by the time of the decode loop, over all "
        "good records with the phase clock. The reference's whole forward is verify.",
    ),
    (
        "Draft, accept, other",
        "shares of drafting, of accepting tokens and keeping their path, and of the rest.",
    ),
    ("Verify ms/step", "time of one verify forward."),
    ("Loop ms/step", "time of the whole decode loop per verify step."),
)


def shares(records: pd.DataFrame) -> pd.DataFrame:
    """One row each: draft, verify, accept and other as shares of the loop, low and high of verify,
    verify_steps, verify_ms and loop_ms a step.
    """
    known = good(records)
    found = rows(known.assign(rest_s=known["loop_s"] - known["verify_s"]), records)
    if found.facts.empty:
        return pd.DataFrame()
    timed = found.records["loop_s"].notna()
    sums = found.sums((*LOOP, "loop_s", "verify_steps"), timed)
    loop, steps = sums["loop_s"], sums["verify_steps"]
    odds = found.estimates(("verify_s", "rest_s"), ratio, timed)
    table = found.facts.assign(
        **{phase: sums[f"{phase}_s"] / loop for phase in PHASES},
        low=odds.low / (1 + odds.low),
        high=odds.high / (1 + odds.high),
        verify_steps=steps.where(found.count(timed) > 0),
        verify_ms=1000 * sums["verify_s"] / steps,
        loop_ms=1000 * loop / steps,
    )
    return ordered(records, table.replace(np.inf, np.nan))
