"""The section on the verification share."""

from __future__ import annotations

import pandas as pd

from reports.measures.shares import DEFINITIONS
from reports.page.columns import Column, column, defined, figure
from reports.page.figures import bars
from reports.page.format import NONE, percent
from reports.page.model import Page, Section, TableRow
from reports.page.panels import drawn, with_value
from reports.page.tables import tables


def section(page: Page) -> Section:
    rows = with_value(page.shares, "verify")
    drawing, cut = drawn(rows, lambda shown: bars.shares(shown, page.style))
    columns = [
        defined(column("Verification", "verify", percent), "Verification share"),
        Column("95 % interval", "low", _percent_bounds, parts=("low", "high")),
        column("Draft", "draft", percent),
        column("Accept", "accept", percent),
        column("Other", "other", percent),
        figure("Verify ms/step", "verify_ms", "{:.2f}"),
        figure("Loop ms/step", "loop_ms", "{:.2f}"),
    ]
    return Section(
        "shares",
        "Verification share",
        "Where the decode loop's time goes." + cut,
        drawing,
        tables(page, "Verification share by model, question set, engine and method", rows, columns),
        DEFINITIONS,
        "No good records: nothing was timed.",
        records=int((page.records["ok"] & page.records["loop_s"].notna()).sum()),
    )


def _percent_bounds(row: TableRow) -> str:
    if pd.isna(row["low"]):
        return NONE
    return f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}] %"
