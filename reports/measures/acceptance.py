"""Accepted length: tokens for each verify step."""

from __future__ import annotations

import pandas as pd

from reports.measures import Definitions
from reports.measures.ratios import ratio
from reports.read.preparation import good
from reports.read.rows import ordered, rows
from reports.read.steps import histograms

DEFINITIONS: Definitions = (
    (
        "Accepted length",
        "tokens emitted by verify steps divided by verify steps, summed over all of the row's good "
        "records. The token that prefill gives is not counted, the bonus token of each step is; "
        "a step cut short by the end of the answer counts with the tokens kept. Plain "
        "autoregressive decoding has 1.",
    ),
    ("95 % interval", "as for the speedup, of the accepted length."),
    ("Drafted only", "accepted length minus one: the drafted tokens that were accepted per step."),
    (
        "Verify steps",
        "forwards of the target in the decode loop, over all of the row's good records.",
    ),
    (
        "Nodes/step",
        "drafted nodes per verify step, the root not counted: a verify forward is one wider.",
    ),
    (
        "Stock generate",
        "is timed as a whole: its verify steps and phases are unknown.",
    ),
)


def accepted(records: pd.DataFrame) -> pd.DataFrame:
    """One row each: accepted, drafted_only, low, high, histogram ({tokens emitted: steps}),
    verify_steps, nodes_per_step and draft_parameters.
    """
    found = rows(good(records), records)
    if found.facts.empty:
        return pd.DataFrame()
    facts, stepped = found.facts, found.records["verify_steps"] > 0
    length = found.estimates(("accepted_tokens", "verify_steps"), ratio, stepped)
    drafted = found.sums(("drafted", "verify_steps"), stepped & found.records["drafted"].notna())
    sure = ~facts["synthetic"] & ~facts["reference"]  # the reference has 1 by definition
    value = pd.Series(length.value).where(~facts["synthetic"])
    table = facts.assign(
        accepted=value,
        drafted_only=value - 1,
        low=pd.Series(length.low).where(sure),
        high=pd.Series(length.high).where(sure),
        histogram=pd.Series(histograms(found)),
        verify_steps=found.sums(["verify_steps"])["verify_steps"].where(~facts["stock"]),
        nodes_per_step=drafted["drafted"] / drafted["verify_steps"],
        draft_parameters=found.most("draft_parameters"),
    )
    return ordered(records, table)
