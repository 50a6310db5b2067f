"""Speedup and accepted length by category of question."""

from __future__ import annotations

import pandas as pd

from reports.measures import Definitions
from reports.measures.speedup import speedup_by

DEFINITIONS: Definitions = (
    (
        "Category",
        "speedup and, below it, its interval and the accepted length, as in their own tables, over "
        "one category's questions. Categories hold few questions: differences between them are "
        "uncertain.",
    ),
)


def by_category(records: pd.DataFrame) -> pd.DataFrame:
    """As `speedup_by`, by category."""
    return speedup_by(records, "category")
