"""The section on what differs between the runs of a page, and inside one."""

from __future__ import annotations

from reports.measures.comparability import DEFINITIONS, differences
from reports.page.format import listed
from reports.page.model import Cell, Head, Page, Section, Table

COMPARED = (
    "device, driver, clocks, versions, engine, dtype, hashes of data, weights and history, and "
    "settings were compared."
)


def notes(page: Page) -> list[str]:
    """The differences that change figures, one line each."""
    found = differences(page.runs, page.records, page.costs)
    return [str(difference) for difference in found if difference.weighs]


def section(page: Page) -> Section:
    """All differences; empty for a single run in which nothing differs."""
    found = differences(page.runs, page.records, page.costs)
    heads = [Head("Item"), Head("Value"), Head("Runs"), Head("Effect", term="Effect")]
    lines = [
        [
            Cell(one.item, one.item, names_row=True, same=at > 0),
            Cell(value, value),
            Cell(listed(runs), listed(runs)),
            _weight(one.weighs),
        ]
        for one in found
        for at, (value, runs) in enumerate(one.values.items())
    ]
    kinds = [run.settings_name for run in page.runs]
    compared = [run.name for run in page.runs if kinds.count(run.settings_name) > 1]
    nothing = f"Nothing differs between {listed(compared)}: {COMPARED}"
    return Section(
        "comparability",
        "Comparability",
        "What differs between the runs of this page, or inside one.",
        tables=[Table("Differences", heads, lines)] if lines else [],
        definitions=DEFINITIONS if lines or compared else (),
        empty=nothing if compared and not lines else "",
        records=len(page.records),
    )


def _weight(weighs: bool) -> Cell:
    words = "changes figures" if weighs else "for the record"
    return Cell(words, words)
