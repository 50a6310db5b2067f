"""What a page is made of: runs, sections, tables, cells; and how rows of figures become tables."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import pandas as pd
from markupsafe import Markup
from pandas.api.typing import DataFrameGroupBy

from bench.records.costs import STEP
from bench.records.runs import REFERENCE, Record, label
from bench.records.tuned import Tuned
from reports.measures import metrics
from reports.measures import significance as sureness_metrics
from reports.page import badges, figures

Row: TypeAlias = Mapping[Hashable, Any]

NONE = "–"

TITLES = {
    "run": "Run",
    "model": "Model",
    "dataset": "Question set",
    "temperature": "T",
    "dtype": "Dtype",
    "device": "Device",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "max_new_tokens": "Token limit",
    "package_version": "Package",
    "revision": "Revision",
    "dataset_sha256": "Set's hash",
    "checkpoint_sha256": "Checkpoint",
    "tree_sha256": "Tree",
    "engine": "Engine",
    "context": "Context",
}
NUMBERS = ("temperature", "context")  # settings that sort as numbers
ALWAYS = ("model", "dataset", "engine", "temperature")
IF_SEVERAL = ("run", "dtype", "device", "top_k", "top_p", "max_new_tokens")
HASHES = ("revision", "dataset_sha256", "checkpoint_sha256", "tree_sha256")
IF_AMBIGUOUS = ("package_version", *HASHES)


# ---------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Run:
    """A run folder beside its records. `audit` is "audited" or says why there is no audit."""

    name: str
    settings: Mapping[str, Any]
    settings_text: str
    environment: Mapping[str, Any] | None
    audit: str
    audited: Sequence[Mapping[str, Any]]
    tuned: Tuned | None = None
    settings_name: str = "run.yaml"


@dataclass(frozen=True)
class Page:
    """The runs of a page and their records as `metrics.prepare` returns them; `left_out`: records
    given of the question set that is in no report; `costs`: the newest record of each measurement
    of cost studies, with the study's name as `run`; `notices`: what reading left out, and why.
    """

    runs: Sequence[Run]
    records: pd.DataFrame
    left_out: int = 0
    costs: Sequence[Record] = ()
    notices: Sequence[str] = ()

    @cached_property
    def style(self) -> dict[str, figures.Look]:
        steps = (label(r["method"], r["params"]) for r in self.costs if r["kind"] == STEP)
        return figures.looks(sorted({*self.records["label"], *steps}), [REFERENCE])

    @cached_property
    def audited(self) -> pd.DataFrame:
        """The rows of every audit that is of these records."""
        rows = [{**row, "run": run.name} for run in self.runs for row in run.audited]
        return pd.DataFrame(
            rows,
            columns=[*metrics.NAME, *metrics.AUDIT, *metrics.QUALITY, *metrics.TESTED, "examples"],
        )

    @cached_property
    def _defects(self) -> dict[tuple[Any, ...], int]:
        rows = self.audited
        keys = rows[list(metrics.NAME)].itertuples(index=False, name=None)
        return dict(zip(keys, rows["defects"], strict=True))

    @cached_property
    def defective(self) -> frozenset[tuple[Any, ...]]:
        """The names (`metrics.NAME`) of rows whose audit shows anything wrong."""
        rows = ({**row, "run": run.name} for run in self.runs for row in run.audited)
        return frozenset(
            tuple(row[name] for name in metrics.NAME) for row in rows if badges.defective(row)
        )

    def defects(self, row: Row) -> int:
        """Defects that the audit found in a table's row."""
        return int(self._defects.get(tuple(row[name] for name in metrics.NAME), 0))

    @cached_property
    def speedup(self) -> pd.DataFrame:
        """Of every row, with methods that gave wrong output never the fastest."""
        return metrics.speedup(self.records, defective=self.defective)

    @cached_property
    def accepted(self) -> pd.DataFrame:
        return metrics.accepted(self.records)

    @cached_property
    def shares(self) -> pd.DataFrame:
        return metrics.shares(self.records)


