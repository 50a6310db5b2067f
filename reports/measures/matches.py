"""Whether outputs equal the reference's, from the audits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.measures import Definitions
from reports.read.companions import AUDIT_COUNTS, QUALITY, TESTED
from reports.read.preparation import NAME, good, number
from reports.read.rows import ordered, rows

DEFINITIONS: Definitions = (
    (
        "Match rate",
        "outputs with ids equal to the reference's, length first, divided by outputs compared.",
    ),
    (
        "Compared, equal",
        "outputs compared with the reference's of the same turn and repeat, and those with the "
        "same ids.",
    ),
    (
        "Lossless",
        "in float32 every output equals the reference's. A first difference where the reference's "
        "two best logits are closer than 1e-3 is run again in float64 and must agree there; "
        "otherwise it is a defect.",
    ),
    (
        "Ties and defects",
        "in half precision a first difference is a tie when the gap between the two best logits is "
        "within the precision's noise, otherwise a defect.",
    ),
    (
        "Position, gap of logits",
        "the position of an answer's first id that differs, from 0, and the difference of the "
        "target's logits of the two ids there.",
    ),
    (
        "Lossy",
        "methods change the output distribution by design; equality is not required of them.",
    ),
)


def matches(records: pd.DataFrame, audited: pd.DataFrame) -> pd.DataFrame:
    """Every row but the reference's with its audit: compared, equal, ties, defects, match_rate.

    audited: the rows of the audits with the columns of NAME and AUDIT_COUNTS; may be empty.
    """
    table = ordered(records, rows(good(records), records).facts)
    if table.empty:
        return table
    known = audited.reindex(columns=[*NAME, *AUDIT_COUNTS, *QUALITY, *TESTED])
    if audited.empty:
        table = table.assign(**dict.fromkeys((*AUDIT_COUNTS, *QUALITY, *TESTED), np.nan))
    else:
        known = known.drop_duplicates(list(NAME), keep="last")
        table = table.merge(known, how="left", on=list(NAME), validate="many_to_one")
    table = table[~table["reference"]].reset_index(drop=True)
    compared = number(table["compared"])
    rate = (number(table["equal"]) / compared).where(compared > 0)
    return table.assign(match_rate=rate, **{name: number(table[name]) for name in QUALITY})


AuditRow = Mapping[str, Any]  # a row of audit.json


def defective(entry: AuditRow) -> bool:
    """Whether an audit's row shows a defect in its answers, their reruns or its samples."""
    refused = (entry.get("sampling") or {}).get("passed") is False
    return bool(entry["defects"] or (entry.get("reruns") or {}).get("defects") or refused)
