"""The section on what makes the speedup: accepted length and the cost of a step."""

from __future__ import annotations

from reports.measures.factors import DEFINITIONS, factors
from reports.page.columns import Detailed, column, defined, figure, ratio, span
from reports.page.format import number
from reports.page.model import Page, Section
from reports.page.tables import tables


def section(page: Page) -> Section:
    rows = factors(page.records)
    columns = [
        figure("Speedup", "speedup", "{:.2f}×"),
        Detailed(
            "Accepted length",
            "accepted",
            lambda row: number(row["accepted"], "{:.2f}"),
            below=lambda row: span(row, "accepted"),
        ),
        ratio("t_ref / t_step", "cheaper", pattern="{:.3f}"),
        figure("Product", "product", "{:.2f}×"),
        column("Remainder", "remainder", lambda value: number(100 * value, "{:+.1f} %")),
        defined(figure("t_ref, ms", "ref_ms", "{:.2f}"), "t_ref"),
        defined(figure("t_step, ms", "step_ms", "{:.2f}"), "t_step"),
        figure("Pairs", "pairs", "{:,.0f}"),
    ]
    return Section(
        "factors",
        "What makes the speedup",
        "Speedup = accepted length × t_ref / t_step: tokens per step, and the cost of a step.",
        tables=tables(page, "Speedup by its factors", rows, columns),
        definitions=DEFINITIONS,
        records=2 * int(rows["pairs"].sum()) if len(rows) else 0,
    )
