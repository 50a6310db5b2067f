"""Which differences are significant, the drift of the reference, and too few measurements."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.statistics import LEVEL, Estimates, Floats, estimates, holm
from reports.read.preparation import NAME, good
from reports.read.rows import Rows, ordered, rows

MIN_REPEATS, MIN_QUESTIONS = 3, 8  # fewer get a warning

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "Not distinguishable from the reference",
        "Null hypothesis: the row's speedup is 1. Two-sided test of the logarithm of the speedup "
        "over its jackknife error, Student's t; corrected by Holm's method for all rows of the "
        "page, so that the probability of any false difference among them is at most 5 %. The "
        "mark is shown where the corrected p is 0.05 or more, or the interval contains 1.",
    ),
    (
        "Not distinguishable from the fastest",
        "Null hypothesis: the row is as fast as the fastest lossless method of its panel (same "
        "run, model, question set, temperature, settings and reference), by the ratio of the two "
        "speedups over the turns that both have, question by question; corrected by Holm's method "
        "for the methods of the panel. Methods with defects, lossy ones and the stock row are "
        "never the fastest; lossy ones are not compared.",
    ),
    (
        "Relative to the fastest",
        "the method's speed divided by that of the fastest lossless method of its panel, over the "
        "turns that both have.",
    ),
    (
        "Verdict",
        "faster, slower or drifted where the test finds a difference and the interval does not "
        "contain 1; otherwise not distinguishable, or within the noise.",
    ),
    ("p", "of the test, corrected by Holm's method for the other tests of its kind."),
    (
        "Drift",
        "the reference's decode seconds per token in the last repeat divided by those in the "
        "first, over the turns that both have. Marked where it differs from 1 by more than its "
        "noise: p, corrected for all rows of the table, under 0.05. Repeats are interleaved method "
        "by method, so that drift affects all of them alike; it shows how steady the machine was.",
    ),
    (
        "Few measurements",
        f"marks rows with fewer than {MIN_REPEATS} repeats or fewer than {MIN_QUESTIONS} "
        "questions: their intervals rest on few values, and with a single repeat the noise of "
        "repeats is unknown.",
    ),
)

_TIMES = ("tokens", "decode_s")
_FASTEST = ("tokens_best", "decode_s_best", "tokens", "decode_s")


def distinct(p: Floats, found: Estimates) -> tuple[Floats, pd.Series[bool]]:
    """p corrected for the number of tests, and whether the figures differ from 1 significantly."""
    corrected = holm(p)
    beside = ~((found.low <= 1) & (found.high >= 1))
    return corrected, pd.Series((corrected < 1 - LEVEL) & beside)


def beside_fastest(both: Rows, table: pd.DataFrame, defective: Collection[Any]) -> pd.DataFrame:
    """The columns `fastest` (is it), `beside`, `beside_low`, `beside_high`, `beside_p` and `peer`
    (not distinguishable from the fastest) for the rows of a table of speedups.

    both: the rows of the pairs; defective: the names (NAME) of rows that gave wrong output.
    """
    names = list(table[list(NAME)].itertuples(index=False, name=None))
    held = ~table["reference"] & ~table["lossy"] & table["speedup"].notna()
    sound = np.array([name not in defective for name in names], dtype=bool)
    able = held & ~table["stock"] & sound
    first = table[able].sort_values("speedup", ascending=False, kind="stable")
    fastest = first.drop_duplicates("panel").set_index("panel")["row"]
    is_fastest = table["row"].isin(fastest)
    rivals = held & ~is_fastest & table["panel"].isin(fastest.index)
    found = _ratios(both, fastest, table["row"].where(rivals))
    p, apart = np.full(len(table), np.nan), np.zeros(len(table), dtype=bool)
    for places in table[rivals].groupby("panel").indices.values():
        at = np.flatnonzero(rivals)[places]
        part = Estimates(*(values[at] for values in found))
        p[at], apart[at] = distinct(part.p, part)
    return pd.DataFrame(
        {
            "fastest": is_fastest,
            "beside": found.value,
            "beside_low": found.low,
            "beside_high": found.high,
            "beside_p": p,
            "peer": rivals & np.isfinite(p) & ~apart,
        }
    )


def _ratios(both: Rows, fastest: pd.Series[int], rivals: pd.Series[float]) -> Estimates:
    """Each rival's speed over that of its panel's fastest row, in the order of `rivals`."""
    counted = both.records[both.records["counted"]]
    best = counted[counted["row"].isin(fastest)][["panel", "answer", "tokens", "decode_s"]]
    shared = counted[counted["row"].isin(rivals)].merge(
        best, on=["panel", "answer"], suffixes=("", "_best"), validate="many_to_one"
    )
    known = rivals.dropna()
    place = shared["row"].map(pd.Series(known.index, index=known))
    return estimates(
        place.to_numpy(dtype=np.int64),
        shared["question"].to_numpy(dtype=np.int64),
        shared["repeat"].to_numpy(dtype=np.int64),
        shared[list(_FASTEST)].to_numpy(dtype=np.float64),
        _speed,
        len(rivals),
    )


def _speed(parts: Floats) -> Floats:
    """[..., 4] tokens and seconds of the fastest, tokens and seconds of the row -> [...]."""
    tokens_best, seconds_best, tokens, seconds = np.moveaxis(parts, -1, 0)
    with np.errstate(all="ignore"):
        ratio: Floats = (tokens / seconds) / (tokens_best / seconds_best)
    return ratio


def drift(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each reference with two repeats or more: first and last (the repeats), first_ms
    and last_ms a token, drift, low, high, p (corrected), drifted.
    """
    known = good(records)
    timed = known[known["reference"] & known["timed"] & (known["tokens"] > 0)]
    ends = timed.groupby("row")["repeat"].agg(["min", "max"])
    ends = ends[ends["min"] < ends["max"]].astype(int)
    key = ["row", "prompt"]
    first, last = (timed[timed["repeat"] == timed["row"].map(ends[end])] for end in ("min", "max"))
    shared = first.reset_index().merge(last[[*key, *_TIMES]], on=key, suffixes=("", "_last"))
    found = rows(shared.set_index("index"), records)
    if found.facts.empty:
        return pd.DataFrame()
    names = ("tokens", "decode_s", "tokens_last", "decode_s_last")
    every = pd.Series(True, index=found.records.index)
    estimate = found.estimates(names, _slowdown, every)
    sums = found.sums(names)
    p, apart = distinct(estimate.p, estimate)
    table = found.facts.assign(
        first=found.facts["row"].map(ends["min"]),
        last=found.facts["row"].map(ends["max"]),
        first_ms=1000 * sums["decode_s"] / sums["tokens"],
        last_ms=1000 * sums["decode_s_last"] / sums["tokens_last"],
        prompts=found.distinct("question", every),
        drift=estimate.value,
        low=estimate.low,
        high=estimate.high,
        p=p,
        drifted=apart,
    )
    return ordered(records, table)


