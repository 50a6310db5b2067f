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
        "tokens that verify steps emitted divided by verify steps, over all good records: "
        "prefill's token is not counted, the bonus token of a step is. Plain decoding has 1.",
    ),
    ("Drafted only", "accepted length minus one: drafted tokens accepted per step."),
    (
        "Verify steps",
        "forwards of the target in the decode loop. Those of stock generate are unknown.",
    ),
    ("Nodes/step", "drafted nodes per verify step, the root not counted."),
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
