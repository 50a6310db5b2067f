"""Verify steps of many records as flat arrays: the tokens of each, and its position."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.statistics import Ints
from reports.read.rows import Rows


class Steps(NamedTuple):
    """[steps] each: the record's place, the tokens emitted, and the tokens of the answer before
    the step, of which prefill gave the first.
    """

    record: Ints
    length: Ints
    start: Ints


def flat(lengths: pd.Series[Any]) -> Steps:
    """lengths: `accept_lengths` of records; one without any has no step."""
    joined = array("i")  # takes lists and arrays, faster than numpy takes many small ones
    counts = np.zeros(len(lengths), dtype=np.int64)
    for place, (one, given) in enumerate(zip(lengths, lengths.notna(), strict=True)):
        if given:
            joined.extend(one)
            counts[place] = len(one)
    length = np.array(joined, dtype=np.int64)
    before = np.cumsum(length) - length
    first = np.repeat(np.cumsum(counts) - counts, counts)  # the step that each record starts with
    start = 1 + before - before[first] if len(length) else before
    return Steps(np.repeat(np.arange(len(counts)), counts), length, start)


def histograms(found: Rows) -> list[dict[int, int]]:
    """Of each row: {tokens emitted: steps}."""
    steps = flat(found.records["accept_lengths"])
    most = int(steps.length.max(initial=0)) + 1
    place = found.of[steps.record] * most + steps.length
    counts = np.bincount(place, minlength=len(found.facts) * most).reshape(-1, most)
    return [{int(at): int(line[at]) for at in np.flatnonzero(line)} for line in counts]
