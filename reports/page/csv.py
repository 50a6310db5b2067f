"""Tables as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from urllib.parse import quote

import pandas as pd

from reports.page.format import NONE
from reports.page.model import Cell, Head, Table

MARKS = "Marks"  # the CSV column of the tags next to a name
# Text that starts with one of these would be run as a formula by a spreadsheet.
FORMULA = "=+-@\t\r\n＝＋－＠"


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
    """One column, or one for each part of its cells; tags and second lines in their own."""
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
    if cell.names_row:
        return _inert(str(cell.sort))
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
