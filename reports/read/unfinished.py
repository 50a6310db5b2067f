"""Runs with fewer records than they plan: what is missing, and the turns that all methods have."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from bench.records.completeness import Place, incomplete
from reports.read.companions import RunInfo
from reports.read.preparation import TUNING


def unfinished(runs: Iterable[RunInfo], records: pd.DataFrame) -> dict[str, list[str]]:
    """Of each run that is incomplete, what `incomplete` says."""
    found = {}
    for run in runs:
        own = records[records["run"] == run.name]
        if own.empty:
            continue
        own = own[list(Place._fields)].astype(object).where(own[list(Place._fields)].notna(), None)
        lines = incomplete(run.settings, map(Place._make, own.itertuples(index=False, name=None)))
        lines = [line for line in lines if f" of {TUNING} (" not in line]
        if lines:
            found[run.name] = lines
    return found


def in_common(records: pd.DataFrame, runs: Iterable[str]) -> pd.DataFrame:
    """Prepared records without those of turns and repeats that not every method of their panel has
    a record of, in the runs that are named. The stock row has none with the phase clock."""
    part = records["run"].isin(list(runs)) & records["prompt_id"].notna()
    own = records[part]
    rows = own.groupby("panel")["row"].nunique()
    stock = own[own["stock"]].groupby("panel")["row"].nunique().reindex(rows.index, fill_value=0)
    turns = own.groupby(["panel", "answer"]).agg(rows=("row", "nunique"), timed=("timed", "any"))
    panels = turns.index.get_level_values("panel")
    expected = (
        rows.loc[panels].to_numpy()
        - stock.loc[panels].where(~turns["timed"].to_numpy(), 0).to_numpy()
    )
    left_out = turns.index[turns["rows"].to_numpy() < expected]
    names = pd.MultiIndex.from_frame(records[["panel", "answer"]])
    return records[~(part & names.isin(left_out))].reset_index(drop=True)
