"""Columns and cells that sections share: figures with their intervals, tables with a column for
each value of something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from markupsafe import Markup

from reports.page.figures import Panel
from reports.page.tables import (
    NONE,
    TITLES,
    Cell,
    Column,
    Head,
    Page,
    Row,
    Table,
    bounds,
    number,
    panels,
    tables,
)
from reports.read.preparation import FLAGS, ROW

PANELS = 8  # settings that a figure shows


def drawn(
    rows: pd.DataFrame, draw: Callable[[Sequence[Panel]], Markup]
) -> tuple[Markup | None, str]:
    """A figure of the rows' first settings, and what it leaves out in words."""
    if rows.empty:
        return None, ""
    found = panels(rows)
    cut = f" The figure shows the first {PANELS} of {len(found)} settings."
    return draw(found[:PANELS]), cut if len(found) > PANELS else ""


def defined(column: Column, term: str) -> Column:
    """A column whose head links to the definition of another term than its own text."""
    return replace(column, term=term)


@dataclass(frozen=True)
class Detailed(Column):
    """A column with a second line below its figure."""

    below: Callable[[Row], str] = lambda _: ""

    def cell(self, row: Row) -> Cell:
        return replace(super().cell(row), detail=self.below(row))


class _Worded(Column):
    """A column that sorts by what it shows."""

    def cell(self, row: Row) -> Cell:
        shown = self.show(row)
        return Cell(shown, shown)


def words(title: str, show: Callable[[Row], str], key: str = "") -> Column:
    return _Worded(title, key, show, numeric=False)


def span(row: Row, name: str, pattern: str = "{:.2f}") -> str:
    """The interval of a figure `name`, in brackets; nothing where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if pd.isna(low) else f"[{pattern.format(low)}, {pattern.format(high)}]"


def ratio(
    title: str, key: str, below: Callable[[Row], str] | None = None, pattern: str = "{:.2f}"
) -> Column:
    """A column of ratios with their intervals below them."""
    return Detailed(
        title,
        key,
        lambda row: number(row[key], f"{pattern}×"),
        below=below or (lambda row: span(row, key, pattern)),
    )


def pivot(
    page: Page,
    caption: str,
    rows: pd.DataFrame,
    by: str,
    names: Sequence[tuple[object, str]],
    show: Callable[[Row], Cell],
    term: str | None = None,
) -> list[Table]:
    """A row for each method, a column for each value of `by`: (value, head) of `names`."""
    if rows.empty:
        return []
    key = [name for name in ROW if name != by]
    facts = [*ROW, *FLAGS, "failed"]
    groups = list(rows.groupby(key, dropna=False, sort=False))
    first = pd.concat([group.iloc[:1] for _, group in groups], ignore_index=True)
    (base,) = tables(page, caption, first[facts], ())
    heads, lines = list(base.heads), [list(line) for line in base.rows]
    if by in TITLES:
        at = next(place for place, head in enumerate(heads) if head.text == TITLES[by])
        heads.pop(at)
        for line in lines:
            line.pop(at)
    heads += [Head(head, True, term) for _, head in names]
    whole = dict(zip(rows.index, rows.to_dict("records"), strict=True))
    for line, (_, group) in zip(lines, groups, strict=True):
        found = {whole[at][by]: show(whole[at]) for at in group.index}
        line += [found.get(value, Cell(NONE)) for value, _ in names]
    return [Table(caption, heads, lines)]


def faster(row: Row) -> Cell:
    """A speedup, below it its interval and the accepted length."""
    value = row["speedup"]
    known = [bounds(row), number(row["accepted"], "{:.2f}")]
    return Cell(
        number(value, "{:.2f}×"),
        None if pd.isna(value) else value,
        detail=" · ".join(one for one in known if one != NONE),
    )


def longer(row: Row) -> Cell:
    """An accepted length, below it the number of steps."""
    return Cell(f"{row['accepted']:.2f}", row["accepted"], detail=f"{row['steps']:,}")


def non_repeating(title: str) -> Column:
    """The speedup on answers that do not repeat themselves, of how many pairs below it."""

    def below(row: Row) -> str:
        if pd.isna(row["non_repeating"]) or row["reference"]:
            return ""
        count = f"{row['non_repeating_pairs']:,} of {row['pairs']:,}"
        return " · ".join(filter(None, (span(row, "non_repeating"), count)))

    return ratio(title, "non_repeating", below)
