"""Records without figures, and records with warnings."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.measures import Definitions
from reports.read.preparation import NAME, each, number
from reports.read.rows import ordered, rows

DEFINITIONS: Definitions = (
    (
        "Failures",
        "are kept in the records with their reason and without figures, and count in no other "
        "table. A failure that a later attempt fixed is not listed.",
    ),
    ("Records, first warning", "how many records it concerns, and the first warning among them."),
)

_ATTEMPT = (*NAME, "reference_engine", "device")


def failures(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and reason: status, error and count."""
    found = rows(records[~records["ok"]], records, by=(*_ATTEMPT, "status", "error"))
    return ordered(records, found.facts.assign(count=np.bincount(found.of)))


def warnings(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method whose good records carry warnings: count of records, first text."""
    warned = records[records["ok"] & (number(each(records["warnings"], len)) > 0)]
    found = rows(warned, records, by=_ATTEMPT)
    first = warned["warnings"].groupby(found.of).first().map(lambda lines: lines[0])
    return ordered(records, found.facts.assign(count=np.bincount(found.of), first=first))
