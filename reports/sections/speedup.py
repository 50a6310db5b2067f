"""The section on speedup."""

from __future__ import annotations

from reports.measures.speedup import DEFINITIONS
from reports.page.columns import INTERVAL, column, figure, non_repeating, ratio
from reports.page.figures import bars
from reports.page.format import parameters
from reports.page.model import Page, Section
from reports.page.panels import drawn, with_value
from reports.page.tables import tables
from reports.sections.significance import notices


def section(page: Page) -> Section:
    rows = page.speedup
    drawing, cut = drawn(with_value(rows, "speedup"), lambda shown: bars.speedup(shown, page.style))
    columns = [
        figure("Speedup", "speedup", "{:.2f}×"),
        INTERVAL,
        ratio("Relative to the fastest", "beside"),
        ratio("End to end", "end_to_end"),
        non_repeating("Non-repeating"),
        figure("Median", "median", "{:.2f}×"),
        figure("Tokens/s", "tokens_per_s", "{:.1f}"),
        column("Draft parameters", "draft_parameters", parameters),
        figure("Pairs", "pairs", "{:,.0f}"),
        figure("Questions", "prompts", "{:,.0f}"),
        figure("Repeats", "repeats", "{:,.0f}"),
    ]
    lead = "How much faster than plain autoregressive decoding on the same engine and device."
    if page.records["synthetic"].any():
        lead += " Synthetic models have random weights: no speedup is reported for them."
    return Section(
        "speedup",
        "Speedup",
        " ".join((lead, *notices(page))) + cut,
        drawing,
        tables(page, "Speedup by model, question set, engine and method", rows, columns),
        DEFINITIONS,
        "No good records: nothing to compare.",
        records=page.good,
    )
