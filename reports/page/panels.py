"""Rows of figures in the panels of a drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from markupsafe import Markup

from reports.page.figures.canvas import Panel
from reports.page.settings import count_values, setting, varies
from reports.read.preparation import SETTINGS

PANELS = 8  # settings that a figure shows


def drawn(
    rows: pd.DataFrame, draw: Callable[[Sequence[Panel]], Markup]
) -> tuple[Markup | None, str]:
    """A figure of the rows' first settings, and what it leaves out in words."""
    if rows.empty:
        return None, ""
    found = panels(rows)
    cut = f" The figure shows the first {PANELS} of {len(found)} settings."
    return draw(found[:PANELS]), cut if len(found) > PANELS else ""


def panels(rows: pd.DataFrame) -> list[Panel]:
    """Rows in groups that may share axes; a title names the usual settings and those that vary.

    The stock row is in the panel of the reference that it is compared with.
    """
    by = [name for name in (*SETTINGS, "reference_engine") if name in rows]
    shown = ["model", "dataset", "reference_engine", "temperature"]
    if count_values(rows, "run") > 1:
        shown.insert(0, "run")
    alike = rows.groupby(shown, dropna=False, sort=False)
    shown += [name for name in by if name not in shown and varies(alike, name)]
    found = []
    for _, group in rows.groupby(by, dropna=False, sort=False):
        first = group.iloc[0]
        words = [
            f"T={first[name]:g}" if name == "temperature" else setting(name, first[name])
            for name in shown
        ]
        found.append(Panel(" · ".join(words), group))
    return found


def with_value(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """Rows whose figure `key` is known."""
    return rows if rows.empty else rows[rows[key].notna()]
