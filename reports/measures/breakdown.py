"""Where a speedup comes from: by factor, question, depth, position, context and temperature.

Every function takes records as `metrics.prepare` returns them, or rows of `metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.statistics import SAME, Ints
from reports.measures.metrics import Definitions, parted, ratio, speedup_of
from reports.read.preparation import Rows, good, ordered, pairs, rows
from reports.read.repetition import REPEATING
from reports.read.steps import flat

# Where the bins of positions in the answer and of tokens in the context start.
POSITIONS = (1, 33, 65, 129, 257, 513, 1025, 2049)
CONTEXTS = (0, 65, 129, 257, 513, 1025, 2049, 4097, 8193, 16385, 32769)
DEEPEST, MOST = 8, 8  # depths and tokens per step that have a column

# ---------------------------------------------------------------------------------- factors

FACTORS: Definitions = (
    (
        "Speedup = accepted length × t_ref / t_step",
        "a method gains by the tokens that a step gives and loses by what a step costs more than "
        "one of the reference. All four are of the same records: the pairs of the speedup in which "
        "both sides have times by phase.",
    ),
    ("t_ref", "time of the reference's decode loop per verify step: one token."),
    ("t_step", "time of the method's decode loop per verify step, drafting included."),
    (
        "t_ref / t_step",
        "how much of a method's step one of the reference's takes; its 95 % interval below it.",
    ),
    ("Product", "accepted length × t_ref / t_step."),
    (
        "Remainder",
        "speedup / (accepted length × t_ref / t_step) - 1. The speedup is of the host's clock, the "
        "two times are of the phases; the remainder is what lies between the clocks.",
    ),
)

_STEPS = ("loop_s_ref", "verify_steps_ref", "loop_s", "verify_steps")
_SIDES = ("decode_s_ref", "tokens_ref", "decode_s", "tokens")


def factors(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method: speedup, accepted, accepted_low, accepted_high, ref_ms, step_ms,
    cheaper (t_ref / t_step), cheaper_low, cheaper_high, product, remainder and pairs.
    """
    both = pairs(records)
    both = both[~both["reference"] & ~both["synthetic"] & both["counted"]]
    stepped = (both[["verify_steps", "verify_steps_ref"]] > 0).all(axis=1)
    timed = both[["loop_s", "loop_s_ref"]].notna().all(axis=1)
    found = rows(both[stepped & timed], records)
    if found.facts.empty:
        return pd.DataFrame()
    every = pd.Series(True, index=found.records.index)
    sums = found.sums([*_STEPS, *_SIDES])
    length = found.estimates(("accepted_tokens", "verify_steps"), ratio, every)
    cheaper = found.estimates(_STEPS, speedup_of, every)
    speedup = speedup_of(sums[list(_SIDES)].to_numpy(dtype=np.float64))
    table = found.facts.assign(
        speedup=speedup,
        accepted=length.value,
        accepted_low=length.low,
        accepted_high=length.high,
        ref_ms=1000 * sums["loop_s_ref"] / sums["verify_steps_ref"],
        step_ms=1000 * sums["loop_s"] / sums["verify_steps"],
        cheaper=cheaper.value,
        cheaper_low=cheaper.low,
        cheaper_high=cheaper.high,
        product=length.value * cheaper.value,
        remainder=speedup / (length.value * cheaper.value) - 1,
        pairs=np.bincount(found.of),
    )
    return ordered(records, table)


# ---------------------------------------------------------------------------------- questions

QUESTIONS: Definitions = (
    (
        "Question",
        "speedup and accepted length over all turns and repeats of one question, each a ratio of "
        "sums as in their own tables.",
    ),
    ("Questions", "those with a pair that counts."),
    ("Slowest, median, fastest", "the speedups of single questions; which one below."),
    ("Slower than the reference", "questions on which the method takes longer per token."),
    (
        "Correlation",
        "of the logarithms of speedup and accepted length over questions (Pearson). Near 1 where "
        "what a question gains is a matter of how well it can be drafted.",
    ),
)


