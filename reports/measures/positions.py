"""Accepted length by position in the answer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.measures import Definitions
from reports.measures.bins import binned, stepped

DEFINITIONS: Definitions = (
    (
        "Position",
        "accepted length of the verify steps whose first token is the answer's token of that "
        "number (prefill gives number 0), and the number of steps below.",
    ),
)

# Where the bins of positions in the answer start.
POSITIONS = (1, 33, 65, 129, 257, 513, 1025, 2049)


def by_position(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and bin of POSITIONS: bin, accepted and steps."""
    found = stepped(records)
    return binned(records, found, np.zeros(len(found.records), dtype=np.int64), POSITIONS)
