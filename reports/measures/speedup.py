"""Speedup over the reference, with its interval; of all records, and by the values of a column."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from bench.statistics import METHOD
from reports.measures import Definitions
from reports.measures.ratios import SIDES, speedup_of
from reports.measures.significance import beside_fastest, distinct, drifts
from reports.read.preparation import pairs
from reports.read.repetition import REPEATING
from reports.read.rows import Rows, ordered, rows

DEFINITIONS: Definitions = (
    (
        "Speedup",
        "decode seconds per token of the reference (plain autoregressive decoding on the same "
        "engine) divided by those of the method: sums over paired records. Decode seconds run from "
        "the first token to the last; tokens are those after the first.",
    ),
    (
        "Pairs",
        "records of the method and of the reference that share every setting, the prompt and the "
        "repeat. Stock transformers.generate is paired with the reference on eager, or on the "
        "first engine that was run. Pairs with one token on either side are left out and counted. "
        "Times are of repeats without the phase clock, which costs time itself; accepted lengths "
        "are of all repeats.",
    ),
    ("95 % interval", METHOD),
    (
        "End to end",
        "the speedup with the time to the first token, the draft's prefill and the first token in.",
    ),
    (
        "Non-repeating",
        "the speedup over pairs in which neither answer repeats itself (repetition at most "
        f"{REPEATING:g}). Loops are easy to draft and flatter every method.",
    ),
    ("Questions", "how many the pairs cover."),
    ("Median", "of the speedups of single pairs."),
    ("Tokens/s", "tokens after the first per decode second, without the phase clock."),
    ("Draft parameters", "parameters of the draft that the target does not have."),
)

_WHOLE = ("total_s_ref", "new_tokens_ref", "total_s", "new_tokens")


def speedup(records: pd.DataFrame, defective: Collection[Any] = ()) -> pd.DataFrame:
    """One row each: speedup, low, high, p, distinct (from 1), median, end_to_end and non_repeating
    with their `_low` and `_high`, non_repeating_pairs, tokens_per_s, draft_parameters,
    pairs, prompts, repeats, one_token (pairs left out), unpaired, and what
    `beside_fastest` and `drifts` of `significance` add. The reference's speedup is 1 by
    definition.

    defective: the names (NAME) of rows with wrong output.
    """
    found = rows(pairs(records), records)
    if found.facts.empty:
        return pd.DataFrame()
    both, known = found.records, ~found.facts["synthetic"]
    compared = known & ~found.facts["reference"]
    timed = found.sums(("tokens", "decode_s"), both["timed"] & (both["tokens"] > 0))
    table = found.facts.assign(
        **_speedups(found, compared),
        **_other_speedups(found, compared),
        tokens_per_s=(timed["tokens"] / timed["decode_s"]).where(known & (timed["decode_s"] > 0)),
        draft_parameters=found.most("draft_parameters"),
        pairs=found.count(both["counted"]),
        prompts=found.distinct("question", both["counted"]),
        repeats=found.distinct("repeat", both["counted"]),
        one_token=found.count(both["paired"] & both["timed"] & ~both["decoded"]),
        unpaired=found.count(~both["paired"] & both["timed"]),
    )
    ones = ["speedup", "median", "end_to_end", "non_repeating"]
    table.loc[known & found.facts["reference"], ones] = 1.0
    table = table.join(beside_fastest(found, table, defective))
    return ordered(records, table.assign(**drifts(records, table["row"])))


def _speedups(found: Rows, compared: pd.Series[bool]) -> dict[str, Any]:
    """The speedup with its interval, nan where a row is not `compared`."""
    figure = found.estimates(SIDES, speedup_of, found.records["counted"])
    value, low, high, p = (np.where(compared, values, np.nan) for values in figure)
    corrected, apart = distinct(p, figure)
    return {"speedup": value, "low": low, "high": high, "p": corrected, "distinct": apart}


def _other_speedups(found: Rows, compared: pd.Series[bool]) -> dict[str, Any]:
    """Of single pairs, of whole answers and of answers that do not repeat themselves."""
    both = found.records
    varied = both["counted"] & (both[["repetition", "repetition_ref"]] <= REPEATING).all(axis=1)
    pair = speedup_of(both.loc[both["counted"], list(SIDES)].to_numpy(dtype=np.float64))
    columns: dict[str, Any] = {"median": found.median(pair, both["counted"]).where(compared)}
    for name, sides, which in (
        ("end_to_end", _WHOLE, both["paired"] & both["timed"]),
        ("non_repeating", SIDES, varied),
    ):
        figure = found.estimates(sides, speedup_of, which)
        value, low, high = (np.where(compared, values, np.nan) for values in figure[:3])
        columns |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return {**columns, "non_repeating_pairs": found.count(varied)}


def speedup_by(records: pd.DataFrame, by: str) -> pd.DataFrame:
    """Every row and value of the column `by`: speedup, low, high, p and distinct as of `speedup`,
    accepted, answers (good records), pairs and prompts.
    """
    both = pairs(records)
    if by not in both:
        both[by] = records[by]
    found = rows(both, records, [by])
    if found.facts.empty:
        return pd.DataFrame()
    known, counted = ~found.facts["synthetic"], found.records["counted"]
    sums = found.sums(("accepted_tokens", "verify_steps"), found.records["verify_steps"] > 0)
    table = found.facts.assign(
        **_speedups(found, known & ~found.facts["reference"]),
        accepted=(sums["accepted_tokens"] / sums["verify_steps"]).where(known),
        answers=np.bincount(found.of),
        pairs=found.count(counted),
        prompts=found.distinct("question", counted),
    )
    table.loc[known & found.facts["reference"], "speedup"] = 1.0
    return ordered(records, table)
