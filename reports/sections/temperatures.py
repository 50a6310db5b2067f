"""The section on speedup by temperature."""

from __future__ import annotations

from reports.measures import Definitions
from reports.page.model import Page, Section, Table
from reports.page.tables import faster, pivot

DEFINITIONS: Definitions = (
    (
        "Temperature",
        "speedup at that temperature, its interval and the accepted length below. Greedy decoding "
        "is temperature 0; at others the answers of method and reference differ, and seconds per "
        "token are compared.",
    ),
)


def section(page: Page) -> Section:
    """Nothing to show where one temperature was run."""
    rows = page.speedup
    known = rows[~rows["synthetic"]] if len(rows) else rows
    values = sorted(known["temperature"].unique()) if len(known) else []
    found: list[Table] = []
    if len(values) > 1:
        lengths = page.accepted[["row", "accepted"]]
        known = known.merge(lengths, how="left", on="row", validate="one_to_one")
        names = [(value, f"T = {value:g}") for value in values]
        caption = "Speedup by temperature"
        found = pivot(page, caption, known, "temperature", names, faster, "Temperature")
    return Section(
        "temperatures",
        "By temperature",
        "Speedup of the same method at each temperature.",
        tables=found,
        definitions=DEFINITIONS,
        records=page.good,
    )