@dataclass(frozen=True)
class Tag:
    """A short mark beside a method's name; `why` is what a pointer held over it says."""

    text: str
    kind: str = "plain"
    href: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Cell:
    """What stands in a table: `sort` is the value by which it sorts and which its CSV holds;
    `parts` stand for it there, each in a column of its own; `detail` is a second line, `graphic` a
    drawing beside the text.
    """

    text: str
    sort: float | str | None = None
    detail: str = ""
    graphic: Markup | None = None
    parts: Sequence[float] = ()
    tags: Sequence[Tag] = ()
    names_row: bool = False
    setting: bool = False
    same: bool = False  # a setting as in the row above

    @property
    def key(self) -> str | None:
        """What the page sorts by where it is not the text itself: a value to seven digits."""
        key = f"{self.sort:.7g}" if isinstance(self.sort, float) else self.sort
        alone = not (self.tags or self.detail or self.graphic)
        return None if key is None or (alone and str(key) == self.text) else str(key)


@dataclass(frozen=True)
class Head:
    """A column's head; `term`: the definition it links to where that is not its own text."""

    text: str
    numeric: bool = False
    term: str | None = None


@dataclass(frozen=True)
class Table:
    """`lead` stands above the rows, with the `tags` of all its methods; `facts` are settings of the
    whole table, by which filters find it; a `folded` one opens on a click.
    """

    caption: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    lead: Markup | str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    folded: bool = False
    tags: Sequence[Tag] = ()

    @cached_property
    def shared(self) -> Mapping[int, str]:
        """Columns of a setting that all rows share, by their places, with its name and value."""
        if len(self.rows) < 2:
            return {}
        found = {}
        for place, (head, *cells) in enumerate(zip(self.heads, *self.rows, strict=True)):
            if all(cell.setting and cell.text == cells[0].text for cell in cells):
                found[place] = f"{head.text} {cells[0].text}"
        return found


@dataclass(frozen=True)
class Section:
    """One block of the page; `body`: HTML of its own below the lead; `empty` stands where there are
    no tables, `details` are folded; `records`: how many the figure and the tables are made of.
    """

    id: str
    title: str
    lead: str
    figure: Markup | None = None
    tables: Sequence[Table] = ()
    definitions: metrics.Definitions = ()
    empty: str = ""
    details: Sequence[tuple[str, str]] = ()
    body: Markup | None = None
    records: int = 0


@dataclass(frozen=True)
class Card:
    label: str
    value: str
    note: str = ""
    strong: bool = False


# ---------------------------------------------------------------------------------- words


def number(value: Any, pattern: str) -> str:
    return NONE if pd.isna(value) else pattern.format(value)


