"""The section on accepted length."""

from __future__ import annotations

from reports.measures.acceptance import DEFINITIONS
from reports.page.columns import INTERVAL, figure
from reports.page.figures import bars
from reports.page.model import Page, Section
from reports.page.panels import drawn, with_value
from reports.page.tables import tables


def section(page: Page) -> Section:
    rows = with_value(page.accepted, "accepted")
    drawing, cut = drawn(rows, lambda shown: bars.accepted(shown, page.style))
    columns = [
        figure("Accepted length", "accepted", "{:.2f}"),
        INTERVAL,
        figure("Drafted only", "drafted_only", "{:.2f}"),
        figure("Verify steps", "verify_steps", "{:,.0f}"),
        figure("Nodes/step", "nodes_per_step", "{:.1f}"),
    ]
    return Section(
        "accepted",
        "Accepted length",
        "How many tokens one forward of the target gives." + cut,
        drawing,
        tables(page, "Accepted length by model, question set, engine and method", rows, columns),
        DEFINITIONS,
        "No good records of a real model: nothing to count.",
        records=page.good,
    )
