"""Which method is fastest on which questions, for each model, question set and category."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd

from reports.measures import Definitions
from reports.measures.speedup import speedup
from reports.measures.throughput import SETTING
from reports.read.preparation import NAME, ROW, codes_of

ALL = "all"  # a question set's categories together

DEFINITIONS: Definitions = (
    (
        "Choice",
        "the fastest lossless method without defects on the questions of a category, on the engine "
        "where the model's fastest setting ran; the speedup and interval of its fastest parameters "
        "over those questions. Other methods after 'or' cannot be told from it: the test of Not "
        "distinguishable from the fastest, within the category. 'none' where no speedup is above "
        "1. Categories hold few questions.",
    ),
    (
        "Draft cost",
        "time of drafting in a step divided by the time of a token of the reference. Where a "
        "verify forward takes as long as the reference's, a method breaks even at an accepted "
        "length of 1 plus its draft cost.",
    ),
)


def choices(
    records: pd.DataFrame, speedups: pd.DataFrame, defective: Collection[Any] = ()
) -> pd.DataFrame:
    """The fastest lossless method of each model in each setting, by category, on the model's
    fastest engine: the row of `speedup`, `category`, which is ALL for a whole question set, and
    `others`, the names of the other methods that are not distinguishable from it.

    speedups: of the same records.
    """
    split = _by_category(records, speedups, defective)
    if split.empty:
        return split
    names = split[list(NAME)].itertuples(index=False, name=None)
    sound = pd.Series([name not in defective for name in names], index=split.index)
    peers = split[split["peer"] & ~split["stock"] & sound]
    found = split[split["fastest"]]
    others = [
        ", ".join(dict.fromkeys(same["method"][same["method"] != row.method]))
        for row in found.itertuples()
        for same in [peers[(peers["panel"] == row.panel) & (peers["category"] == row.category)]]
    ]
    return found.assign(others=others).reset_index(drop=True)


def _by_category(
    records: pd.DataFrame, speedups: pd.DataFrame, defective: Collection[Any]
) -> pd.DataFrame:
    """The rows of `speedup` of each model's fastest engine in each setting, with `category`."""
    known = speedups[speedups["tokens_per_s"].notna() & ~speedups["synthetic"]]
    if known.empty:
        return known
    fastest = known.sort_values("tokens_per_s", ascending=False, kind="stable")
    panels = fastest[~fastest["lossy"]].groupby(list(SETTING), dropna=False)["panel"].first()
    whole = speedups[speedups["panel"].isin(panels)].assign(category=ALL)
    shown = records[records["panel"].isin(panels)]
    split = shown.assign(
        row=codes_of(shown, ["row", "category"]), panel=codes_of(shown, ["panel", "category"])
    )
    category = split.drop_duplicates("row").set_index("row")["category"]
    parts = speedup(split, defective)
    if parts.empty or category.isna().all():
        return whole
    parts = parts.assign(category=parts["row"].map(category))
    several = parts.groupby(["model", "dataset"])["category"].transform("nunique") > 1
    return pd.concat([whole, parts[several]], ignore_index=True)


def costs(accepted: pd.DataFrame, shares: pd.DataFrame) -> pd.DataFrame:
    """The rows of `accepted` that drafted under the phase clock, on a real model whose reference
    did too, with `draft_cost`.

    shares: of the same records.
    """
    if accepted.empty or shares.empty:
        return accepted.iloc[:0]
    rows = accepted.merge(shares[[*ROW, "draft", "loop_ms"]], on=list(ROW), validate="one_to_one")
    token = rows[rows["reference"]].set_index("panel")["loop_ms"]  # milliseconds
    rows = rows.assign(draft_cost=rows["draft"] * rows["loop_ms"] / rows["panel"].map(token))
    return rows[~rows["reference"] & ~rows["stock"] & rows["draft_cost"].notna()]