def digits(value: Any) -> str:
    """Three digits, or a whole number: 0.125, 4.20, 1,250."""
    if pd.isna(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def percent(value: Any) -> str:
    return number(100 * value, "{:.1f} %")


def parameters(value: Any) -> str:
    return _scaled(value, ("", "k", "M", "G"), 1000)


def memory(value: Any) -> str:
    return _scaled(value, ("B", "KiB", "MiB", "GiB"), 1024)


def _scaled(value: Any, units: Sequence[str], step: float) -> str:
    """1.45 G: three digits in the largest unit that the value fills."""
    if pd.isna(value):
        return NONE
    amount, place = float(value), 0
    while amount >= step and place < len(units) - 1:
        amount, place = amount / step, place + 1
    return (f"{amount:.0f} " if amount >= 100 else f"{amount:.3g} ") + units[place]


def text(value: Any) -> str:
    return NONE if pd.isna(value) else str(value)


def setting(name: str, value: Any) -> str:
    """A setting's value as tables and figures print it."""
    if pd.isna(value):
        return NONE
    if name in HASHES:
        return str(value)[:8]
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(values: Sequence[Any]) -> str:
    return ", ".join(map(text, values))


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# ---------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Column:
    """A column of figures: the key that it sorts by, and how a row prints; `term` as of a head,
    `draw` a drawing of the row, `parts` the keys of its values where it shows several.
    """

    title: str
    key: str
    show: Callable[[Row], str]
    numeric: bool = True
    term: str | None = None
    draw: Callable[[Row], Markup] | None = None
    parts: Sequence[str] = ()

    def head(self) -> Head:
        return Head(self.title, self.numeric, self.term)

    def cell(self, row: Row) -> Cell:
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


def bounds(row: Row) -> str:
    return NONE if pd.isna(row["low"]) else f"[{row['low']:.2f}, {row['high']:.2f}]"


INTERVAL = Column("95 % interval", "low", bounds, parts=("low", "high"))


def tables(page: Page, caption: str, rows: pd.DataFrame, columns: Sequence[Column]) -> list[Table]:
    """One table of the rows: their settings, the method with its tags, the columns; none if empty.

    Rows need the facts that every function of `metrics` gives them.
    """
    names = [] if rows.empty else _settings(rows)
    return plain(caption, rows, names, columns, lambda row: tags(page, row))


def plain(
    caption: str,
    rows: pd.DataFrame,
    names: Sequence[str],
    columns: Sequence[Column],
    marks: Callable[[Row], Sequence[Tag]] | None = None,
) -> list[Table]:
    """One table of the rows: the settings `names`, the method with its `marks` where rows are of
    methods, the columns; none if empty.
    """
    if rows.empty:
        return []
    heads = [Head(TITLES[name], name in NUMBERS) for name in names]
    heads += [Head("Method")] * (marks is not None)
    heads += [column.head() for column in columns]
    lines: list[list[Cell]] = []
    for row in rows.to_dict("records"):
        line = [
            Cell(setting(name, row[name]), row[name] if name in NUMBERS else text(row[name]))
            for name in names
        ]
        line = _greyed(line, lines[-1] if lines else ())
        if marks is not None:
            line.append(Cell(row["label"], row["label"], tags=marks(row), names_row=True))
        lines.append(line + [column.cell(row) for column in columns])
    return [Table(caption, heads, lines)]


def _settings(rows: pd.DataFrame) -> list[str]:
    """The settings that a table prints: the usual ones, those that vary, and those without which
    two rows would look alike.
    """
    usual = {*ALWAYS, *(name for name in IF_SEVERAL if _values(rows, name) > 1)}
    alike = rows.groupby([*sorted(usual), "label"], dropna=False, sort=False)
    unclear = {name for name in IF_AMBIGUOUS if name in rows and _varies(alike, name)}
    return [name for name in TITLES if name in usual | unclear]


def _values(rows: pd.DataFrame, name: str) -> int:
    return rows[name].nunique(dropna=False) if name in rows else 0


def _varies(groups: DataFrameGroupBy[Any, Any], name: str) -> bool:
    return bool((groups[name].nunique(dropna=False) > 1).any())


def _greyed(line: Sequence[Cell], above: Sequence[Cell]) -> list[Cell]:
    """Settings that repeat those of the row above, from the left."""
    texts, known = [cell.text for cell in line], [cell.text for cell in above]
    return [
        Cell(cell.text, cell.sort, setting=True, same=texts[: place + 1] == known[: place + 1])
        for place, cell in enumerate(line)
    ]


def tags(page: Page, row: Row) -> list[Tag]:
    """What a reader must know of a row before its figures."""
    found = []
    if row["reference"]:
        found.append(Tag("reference"))
    if row["lossy"]:
        found.append(Tag("lossy", "warn", "#matches"))
    if defects := page.defects(row):
        found.append(Tag(counted(defects, "defect"), "bad", "#matches"))
    if row["failed"]:
        found.append(Tag(f"{row['failed']:,} failed", "bad", "#failures"))
    if row.get("unpaired"):
        found.append(Tag(f"{row['unpaired']:,} without a reference", "warn"))
    if row.get("one_token"):
        found.append(Tag(f"{counted(row['one_token'], 'one-token pair')} left out"))
    return found + [Tag(words, "warn", "#sureness") for words in sureness_metrics.marks(row)]


def panels(rows: pd.DataFrame) -> list[figures.Panel]:
    """Rows by what one set of axes must not mix; a title names the usual settings and what varies.

    The stock row stands in the panel of the reference that it is held against.
    """
    by = [name for name in (*metrics.SETTINGS, "reference_engine") if name in rows]
    shown = ["model", "dataset", "reference_engine", "temperature"]
    if _values(rows, "run") > 1:
        shown.insert(0, "run")
    alike = rows.groupby(shown, dropna=False, sort=False)
    shown += [name for name in by if name not in shown and _varies(alike, name)]
    found = []
    for _, group in rows.groupby(by, dropna=False, sort=False):
        first = group.iloc[0]
        words = [
            f"T={first[name]:g}" if name == "temperature" else setting(name, first[name])
            for name in shown
        ]
        found.append(figures.Panel(" · ".join(words), group))
    return found
