"""Columns of tables: how a row of figures becomes a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports.page.format import NONE, bounds, number
from reports.page.model import Cell, Head, TableRow


@dataclass(frozen=True)
class Column:
    """A column of figures: the key that it sorts by, and how a row prints; `term` as of a head,
    `draw` a drawing of the row, `parts` the keys of its values where it shows several.
    """

    title: str
    key: str
    show: Callable[[TableRow], str]
    numeric: bool = True
    term: str | None = None
    draw: Callable[[TableRow], Markup] | None = None
    parts: Sequence[str] = ()

    def head(self) -> Head:
        return Head(self.title, self.numeric, self.term)

    def cell(self, row: TableRow) -> Cell:
        value = row[self.key]
        missing = NONE if not self.numeric else None
        return Cell(
            self.show(row),
            missing if pd.isna(value) else value,
            graphic=self.draw(row) if self.draw else None,
            parts=[float(row[name]) for name in self.parts],
        )


def column(title: str, key: str, show: Callable[[Any], str], numeric: bool = True) -> Column:
    """A column that prints one value of its row."""
    return Column(title, key, lambda row: show(row[key]), numeric)


def figure(title: str, key: str, pattern: str) -> Column:
    return column(title, key, lambda value: number(value, pattern))


INTERVAL = Column("95 % interval", "low", bounds, parts=("low", "high"))


def defined(column: Column, term: str) -> Column:
    """A column whose head links to the definition of another term than its own text."""
    return replace(column, term=term)


@dataclass(frozen=True)
class Detailed(Column):
    """A column with a second line below its figure."""

    below: Callable[[TableRow], str] = lambda _: ""

    def cell(self, row: TableRow) -> Cell:
        return replace(super().cell(row), detail=self.below(row))


class _Worded(Column):
    """A column that sorts by what it shows."""

    def cell(self, row: TableRow) -> Cell:
        shown = self.show(row)
        return Cell(shown, shown)


def words(title: str, show: Callable[[TableRow], str], key: str = "") -> Column:
    return _Worded(title, key, show, numeric=False)


def span(row: TableRow, name: str, pattern: str = "{:.2f}") -> str:
    """The interval of a figure `name`, in brackets; nothing where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if pd.isna(low) else f"[{pattern.format(low)}, {pattern.format(high)}]"


def ratio(
    title: str, key: str, below: Callable[[TableRow], str] | None = None, pattern: str = "{:.2f}"
) -> Column:
    """A column of ratios with their intervals below them."""
    return Detailed(
        title,
        key,
        lambda row: number(row[key], f"{pattern}×"),
        below=below or (lambda row: span(row, key, pattern)),
    )


def non_repeating(title: str) -> Column:
    """The speedup on answers that do not repeat themselves, of how many pairs below it."""

    def below(row: TableRow) -> str:
        if pd.isna(row["non_repeating"]) or row["reference"]:
            return ""
        count = f"{row['non_repeating_pairs']:,} of {row['pairs']:,}"
        return " · ".join(filter(None, (span(row, "non_repeating"), count)))

    return ratio(title, "non_repeating", below)