def questions(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and question: prompt_id, speedup and accepted."""
    both = pairs(records)
    both = both[~both["reference"] & ~both["synthetic"] & both["counted"]]
    found = rows(both, records, ["question"])
    if found.facts.empty:
        return pd.DataFrame()
    sums = found.sums([*_SIDES, "accepted_tokens", "verify_steps"])
    first = np.unique(found.of, return_index=True)[1]
    table = found.facts.assign(
        prompt_id=found.records["prompt_id"].iloc[first].to_numpy(),
        speedup=speedup_of(sums[list(_SIDES)].to_numpy(dtype=np.float64)),
        accepted=sums["accepted_tokens"] / sums["verify_steps"].where(sums["verify_steps"] > 0),
    )
    return ordered(records, table)


def spread(single: pd.DataFrame) -> pd.DataFrame:
    """Rows of `questions` in one row for each method: slowest, median, fastest with the questions
    slowest_id and fastest_id, slower, count and correlation.
    """
    known = single.dropna(subset=["speedup"]) if len(single) else single
    groups = known.groupby("row", sort=False) if len(known) else ()
    return pd.DataFrame([_spread(group) for _, group in groups])


def _spread(group: pd.DataFrame) -> dict[str, Any]:
    lines = group.sort_values("speedup", kind="stable").to_dict("records")
    slowest, fastest = lines[0], lines[-1]
    return {
        **{str(name): value for name, value in slowest.items()},
        "slowest": slowest["speedup"],
        "slowest_id": slowest["prompt_id"],
        "median": float(group["speedup"].median()),
        "fastest": fastest["speedup"],
        "fastest_id": fastest["prompt_id"],
        "slower": int((group["speedup"] < 1).sum()),
        "count": len(group),
        "correlation": _correlation(group),
    }


def _correlation(group: pd.DataFrame) -> float:
    logs = np.log(group[["speedup", "accepted"]].dropna().to_numpy(dtype=np.float64)).T
    if logs.shape[1] < 3 or (logs.std(axis=1) < SAME).any():
        return np.nan
    return float(np.corrcoef(logs)[0, 1])


# ---------------------------------------------------------------------------------- steps

DEPTHS: Definitions = (
    (
        "Tokens per step",
        "share of the verify steps that emitted that many tokens, the bonus token included.",
    ),
    (
        "Depth",
        "share of the verify steps that accepted at least that many drafted tokens; below it, the "
        "share of those that accepted all shallower ones. A step that the end of the answer cut "
        "short counts with what was kept of it.",
    ),
)


def by_depth(lengths: pd.DataFrame) -> pd.DataFrame:
    """One row for each row of `metrics.accepted` and depth from 1: depth, reached (share of steps
    that accept as many drafted tokens or more) and onward (of those that accept all before).
    """
    lines: list[dict[str, Any]] = []
    for row in _drafting(lengths):
        steps = np.array(_counts(row["histogram"], DEEPEST + 1))  # that emit 1, 2, ... tokens
        accept = steps[::-1].cumsum()[::-1]  # that accept 0, 1, ... drafted tokens or more
        lines += [
            {
                **row,
                "depth": depth,
                "reached": accept[depth] / accept[0],
                "onward": accept[depth] / accept[depth - 1] if accept[depth - 1] else np.nan,
            }
            for depth in range(1, len(accept))
        ]
    return pd.DataFrame(lines)


def by_tokens(lengths: pd.DataFrame) -> pd.DataFrame:
    """One row for each row of `metrics.accepted` and number of tokens from 1 to MOST, which counts
    for all above it: tokens and share (of the steps that emit as many).
    """
    return pd.DataFrame(
        [
            {**row, "tokens": at + 1, "share": count / sum(row["histogram"].values())}
            for row in _drafting(lengths)
            for at, count in enumerate(_counts(row["histogram"], MOST))
        ]
    )


def _drafting(lengths: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows that have accepted lengths of a draft."""
    if lengths.empty:
        return []
    known = lengths[lengths["accepted"].notna() & ~lengths["reference"]]
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def _counts(histogram: dict[int, int], most: int) -> list[int]:
    """Steps that emit 1, 2, ... tokens, up to the most there are; the last of `most` counts all
    above it too."""
    counts = [0] * min(most, max(histogram))
    for tokens, steps in histogram.items():
        counts[min(tokens, most) - 1] += steps
    return counts


POSITION: Definitions = (
    (
        "Position",
        "accepted length of the verify steps whose first token is the answer's token of that "
        "number (prefill gives number 0), and the number of steps below.",
    ),
)
CONTEXT: Definitions = (
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


def by_position(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and bin of POSITIONS: bin, accepted and steps."""
    found = _stepped(records)
    return _binned(records, found, np.zeros(len(found.records), dtype=np.int64), POSITIONS)


def by_context(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and bin of CONTEXTS: bin, accepted and steps."""
    found = _stepped(records)
    prompt = found.records["prompt_tokens"].to_numpy(dtype=np.int64)
    return _binned(records, found, prompt, CONTEXTS)


def by_prompt(records: pd.DataFrame) -> pd.DataFrame:
    """As `metrics.parted`, by the bin of CONTEXTS that the prompt's length is in."""
    known = records[~records["synthetic"] & records["ok"]]
    return parted(known.assign(bin=_bins(known["prompt_tokens"], CONTEXTS)), "bin")


def name_of(edges: Sequence[int], at: int) -> str:
    """A bin in words: 33–64, 2,049 and more."""
    if at + 1 == len(edges):
        return f"{edges[at]:,} and more"
    return f"{edges[at]:,}–{edges[at + 1] - 1:,}"


def _stepped(records: pd.DataFrame) -> Rows:
    known = good(records)
    stepped = ~known["synthetic"] & ~known["reference"] & (known["verify_steps"] > 0)
    return rows(known[stepped], records)


def _bins(tokens: Any, edges: Sequence[int]) -> Ints:
    """The bin of each count."""
    counts = np.asarray(tokens, dtype=np.int64)
    known = np.searchsorted(edges, np.arange(counts.max(initial=0) + 1), side="right") - 1
    found: Ints = np.maximum(known, 0)[counts]
    return found


def _binned(records: pd.DataFrame, found: Rows, known: Ints, edges: Sequence[int]) -> pd.DataFrame:
    """Steps by what their record knows [records] and the answer's tokens before them."""
    if found.facts.empty:
        return pd.DataFrame()
    steps = flat(found.records["accept_lengths"])
    bins = _bins(steps.start + known[steps.record], edges)
    place, size = found.of[steps.record] * len(edges) + bins, len(found.facts) * len(edges)
    counts = np.bincount(place, minlength=size)
    tokens = np.bincount(place, weights=steps.length, minlength=size)
    filled = np.flatnonzero(counts)
    table = found.facts.iloc[filled // len(edges)].assign(
        bin=filled % len(edges),
        accepted=tokens[filled] / counts[filled],
        steps=counts[filled],
    )
    return ordered(records, table.reset_index(drop=True))


# ---------------------------------------------------------------------------------- temperature

TEMPERATURES: Definitions = (
    (
        "Temperature",
        "speedup at that temperature, its interval and the accepted length below. Greedy decoding "
        "is temperature 0; at others the answers of method and reference differ, and seconds per "
        "token are compared.",
    ),
)

# ---------------------------------------------------------------------------------- repetition

LOOPS: Definitions = (
    (
        "Repetition",
        "share of an answer's 4-grams of token ids that occurred in it before: 1 - distinct "
        "4-grams / 4-grams (seq-rep-4 of Welleck et al. 2020, arXiv 1908.04319); 0 for an answer "
        "of fewer than four tokens. Mean over the row's good answers.",
    ),
    ("Good answers", "those of the row's records that are no failures."),
    (
        "Repeating answers",
        f"those with a repetition above {REPEATING:g}, as a share of the row's good answers.",
    ),
    (
        "Accepted, repeating or not",
        "the accepted length over answers that repeat themselves, and over those that do not.",
    ),
    ("Loops' part", "the speedup divided by the speedup on answers that do not repeat, minus one."),
)


def loops(records: pd.DataFrame, speedups: pd.DataFrame) -> pd.DataFrame:
    """Rows of `metrics.speedup` with repetition, answers, repeating (share), accepted_repeating,
    accepted_other and loops (the part of the speedup that is due to them).
    """
    if speedups.empty:
        return speedups
    whole = good(records)
    found = rows(whole[~whole["synthetic"]], records)
    known = found.records["repetition"]
    table = pd.DataFrame({"row": found.facts["row"], "answers": np.bincount(found.of)})
    table["repetition"] = known.groupby(found.of).mean()
    table["repeating"] = found.count(known > REPEATING) / found.count(known.notna())
    names = ("accepted_tokens", "verify_steps")
    for name, which in (("repeating", known > REPEATING), ("other", known <= REPEATING)):
        sums = found.sums(names, which & (found.records["verify_steps"] > 0))
        table[f"accepted_{name}"] = sums["accepted_tokens"] / sums["verify_steps"]
    merged = speedups.merge(table, how="inner", on="row", validate="one_to_one")
    return merged.assign(loops=merged["speedup"] / merged["non_repeating"] - 1)
