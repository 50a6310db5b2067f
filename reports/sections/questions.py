"""The section on speedup question by question."""

from __future__ import annotations

import pandas as pd

from reports.measures.questions import DEFINITIONS, questions, spread
from reports.page.columns import figure, ratio
from reports.page.figures import points
from reports.page.model import Page, Section
from reports.page.panels import PANELS, panels
from reports.page.tables import tables

SCATTERED = 6  # methods in a panel of a figure with a dot or a line for each
DOTS = 100  # questions of a method in such a figure


def section(page: Page) -> Section:
    single = questions(page.records)
    rows = spread(single)
    columns = [
        ratio("Slowest", "slowest", lambda row: f"question {row['slowest_id']}"),
        figure("Median", "median", "{:.2f}×"),
        ratio("Fastest", "fastest", lambda row: f"question {row['fastest_id']}"),
        figure("Slower than the reference", "slower", "{:,.0f}"),
        figure("Correlation", "correlation", "{:.2f}"),
        figure("Questions", "count", "{:,.0f}"),
    ]
    drawn, said = _scattered(single)
    return Section(
        "questions",
        "Question by question",
        "How the speedup spreads over questions, and how far accepted length explains it." + said,
        points.scatter(panels(drawn), page.style) if len(drawn) else None,
        tables(page, "Speedup of single questions", rows, columns),
        DEFINITIONS,
        records=page.good,
    )


def _scattered(single: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What the figure shows, and what it leaves out in words."""
    known = single.dropna(subset=["speedup", "accepted"]) if len(single) else single
    if known.empty:
        return known, ""
    median = known.groupby("row")["speedup"].median()
    order = known.drop_duplicates("row").assign(median=lambda rows: rows["row"].map(median))
    order = order.sort_values("median", ascending=False, kind="stable")
    best = order.groupby("panel", sort=False).head(SCATTERED)
    shown = best[best["panel"].isin(known["panel"].unique()[:PANELS])]
    drawn = known[known["row"].isin(shown["row"])]
    count = drawn.groupby("row")["question"].transform("size")
    drawn = drawn[drawn.groupby("row").cumcount() % (-(-count // DOTS)) == 0]
    words = (
        f" The figure shows the first {PANELS} settings, in each the {SCATTERED} methods of the "
        f"highest median, and of each at most {DOTS} questions, evenly spaced."
    )
    return drawn, words if len(drawn) < len(known) else ""
