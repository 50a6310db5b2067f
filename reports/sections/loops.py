"""The section on answers that repeat themselves."""

from __future__ import annotations

from reports.measures.loops import DEFINITIONS, loops
from reports.page.columns import column, defined, figure, non_repeating
from reports.page.format import number, percent
from reports.page.model import Page, Section
from reports.page.tables import tables

BOTH = "Accepted, repeating or not"


def section(page: Page) -> Section:
    rows = loops(page.records, page.speedup)
    columns = [
        column("Repetition", "repetition", percent),
        column("Repeating answers", "repeating", percent),
        figure("Good answers", "answers", "{:,.0f}"),
        figure("Speedup", "speedup", "{:.2f}×"),
        defined(non_repeating("Speedup on non-repeating answers"), "Non-repeating"),
        column("Gain from loops", "loops", lambda value: number(100 * value, "{:+.1f} %")),
        defined(figure("Accepted, repeating", "accepted_repeating", "{:.2f}"), BOTH),
        defined(figure("Accepted, other", "accepted_other", "{:.2f}"), BOTH),
    ]
    return Section(
        "loops",
        "Answers that repeat themselves",
        "Small models loop, and loops are easy to draft: the speedup with and without them.",
        tables=tables(page, "Repetition and speedup without it", rows, columns),
        definitions=DEFINITIONS,
        records=page.good,
    )
