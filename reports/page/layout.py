"""How sections stand on the page: anchors of definitions, names and CSV of tables, filters."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import pandas as pd

from bench.records.costs import STEP
from bench.records.runs import label
from reports.page.tables import NONE, TITLES, Cell, Head, Page, Section, Table, setting

MARKS = "Marks"  # the CSV column of the tags beside a name
# Text that starts with one of these would be run as a formula by a spreadsheet.
FORMULA = "=+-@\t\r\n＝＋－＠"
# Settings that filters go by; tables name them by these heads.
SETTINGS = ("run", "model", "dataset", "engine", "temperature")
FILTERED = (*SETTINGS, "label")
HEADS = {**{TITLES[name]: name for name in FILTERED if name in TITLES}, "Method": "label"}


# ---------------------------------------------------------------------------------- definitions


def slug(text: str) -> str:
    """A term as it stands in an anchor: 95-interval."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "term"


def anchor(section: Section, term: str) -> str:
    return f"def-{section.id}-{slug(term)}"


@dataclass(frozen=True)
class Glossary:
    """Where each term is defined: in a head's own section first, then in the page's first that
    has it. A term such as "Draft, accept, other" defines each of its parts too.
    """

    sections: Sequence[Section]

    def of(self, section: Section, head: Head) -> str | None:
        """The anchor of a head's definition; None where nothing defines it."""
        wanted = (head.term or head.text).lower()
        return next((found[wanted] for found in self._terms(section) if wanted in found), None)

    def _terms(self, first: Section) -> list[dict[str, str]]:
        ordered = [first, *(other for other in self.sections if other is not first)]
        return [_anchors(section) for section in ordered if _defines(section)]


def _defines(section: Section) -> bool:
    """Definitions are printed where there is something to define."""
    return bool(section.definitions and (section.tables or section.body))


def _anchors(section: Section) -> dict[str, str]:
    whole: dict[str, str] = {}
    parts: dict[str, str] = {}
    for term, _ in section.definitions:
        place = anchor(section, term)
        whole.setdefault(term.lower(), place)
        for part in re.split(r", | and ", term.lower()):
            parts.setdefault(part, place)
    return parts | whole


# ---------------------------------------------------------------------------------- CSV


def sheet(table: Table) -> str:
    """The table as CSV: values to nine digits, nothing where one is missing, no formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = list(zip(*table.rows, strict=True)) if table.rows else [()] * len(table.heads)
    filled: list[tuple[str, Sequence[str]]] = []
    for head, cells in zip(table.heads, columns, strict=True):
        filled += _columns(head, cells)
    writer.writerow([_inert(name) for name, _ in filled])
    writer.writerows(zip(*(values for _, values in filled), strict=True))
    return file.getvalue()


def _columns(head: Head, cells: Sequence[Cell]) -> list[tuple[str, Sequence[str]]]:
    """One column, or one for each part of its cells; what stands beside or below in its own."""
    parts = max((len(cell.parts) for cell in cells), default=0)
    if parts:
        ends = ("low", "high") if parts == 2 else tuple(map(str, range(1, parts + 1)))
        split = [[*cell.parts, *[math.nan] * (parts - len(cell.parts))] for cell in cells]
        return [
            (f"{head.text} {end}", [_number(line[place]) for line in split])
            for place, end in enumerate(ends)
        ]
    found: list[tuple[str, Sequence[str]]]
    found = [(head.text, [_value(head, cell) for cell in cells])]
    if any(cell.tags for cell in cells):
        marks = ["; ".join(tag.text for tag in cell.tags) for cell in cells]
        found.append((MARKS, list(map(_inert, marks))))
    if any(cell.detail for cell in cells):
        below = [_inert(cell.detail).replace(NONE, "") for cell in cells]
        found.append((f"{head.text}, below", below))
    return found


def _value(head: Head, cell: Cell) -> str:
    if head.numeric and isinstance(cell.sort, int | float):
        return _number(cell.sort)
    return "" if cell.text == NONE else _inert(cell.text)


def _number(value: float) -> str:
    if pd.isna(value):
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.9g}"


def _inert(text: str) -> str:
    start = text.lstrip(" ")[:1]
    return f"'{text}" if start and start in FORMULA and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def download(table: Table) -> str:
    """An address that holds the table's CSV itself."""
    coded = quote(sheet(table), safe=",()[]=*!/:;@", errors="backslashreplace")
    return f"data:text/csv;charset=utf-8,{coded}"


# ---------------------------------------------------------------------------------- labels


def short(labels: Iterable[str]) -> dict[str, str]:
    """Each label without the parameters that all labels of its method share."""
    split = {name: _parameters(name) for name in labels}
    methods = [method for method, _ in split.values()]
    found = {}
    for name, (method, own) in split.items():
        others = [parts for other, parts in split.values() if other == method]
        kept = [part for part in own if not all(part in parts for parts in others)]
        kept = kept if methods.count(method) > 1 else []
        found[name] = f"{method}({','.join(kept)})" if kept else method
    return found


def _parameters(label: str) -> tuple[str, list[str]]:
    """The method's name and its parameters as they are written."""
    method, _, rest = label.partition("(")
    return method, rest.removesuffix(")").split(",") if rest else []


# ---------------------------------------------------------------------------------- filters


@dataclass(frozen=True)
class Filter:
    """One setting that rows can be hidden by, with its values as tables print them."""

    name: str
    title: str
    values: Sequence[str]


def filters(page: Page) -> list[Filter]:
    """Those that hold more than one value on the page."""
    known: Mapping[str, dict[str, None]] = {name: {} for name in FILTERED}
    for name in FILTERED:
        values = page.records[name].dropna().unique()
        known[name].update(dict.fromkeys(setting(name, value) for value in values))
    for record in page.costs:
        named = (
            {"label": label(record["method"], record["params"])} if record["kind"] == STEP else {}
        )
        for name, value in (*named.items(), *((n, record[n]) for n in ("run", "model", "engine"))):
            if value is not None:
                known[name].setdefault(str(value))
    titles = {name: title for title, name in HEADS.items()}
    return [
        Filter(name, titles[name], list(values))
        for name, values in known.items()
        if len(values) > 1
    ]
