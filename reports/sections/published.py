"""The section on published figures and those measured here."""

from __future__ import annotations

from reports.measures import published
from reports.measures.published import DEFINITIONS, PublishedFigure
from reports.page.format import NONE, bounds, number, text
from reports.page.model import Cell, Head, Page, Section, Table, TableRow
from reports.page.tables import tags

STATED = ("Method", "Models", "Question sets", "Temperature")
MEASURED = ("On", "Speedup", "95 % interval", "Accepted length")
NOT_RUN = "not run"


def section(page: Page) -> Section:
    """Nothing to show where no method of the page has a published figure."""
    heads = [Head(title) for title in (*STATED, "Published")]
    heads += [Head("Published accepted length", True, term="Published")]
    heads += [Head(title) for title in ("Card", "Engine", "Source", "Measured here", MEASURED[0])]
    heads += [Head(title, True) for title in MEASURED[1:]]
    run = set(page.records["method"]) if len(page.records) else set()
    lines: list[list[Cell]] = []
    for known in published.read():
        if known.method in run:
            stated = _stated_cells(known)
            found = known.measured(page.speedup).to_dict("records")
            lines += [[*stated, *_measured_cells(page, row)] for row in found]
            if not found:
                lines.append([*stated, *(Cell(word, word) for word in (NOT_RUN, *[NONE] * 4))])
    caption = "Published figures and those measured here"
    return Section(
        "published",
        "Published and measured figures",
        "What public sources state for the methods of this page, and this page's records on the "
        "same models and question sets.",
        tables=[Table(caption, heads, lines)] if lines else [],
        definitions=DEFINITIONS,
    )


def _stated_cells(known: PublishedFigure) -> list[Cell]:
    words = (known.method, known.model, known.dataset, known.temperature, text(known.speedup))
    accepted = number(known.accepted, "{:.2f}")
    places = (text(known.card), text(known.engine), known.title)
    return [
        *(Cell(word, word) for word in words),
        Cell(accepted, known.accepted),
        *(Cell(word, word) for word in places),
    ]


def _measured_cells(page: Page, row: TableRow) -> list[Cell]:
    names = ["run"] * (len(page.runs) > 1) + ["model", "dataset", "dtype", "engine"]
    where = ", ".join((*(str(row[name]) for name in names), f"T = {row['temperature']:g}"))
    speed, span = number(row["speedup"], "{:.2f}×"), bounds(row)
    lengths = page.accepted.set_index("row")["accepted"]
    accepted = lengths.get(row["row"])
    return [
        Cell(page.name(row["label"]), row["label"], tags=tags(page, row), names_row=True),
        Cell(where, where),
        Cell(speed, row["speedup"]),
        Cell(span, None if span == NONE else row["low"]),
        Cell(number(accepted, "{:.2f}"), accepted),
    ]
