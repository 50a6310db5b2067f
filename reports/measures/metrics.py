"""The one definition of every figure in the report: pandas in, pandas out.

Every function takes records as `prepare` returns them. The definition texts stand beside the
functions and are printed under the tables.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from bench.records.runs import PHASES
from bench.statistics import METHOD, Floats
from reports.measures import significance as sureness_metrics
from reports.read.preparation import (
    LOOP,
    NAME,
    ROW,
    SETTINGS,
    TUNING,
    Rows,
    each,
    good,
    number,
    ordered,
    pairs,
    prepare,
    rows,
)
from reports.read.repetition import REPEATING
from reports.read.steps import histograms

__all__ = ["NAME", "ROW", "SETTINGS", "TUNING", "pairs", "prepare"]

Definitions: TypeAlias = tuple[tuple[str, str], ...]

# ---------------------------------------------------------------------------------- speedup

SPEEDUP: Definitions = (
    (
        "Speedup",
        "decode seconds per token of the reference divided by those of the method, each as a sum "
        "of seconds over a sum of tokens, over paired records. Decode seconds run from the first "
        "token to the end of the loop; the tokens are those after the first. The reference is "
        "plain autoregressive decoding on the same engine.",
    ),
    (
        "Pairs",
        "records of the method and of the reference with equal run, model, engine, dtype, device, "
        "question set, temperature, token limit, question, turn, repeat and prompt. The row of "
        "stock transformers.generate is held against the reference on the engine eager (or the "
        "first engine that was run). Failures count nowhere. Pairs in which either side has one "
        "token only have no decode time per token: they are left out and counted.",
    ),
    ("95 % interval", METHOD),
    (
        "End to end",
        "the same ratio over all pairs with the time to the first token in the seconds (the "
        "draft's own prefill included) and the first token in the tokens; its interval below it.",
    ),
    (
        "Non-repeating",
        "the speedup over the pairs in which neither answer repeats itself (both have a "
        f"repetition of at most {REPEATING:g}), with their number and the interval below it. Loops "
        "are easy to draft, so that they flatter every method that drafts.",
    ),
    ("Median", "of the speedups of single pairs."),
    ("Questions, repeats", "how many of each the pairs are of."),
    ("Tokens/s", "tokens after the first per decode second, over all of the row's good records."),
    ("Draft parameters", "parameters of the draft that the target does not have."),
    ("Peak memory", "highest memory that any of the row's records saw."),
    (
        "Synthetic models",
        "have random weights: nothing they accept says anything, so that no speedup and no "
        "accepted length is reported for them, only costs and shares.",
    ),
)

SIDES = ("decode_s_ref", "tokens_ref", "decode_s", "tokens")
_WHOLE = ("total_s_ref", "new_tokens_ref", "total_s", "new_tokens")


def speedup(records: pd.DataFrame, defective: Collection[Any] = ()) -> pd.DataFrame:
    """One row each: speedup, low, high, p, distinct (from 1), median, end_to_end and non_repeating
    with their `_low` and `_high`, non_repeating_pairs, tokens_per_s, draft_parameters,
    peak_memory_bytes, pairs, prompts, repeats, one_token (pairs left out), unpaired, and what
    `beside_fastest` and `drifts` of `reports.sureness_metrics` add. The reference's speedup is 1 by
    definition.

    defective: the names (NAME) of rows with wrong output.
    """
    found = rows(pairs(records), records)
    if found.facts.empty:
        return pd.DataFrame()
    both, known = found.records, ~found.facts["synthetic"]
    compared = known & ~found.facts["reference"]
    timed = found.sums(("tokens", "decode_s"), both["tokens"] > 0)
    table = found.facts.assign(
        **_speedups(found, compared),
        **_other_speedups(found, compared),
        tokens_per_s=(timed["tokens"] / timed["decode_s"]).where(known & (timed["decode_s"] > 0)),
        draft_parameters=found.most("draft_parameters"),
        peak_memory_bytes=found.most("peak_memory_bytes"),
        pairs=found.count(both["counted"]),
        prompts=found.distinct("question", both["counted"]),
        repeats=found.distinct("repeat", both["counted"]),
        one_token=found.count(both["paired"] & ~both["counted"]),
        unpaired=found.count(~both["paired"]),
    )
    ones = ["speedup", "median", "end_to_end", "non_repeating"]
    table.loc[known & found.facts["reference"], ones] = 1.0
    table = table.join(sureness_metrics.beside_fastest(found, table, defective))
    return ordered(records, table.assign(**sureness_metrics.drifts(records, table["row"])))


def _speedups(found: Rows, compared: pd.Series[bool]) -> dict[str, Any]:
    """The speedup with its interval, nan where a row is not `compared`."""
    figure = found.estimates(SIDES, speedup_of, found.records["counted"])
    value, low, high, p = (np.where(compared, values, np.nan) for values in figure)
    corrected, distinct = sureness_metrics.distinct(p, figure)
    return {"speedup": value, "low": low, "high": high, "p": corrected, "distinct": distinct}


def _other_speedups(found: Rows, compared: pd.Series[bool]) -> dict[str, Any]:
    """Of single pairs, of whole answers and of answers that do not repeat themselves."""
    both = found.records
    varied = both["counted"] & (both[["repetition", "repetition_ref"]] <= REPEATING).all(axis=1)
    pair = speedup_of(both.loc[both["counted"], list(SIDES)].to_numpy(dtype=np.float64))
    columns: dict[str, Any] = {"median": found.median(pair, both["counted"]).where(compared)}
    for name, sides, which in (
        ("end_to_end", _WHOLE, both["paired"]),
        ("non_repeating", SIDES, varied),
    ):
        figure = found.estimates(sides, speedup_of, which)
        value, low, high = (np.where(compared, values, np.nan) for values in figure[:3])
        columns |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return {**columns, "non_repeating_pairs": found.count(varied)}


def speedup_of(sides: Floats) -> Floats:
    """[..., 4] reference seconds and tokens, method's seconds and tokens -> [...]."""
    seconds_ref, tokens_ref, seconds, tokens = np.moveaxis(sides, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = (seconds_ref / tokens_ref) / (seconds / tokens)
    return ratio


def ratio(parts: Floats) -> Floats:
    """[..., 2] -> [...]: the first over the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = parts[..., 0] / parts[..., 1]
    return found


# ---------------------------------------------------------------------------------- acceptance

ACCEPTED: Definitions = (
    (
        "Accepted length",
        "tokens emitted by verify steps divided by verify steps, summed over all of the row's good "
        "records. The token that prefill gives is not counted, the bonus token of each step is; "
        "a step cut short by the end of the answer counts with what was kept of it. Plain "
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
        "is run whole: its verify steps and phases are not seen.",
    ),
)


def accepted(records: pd.DataFrame) -> pd.DataFrame:
    """One row each: accepted, drafted_only, low, high, histogram ({tokens emitted: steps}),
    verify_steps, nodes_per_step, draft_parameters and peak_memory_bytes.
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
        peak_memory_bytes=found.most("peak_memory_bytes"),
    )
    return ordered(records, table)


