"""What a page is made of: runs, sections, tables, cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from markupsafe import Markup

from bench.records.costs import STEP
from bench.records.runs import REFERENCE, Record, label
from reports.measures import Definitions, acceptance, shares, speedup
from reports.measures.matches import defective
from reports.page.figures.style import Look, looks
from reports.page.labels import short
from reports.read.companions import AUDIT_COUNTS, QUALITY, TESTED, RunInfo
from reports.read.defaults import defaults
from reports.read.preparation import NAME

TableRow: TypeAlias = Mapping[Any, Any]  # a row of a table of figures


@dataclass(frozen=True)
class Page:
    """The runs of a page and their records as `prepare` returns them; `left_out`: records
    given of the question set that is in no report; `costs`: the newest record of each measurement
    of cost studies, with the study's name as `run`; `notices`: what reading left out, and why.
    """

    runs: Sequence[RunInfo]
    records: pd.DataFrame
    left_out: int = 0
    costs: Sequence[Record] = ()
    notices: Sequence[str] = ()

    @cached_property
    def smoke(self) -> bool:
        """Whether all records are of the preset `quick`: a test of the suite, no benchmark."""
        presets = {run.name: run.settings.get("preset") for run in self.runs}
        return not self.records.empty and set(self.records["run"].map(presets)) == {"quick"}

    @property
    def good(self) -> int:
        """How many records are good."""
        return int(self.records["ok"].sum())

    @cached_property
    def style(self) -> dict[str, Look]:
        """How each label is drawn and named; those of tuned methods without parameters too."""
        steps = (label(r["method"], r["params"]) for r in self.costs if r["kind"] == STEP)
        tuned = (method for run in self.runs if run.tuned for method in run.tuned.methods)
        labels = {*self.records["label"], *steps, *tuned}
        return looks(short(labels, defaults(self.runs)), [REFERENCE])

    def name(self, label: str) -> str:
        """What a label is shown as; one of an audit that no record has, as it is."""
        look = self.style.get(label)
        return look.name if look else label

    def by_speed(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of a table of figures, the fastest first within each panel; those without a speed
        last."""
        if rows.empty or self.speedup.empty:
            return rows
        known = pd.Series(range(len(self.speedup)), index=self.speedup["row"])
        places = rows["row"].map(known).fillna(len(known))
        panels = rows.groupby("panel", sort=False).ngroup()
        return rows.iloc[np.lexsort((places, panels))].reset_index(drop=True)

    @cached_property
    def audited(self) -> pd.DataFrame:
        """The rows of every audit that is of these records."""
        rows = [{**row, "run": run.name} for run in self.runs for row in run.audited]
        return pd.DataFrame(
            rows,
            columns=[*NAME, *AUDIT_COUNTS, *QUALITY, *TESTED, "examples"],
        )

    @cached_property
    def _defects(self) -> dict[tuple[Any, ...], int]:
        rows = self.audited
        keys = rows[list(NAME)].itertuples(index=False, name=None)
        return dict(zip(keys, rows["defects"], strict=True))

    @cached_property
    def defective(self) -> frozenset[tuple[Any, ...]]:
        """The names (`NAME`) of rows whose audit shows anything wrong."""
        rows = ({**row, "run": run.name} for run in self.runs for row in run.audited)
        return frozenset(tuple(row[name] for name in NAME) for row in rows if defective(row))

    def defects(self, row: TableRow) -> int:
        """Defects that the audit found in a table's row."""
        return int(self._defects.get(tuple(row[name] for name in NAME), 0))

    @cached_property
    def speedup(self) -> pd.DataFrame:
        """Of every row, the fastest of its panel first; methods that gave wrong output are never
        called the fastest."""
        rows = speedup.speedup(self.records, defective=self.defective)
        if rows.empty:
            return rows
        panels = rows.groupby("panel", sort=False).ngroup()
        order = np.lexsort((-rows["tokens_per_s"], -rows["speedup"], panels))
        return rows.iloc[order].reset_index(drop=True)

    @cached_property
    def accepted(self) -> pd.DataFrame:
        return self.by_speed(acceptance.accepted(self.records))

    @cached_property
    def shares(self) -> pd.DataFrame:
        return self.by_speed(shares.shares(self.records))


@dataclass(frozen=True)
class Section:
    """One block of the page; `body`: HTML of its own below the lead; `empty` is shown where there
    are no tables, `details` are folded, and so is a whole section that is `folded`; `records`: how
    many the figure and the tables are made of.
    """

    id: str
    title: str
    lead: str
    figure: Markup | None = None
    tables: Sequence[Table] = ()
    definitions: Definitions = ()
    empty: str = ""
    details: Sequence[tuple[str, str]] = ()
    body: Markup | None = None
    records: int = 0
    folded: bool = False


@dataclass(frozen=True)
class Card:
    """A fact at the top of the page: a `strong` one is the headline, in large type where its value
    is a `figure` and no sentence.
    """

    label: str
    value: str
    note: str = ""
    strong: bool = False
    figure: bool = False


@dataclass(frozen=True)
class Table:
    """`lead` is shown above the rows, with the `tags` of all its methods; `facts` are settings of
    the whole table, by which filters find it; a `folded` one opens on a click.
    """

    caption: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    lead: Markup | str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    folded: bool = False
    tags: Sequence[Tag] = ()

    @cached_property
    def shared(self) -> Mapping[str, str]:
        """Settings that all rows share, by the heads of their columns. The page says them once;
        the CSV has the columns."""
        if len(self.rows) < 2:
            return {}
        return {
            head.text: cells[0].text
            for head, *cells in zip(self.heads, *self.rows, strict=True)
            if all(cell.setting and cell.text == cells[0].text for cell in cells)
        }

    @cached_property
    def shown(self) -> Sequence[int]:
        """The places of the columns that the page shows."""
        return [at for at, head in enumerate(self.heads) if head.text not in self.shared]

    def where(self, row: Sequence[Cell]) -> str:
        """The settings of a row that are columns of the page: what stands below its name where
        there is no room for them."""
        cells = [(self.heads[at].text, row[at]) for at in self.shown]
        return " · ".join(
            f"T\u00a0=\u00a0{cell.text}" if head == "T" else cell.text
            for head, cell in cells
            if cell.setting
        )


@dataclass(frozen=True)
class Head:
    """A column's head; `term`: the definition it links to where that is not its own text."""

    text: str
    numeric: bool = False
    term: str | None = None


@dataclass(frozen=True)
class Cell:
    """A cell of a table: `sort` is the value by which it sorts and which its CSV holds;
    `parts` replace it there, each in a column of its own; `detail` is a second line, `graphic` a
    drawing next to the text.
    """

    text: str
    sort: float | str | None = None
    detail: str = ""
    graphic: Markup | None = None
    parts: Sequence[float] = ()
    tags: Sequence[Tag] = ()
    names_row: bool = False  # as a method's label; `sort` is the whole of it
    setting: bool = False
    same: bool = False  # a setting as in the row above

    @property
    def key(self) -> str | None:
        """What the page sorts by where it is not the text itself: a value to seven digits."""
        key = f"{self.sort:.7g}" if isinstance(self.sort, float) else self.sort
        alone = not (self.tags or self.detail or self.graphic)
        return None if key is None or (alone and str(key) == self.text) else str(key)


@dataclass(frozen=True)
class Tag:
    """A short mark next to a method's name; `why` is its tooltip."""

    text: str
    kind: str = "plain"
    href: str | None = None
    why: str = ""
