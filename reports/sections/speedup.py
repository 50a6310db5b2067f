"""The section on speedup."""

from __future__ import annotations

from reports.measures.speedup import DEFINITIONS
from reports.page.columns import INTERVAL, Detailed, column, figure, non_repeating, ratio
from reports.page.figures import bars
from reports.page.format import digits
from reports.page.model import Page, Section, TableRow
from reports.page.panels import drawn, with_value
from reports.page.tables import tables
from reports.read.words import counted
from reports.sections.significance import notices


def section(page: Page) -> Section:
    rows = page.speedup
    rows = rows[~rows["synthetic"]] if len(rows) else rows
    drawing, cut = drawn(with_value(rows, "speedup"), lambda shown: bars.speedup(shown, page.style))
    columns = [
        figure("Speedup", "speedup", "{:.2f}×"),
        INTERVAL,
        column("Tokens/s", "tokens_per_s", digits),
        ratio("Relative to the fastest", "beside"),
        ratio("End to end", "end_to_end"),
        non_repeating("Non-repeating"),
        figure("Median", "median", "{:.2f}×"),
        Detailed("Pairs", "pairs", lambda row: f"{row['pairs']:,}", below=_covered),
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
        "No good records of a real model: nothing to compare.",
        records=page.good,
    )


def _covered(row: TableRow) -> str:
    """What the pairs cover."""
    return f"{counted(row['prompts'], 'question')}, {counted(row['repeats'], 'repeat')}"
