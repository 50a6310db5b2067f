"""The section on which method to take when: for each model, by question set and category."""

from __future__ import annotations

import pandas as pd

from reports.measures.choice import DEFINITIONS, choices, costs
from reports.measures.throughput import SETTING
from reports.page.columns import figure
from reports.page.figures import points
from reports.page.format import NONE, bounds, number, text
from reports.page.model import Cell, Head, Page, Section, Table
from reports.page.panels import drawn
from reports.page.settings import TITLES, count_values, setting
from reports.page.tables import tables as page_tables
from reports.read.words import counted

ASIDE = ("model", "dataset")  # a column and the rows of a table
CAPTION = "Fastest method by question set and category"


def section(page: Page) -> Section:
    rows = _choices(page)
    apart = [name for name in SETTING if name not in ASIDE]
    varied = [name for name in apart if count_values(rows, name) > 1]
    tables = []
    for _, group in rows.groupby(apart, dropna=False, sort=False) if len(rows) else ():
        first = group.iloc[0]
        named = ", ".join(f"{TITLES[name]} {setting(name, first[name])}" for name in varied)
        tables.append(_table(f"{CAPTION}: {named}" if named else CAPTION, group))
    paid = costs(page.accepted, page.shares)
    drawing, cut = drawn(paid, lambda shown: points.costs(shown, page.style))
    columns = [figure("Draft cost", "draft_cost", "{:.2f}")]
    columns.append(figure("Accepted length", "accepted", "{:.2f}"))
    return Section(
        "choice",
        "Which method when",
        "The fastest method for each kind of question, and those that chance cannot tell from it; "
        f"what methods draft, and what drafting costs them.{cut}",
        drawing,
        [*tables, *page_tables(page, "Draft cost and accepted length", paid, columns)],
        definitions=DEFINITIONS,
        empty="Fewer than two methods on a real model: nothing to choose.",
        records=page.good,
    )


def _choices(page: Page) -> pd.DataFrame:
    """The rows to choose from; none where there is a single method."""
    rows = page.speedup
    if rows.empty:
        return rows
    held = rows[~rows["reference"] & ~rows["stock"] & ~rows["lossy"] & ~rows["synthetic"]]
    if held["label"].nunique() < 2:
        return rows.iloc[:0]
    return choices(page.records, rows, page.defective)


def _table(caption: str, rows: pd.DataFrame) -> Table:
    """A row for each question set and category, a column for each model."""
    models = list(dict.fromkeys(rows["model"]))
    heads = [Head(TITLES["dataset"]), Head("Category")]
    heads += [Head(str(model), term="Choice") for model in models]
    lines = []
    for dataset, of_set in rows.groupby("dataset", sort=False):
        for category, group in of_set.groupby("category", sort=False):  # ALL comes first
            questions = counted(int(group["prompts"].max()), "question")
            line = [Cell(text(dataset), setting=True), Cell(text(category), detail=questions)]
            line += [_choice(group[group["model"] == model]) for model in models]
            lines.append(line)
    return Table(caption, heads, lines)


def _choice(rows: pd.DataFrame) -> Cell:
    """The fastest of a model's methods, its speedup, and what cannot be told from it."""
    if rows.empty:
        return Cell(NONE)
    row = rows.iloc[0].to_dict()
    said = [f"{number(row['speedup'], '{:.2f}×')} {bounds(row)}"]
    if row["speedup"] <= 1:
        return Cell("none", "", detail=f"{row['method']} {said[0]}")
    if not row["distinct"]:
        said.append("not distinguishable from 1")
    if row["others"]:
        said.append(f"or {row['others']}")
    return Cell(str(row["method"]), row["label"], detail=" · ".join(said))
