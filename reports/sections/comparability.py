"""The section on what differs between the runs of a page, and inside one."""

from __future__ import annotations

from collections.abc import Sequence

from reports.measures.comparability import DEFINITIONS, Difference, differences
from reports.page.format import listed
from reports.page.model import Cell, Head, Page, Section, Table

NAMED = 4  # items that the line at the top names
COMPARED = (
    "device, driver, clocks, versions, engine, dtype, hashes of data, weights and history, and "
    "settings were compared."
)


def weighing(page: Page) -> list[Difference]:
    """The differences that change figures."""
    return [one for one in differences(page.runs, page.records, page.costs) if one.weighs]


def summary(found: Sequence[Difference]) -> str:
    """Differences that change figures in one line."""
    items = list(dict.fromkeys(one.item.partition(",")[0] for one in found))
    named, more = items[:NAMED], len(items) - NAMED
    if more > 0:
        named.append(f"{more} more")
    *rest, last = named
    words = f"{', '.join(rest)} and {last}" if rest else last
    return f"Compare with care: the records differ in {words}"


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
