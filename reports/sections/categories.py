"""The section on speedup by category of question."""

from __future__ import annotations

import pandas as pd

from reports.measures.categories import DEFINITIONS, by_category
from reports.page.figures import points
from reports.page.format import text
from reports.page.model import Page, Section, Table
from reports.page.panels import drawn, with_value
from reports.page.tables import faster, pivot


def section(page: Page) -> Section:
    rows = by_category(page.records[~page.records["synthetic"]])
    if len(rows):
        rows = rows.assign(category=rows["category"].map(text))
    known = with_value(rows, "speedup")
    known = known if known.empty else known[~known["reference"]]
    drawing, cut = drawn(known, lambda shown: points.categories(shown, page.style))
    sets = rows.groupby("dataset", sort=False) if len(rows) else ()
    return Section(
        "categories",
        "By category",
        "Speedup over the reference, and below it the accepted length, for each category." + cut,
        drawing,
        [table for name, group in sets for table in _categories_of(page, str(name), group)],
        DEFINITIONS,
        "No good records of a real model: nothing to compare.",
        records=int((page.records["ok"] & ~page.records["synthetic"]).sum()),
    )


def _categories_of(page: Page, dataset: str, rows: pd.DataFrame) -> list[Table]:
    """One question set: a row for each method, a column for each category."""
    names = [(name, str(name)) for name in rows["category"].unique()]
    caption = f"{dataset}: speedup and accepted length by category"
    return pivot(page, caption, rows, "category", names, faster, "Category")
