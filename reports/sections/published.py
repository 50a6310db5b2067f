"""The section on published speedups and those measured here."""

from __future__ import annotations

from reports.measures.published import DEFINITIONS, PUBLISHED
from reports.page.format import NONE, bounds, number
from reports.page.model import Cell, Head, Page, Section, Table, TableRow
from reports.page.tables import tags


def section(page: Page) -> Section:
    """Nothing to show where no method was run on the models and question sets of its paper."""
    rows = page.speedup
    titles = ("Method", "Models", "Question sets", "Temperature", "Published", "Source")
    heads = [Head(title) for title in (*titles, "Measured here", "On")]
    heads += [Head("Speedup", True), Head("95 % interval", True)]
    lines: list[list[Cell]] = []
    for known in PUBLISHED:
        words = (known.model, known.dataset, known.temperature, known.speedup, known.source)
        stated = [Cell(word, word) for word in (known.method, *words)]
        found = known.measured(rows).to_dict("records")
        lines += [[*stated, *_measured_cells(page, row)] for row in found]
    return Section(
        "published",
        "Published and measured speedups",
        "The speedups that papers state for their methods, and those of this page's records on the "
        "same models and question sets.",
        tables=[Table("Published speedups and those measured here", heads, lines)] if lines else [],
        definitions=DEFINITIONS,
    )


def _measured_cells(page: Page, row: TableRow) -> list[Cell]:
    names = ["run"] * (len(page.runs) > 1) + ["model", "dataset", "dtype", "engine"]
    where = ", ".join((*(str(row[name]) for name in names), f"T = {row['temperature']:g}"))
    speed, span = number(row["speedup"], "{:.2f}×"), bounds(row)
    return [
        Cell(page.name(row["label"]), row["label"], tags=tags(page, row), names_row=True),
        Cell(where, where),
        Cell(speed, row["speedup"]),
        Cell(span, None if span == NONE else row["low"]),
    ]