# ---------------------------------------------------------------------------------- shares

SHARES: Definitions = (
    (
        "Verification share",
        "time in the target's verify forwards divided by the time of the decode loop, both summed "
        "over all of the row's good records. The reference's whole forward is verify.",
    ),
    ("95 % interval", "as for the speedup, of the verification share (of its odds)."),
    (
        "Draft, accept, other",
        "shares of making drafts, of the acceptance rule with keeping the accepted path, and of "
        "all else in the loop. The four are measured between marks; the loop's time is their sum.",
    ),
    ("Verify ms/step", "time of one verify forward. Context only: it is no figure of merit."),
    ("Loop ms/step", "time of the whole decode loop per verify step, drafting included."),
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


# ---------------------------------------------------------------------------------- categories

CATEGORIES: Definitions = (
    (
        "Category",
        "speedup and, below it, its interval and the accepted length, as in their own tables, over "
        "one category's questions. Categories hold few questions: read differences between them "
        "with care.",
    ),
)


def parted(records: pd.DataFrame, by: str) -> pd.DataFrame:
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


def by_category(records: pd.DataFrame) -> pd.DataFrame:
    """As `parted`, by category."""
    return parted(records, "category")


# ---------------------------------------------------------------------------------- same output

MATCHES: Definitions = (
    (
        "Match rate",
        "outputs with ids equal to the reference's, length first, divided by outputs compared.",
    ),
    (
        "Compared, equal",
        "outputs held against the reference's of the same turn and repeat, and those of the same "
        "ids.",
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
        "the place of an answer's first id that differs, from 0, and how far apart the target's "
        "logits of the two ids are there.",
    ),
    ("Lossy", "methods change the distribution of the output by design and are not held to it."),
)

AUDIT = ("compared", "equal", "ties", "defects")
# Optional keys of an audit's rows: of lossy methods, and what else was tested.
QUALITY = ("agreement", "reference_agreement", "perplexity", "reference_perplexity")
TESTED = ("reruns", "sampling")


def matches(records: pd.DataFrame, audited: pd.DataFrame) -> pd.DataFrame:
    """Every row but the reference's beside its audit: compared, equal, ties, defects, match_rate.

    audited: the rows of the audits with the columns of NAME and AUDIT; may be empty.
    """
    table = ordered(records, rows(good(records), records).facts)
    if table.empty:
        return table
    known = audited.reindex(columns=[*NAME, *AUDIT, *QUALITY, *TESTED])
    if audited.empty:
        table = table.assign(**dict.fromkeys((*AUDIT, *QUALITY, *TESTED), np.nan))
    else:
        known = known.drop_duplicates(list(NAME), keep="last")
        table = table.merge(known, how="left", on=list(NAME), validate="many_to_one")
    table = table[~table["reference"]].reset_index(drop=True)
    compared = number(table["compared"])
    rate = (number(table["equal"]) / compared).where(compared > 0)
    return table.assign(match_rate=rate, **{name: number(table[name]) for name in QUALITY})


# ---------------------------------------------------------------------------------- published

PUBLISHED: Definitions = (
    (
        "Published",
        "as the source states it, measured by its authors on their machine, with their weights and "
        "their baseline. An average is not split by model, question set or temperature.",
    ),
    (
        "Measured here",
        "rows of the speedup table of the same method, models and question sets, with whatever "
        "machine, weights, parameters and number of questions the records were made with.",
    ),
)


# ---------------------------------------------------------------------------------- failures

_ATTEMPT = (*NAME, "reference_engine", "device")

FAILURES: Definitions = (
    (
        "Failures",
        "are kept in the records with their reason and without any figure, and are counted in no "
        "table. A failure that a later attempt mended is not listed.",
    ),
    ("Records, first warning", "how many records say so, and what the first of them says."),
)


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
