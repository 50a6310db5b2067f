"""The section on acceptance by depth."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from reports.measures.depths import DEFINITIONS, MOST, by_depth, by_tokens
from reports.page.figures.lines import Chart, Curve, draw_curves
from reports.page.format import NONE, number, percent
from reports.page.model import Cell, Page, Section, TableRow
from reports.page.panels import PANELS, panels
from reports.page.tables import pivot

DRAWN = 6  # methods in a panel of a figure with a dot or a line for each


def section(page: Page) -> Section:
    deep, wide = by_depth(page.accepted), by_tokens(page.accepted)
    levels = [(depth, f"≥ {depth}") for depth in _values(deep, "depth")]
    tokens = [(count, f"{count}") for count in _values(wide, "tokens")]
    if tokens and tokens[-1][0] == MOST:
        tokens[-1] = (MOST, f"{MOST} and more")
    caption, lead = "Share of steps that accept as many drafted tokens", "How deep into the draft"
    shown, cut = _deepest(deep)
    return Section(
        "depth",
        "Acceptance by depth",
        f"{lead} a step accepts, and how many tokens a step gives.{cut}",
        _curves(page, shown) if len(shown) else None,
        [
            *pivot(page, caption, deep, "depth", levels, _reached, "Depth"),
            *pivot(
                page, "Steps by tokens emitted", wide, "tokens", tokens, _share, "Tokens per step"
            ),
        ],
        DEFINITIONS,
        records=int((page.records["verify_steps"] > 0).sum()),
    )


def _deepest(deep: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What the figure shows, and what it leaves out in words."""
    if deep.empty:
        return deep, ""
    order = deep.drop_duplicates("row").sort_values("accepted", ascending=False, kind="stable")
    best = order.groupby("panel", sort=False).head(DRAWN)
    best = best[best["panel"].isin(deep["panel"].unique()[:PANELS])]
    words = (
        f" The figure shows the first {PANELS} settings, in each the {DRAWN} methods that "
        "accept most."
    )
    return deep[deep["row"].isin(best["row"])], words if len(best) < len(order) else ""


def _values(rows: pd.DataFrame, by: str) -> list[int]:
    return sorted(rows[by].unique().tolist()) if len(rows) else []


def _reached(row: TableRow) -> Cell:
    onward = number(100 * row["onward"], "{:.0f} % onward")
    return Cell(percent(row["reached"]), row["reached"], detail="" if onward == NONE else onward)


def _share(row: TableRow) -> Cell:
    return Cell(percent(row["share"]), row["share"])


def _curves(page: Page, deep: pd.DataFrame) -> Markup:
    """A line for each method."""
    charts = [
        Chart(
            panel.title,
            [
                Curve(list(line["depth"]), list(line["reached"]), page.style[str(name)])
                for (_, name), line in panel.rows.groupby(["row", "label"], sort=False)
            ],
        )
        for panel in panels(deep)
    ]
    alt = "Share of verify steps that accept at least so many drafted tokens, by method"
    x, y = "drafted tokens", "steps that accept them"
    return draw_curves("depth", alt, charts, x, y, share=True, linear=True)
