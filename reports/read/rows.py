"""Rows of tables: which records are in each, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.statistics import Estimates, Figure, Floats, Ints, estimates
from reports.read.preparation import FLAGS, MISSED, REFERENCE_ENGINES, ROW, codes_of, number


@dataclass(frozen=True)
class Rows:
    """Rows of a future table: the facts that name each, and the row of every record [records]."""

    facts: pd.DataFrame
    records: pd.DataFrame
    of: Ints

    def sums(self, columns: Sequence[str], which: pd.Series[bool] | None = None) -> pd.DataFrame:
        """Over the records `which` holds for; nulls count as 0. One line a row."""
        mask = slice(None) if which is None else which.to_numpy()
        found = self.records.loc[mask, list(columns)].groupby(self.of[mask]).sum()
        return found.reindex(range(len(self.facts)), fill_value=0)

    def count(self, which: pd.Series[bool]) -> Ints:
        return np.bincount(self.of[which.to_numpy()], minlength=len(self.facts)).astype(np.int64)

    def distinct(self, column: str, which: pd.Series[bool]) -> pd.Series[int]:
        """How many values a column has."""
        found = self.records.loc[which, column].groupby(self.of[which.to_numpy()]).nunique()
        return found.reindex(range(len(self.facts)), fill_value=0)

    def median(self, values: Floats, which: pd.Series[bool]) -> pd.Series[float]:
        found = pd.Series(values).groupby(self.of[which.to_numpy()]).median()
        return found.reindex(range(len(self.facts)))

    def most(self, column: str) -> pd.Series[float]:
        found = number(self.records[column]).groupby(self.of).max()
        return found.reindex(range(len(self.facts)))

    def estimates(
        self, columns: Sequence[str], figure: Figure, which: pd.Series[bool]
    ) -> Estimates:
        """The figure of sums over the records `which` holds for, in each row."""
        counted = self.records[which]
        return estimates(
            self.of[which.to_numpy()],
            counted["question"].to_numpy(dtype=np.int64),
            counted["repeat"].to_numpy(dtype=np.int64),
            counted[list(columns)].to_numpy(dtype=np.float64),
            figure,
            len(self.facts),
        )


def rows(
    counted: pd.DataFrame, records: pd.DataFrame, more: Sequence[str] = (), by: Sequence[str] = ROW
) -> Rows:
    """The rows that `by` and `more` distinguish, in the order of the records.

    counted: what the rows are made of, with the index of `records`, which names them.
    """
    key = ["row"] if tuple(by) == ROW else list(by)
    codes = codes_of(counted, [*key, *more]).to_numpy().astype(np.int64)
    first = counted.iloc[np.unique(codes, return_index=True)[1]]
    names = dict.fromkeys(["row", "panel", *by, *FLAGS, *MISSED])
    facts = records.loc[first.index, [name for name in names if name not in more]]
    facts = facts.assign(**{name: first[name] for name in more})
    return Rows(facts.reset_index(drop=True), counted, codes)


def ordered(records: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the page: runs, models and sets as they were run; the reference and the
    stock row before the methods by name.
    """
    if table.empty:
        return pd.DataFrame()
    places = {
        name: {value: place for place, value in enumerate(records[name].unique())}
        for name in ("run", "model", "dataset", "temperature", "dtype", "device")
    }
    order = pd.DataFrame({name: table[name].map(place) for name, place in places.items()})
    order = order.assign(
        engine=table["reference_engine"].map(
            {name: at for at, name in enumerate(REFERENCE_ENGINES)}
        ),
        kind=np.select([table["reference"], table["stock"]], [0, 1], 2),
        label=table["label"].str.replace(r"\d+", lambda number: number[0].zfill(9), regex=True),
    )
    return table.loc[order.sort_values(list(order.columns), kind="stable").index].reset_index(
        drop=True
    )
