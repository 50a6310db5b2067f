"""Accepted length by the tokens known to a step, speedup by the prompt's length."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.measures import Definitions
from reports.measures.bins import binned, bins_of, stepped
from reports.measures.speedup import speedup_by

DEFINITIONS: Definitions = (
    (
        "Context",
        "accepted length of the verify steps that start with that many tokens known, prompt and "
        "answer together, and the number of steps below.",
    ),
    (
        "Prompt length",
        "speedup on answers to prompts of that many tokens; its interval and the accepted length "
        "below.",
    ),
)

# Where the bins of tokens in the context start.
CONTEXTS = (0, 65, 129, 257, 513, 1025, 2049, 4097, 8193, 16385, 32769)


def by_context(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and bin of CONTEXTS: bin, accepted and steps."""
    found = stepped(records)
    prompt = found.records["prompt_tokens"].to_numpy(dtype=np.int64)
    return binned(records, found, prompt, CONTEXTS)


def by_prompt(records: pd.DataFrame) -> pd.DataFrame:
    """As `speedup_by`, by the bin of CONTEXTS that the prompt's length is in."""
    known = records[~records["synthetic"] & records["ok"]]
    return speedup_by(known.assign(bin=bins_of(known["prompt_tokens"], CONTEXTS)), "bin")