def drifts(records: pd.DataFrame, rows: pd.Series[int]) -> dict[str, pd.Series[Any]]:
    """The columns `drift` and `drifted` for a table's rows, of which only references have any."""
    table = drift(records)
    found = table.set_index("row") if len(table) else pd.DataFrame(columns=["drift", "drifted"])
    known = found[["drift", "drifted"]].reindex(rows).set_axis(rows.index)
    return {
        "drift": known["drift"].astype("float64"),
        "drifted": known["drifted"].eq(True),
    }


def _slowdown(parts: Floats) -> Floats:
    """Seconds a token of the last repeat over those of the first."""
    return 1 / _speed(parts)


def marks(row: Mapping[Any, Any]) -> list[str]:
    """The marks on a row of a table of speedups that concern its significance."""
    weak = few(row)
    found = [f"only {' and '.join(weak)}"] if weak else []
    if pd.notna(row.get("p")) and row.get("distinct") is False:
        found.append("not distinguishable from the reference")
    if row.get("drifted"):
        found.append(f"drifted by {100 * (row['drift'] - 1):+.1f} %")
    if row.get("peer"):
        found.append("not distinguishable from the fastest")
    return found


def few(row: Mapping[Any, Any]) -> list[str]:
    """What a row of a table of speedups has too few of, in words; nothing for other rows."""
    found: list[str] = []
    if row.get("repeats") is None or row["reference"] or row["synthetic"]:
        return found
    if 0 < row["repeats"] < MIN_REPEATS:
        found.append("1 repeat" if row["repeats"] == 1 else f"{row['repeats']} repeats")
    if 0 < row["prompts"] < MIN_QUESTIONS:
        found.append("1 question" if row["prompts"] == 1 else f"{row['prompts']} questions")
    return found
