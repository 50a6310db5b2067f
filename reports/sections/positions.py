"""The section on acceptance by position in the answer."""

from __future__ import annotations

from reports.measures.bins import named
from reports.measures.positions import DEFINITIONS, POSITIONS, by_position
from reports.page.model import Page, Section
from reports.page.tables import longer, pivot


def section(page: Page) -> Section:
    rows = by_position(page.records)
    names = named(rows, POSITIONS)
    caption = "Accepted length by position in the answer"
    return Section(
        "positions",
        "By position in the answer",
        "Whether acceptance changes as an answer grows.",
        tables=pivot(page, caption, rows, "bin", names, longer, "Position"),
        definitions=DEFINITIONS,
        records=int((page.records["verify_steps"] > 0).sum()),
    )
