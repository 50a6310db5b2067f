"""Curves of tuned methods."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.style
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

from reports.page.figures.canvas import Key, Panel, blank, framed
from reports.page.figures.style import GREY, INK, STYLE, shades


def tuning(panels: Sequence[tuple[str, Panel]]) -> Markup:
    """Speedup and, below it, accepted length against width: a panel for each tuned method, with
    the method's hue."""
    drawings = []
    with matplotlib.style.context(["default", STYLE]):
        for hue, panel in panels:
            figure = blank(4.4)
            above, below = figure.subplots(2, 1)
            _curve(above, panel.rows, "speedup", hue)
            _curve(below, panel.rows, "accepted", hue)
            above.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
            above.set_ylabel("speedup")
            below.set_ylabel("accepted length")
            below.set_xlabel("width of a verify forward, tokens")
            if above.get_legend_handles_labels()[0]:
                above.legend(fontsize=7, handlelength=1.2, loc="best")
            drawings.append((panel.title, figure))
        alt = "Speedup and accepted length of tuned methods against the width of a verify forward"
        keys = [Key("measured again in the final", GREY, "D"), Key("chosen: ringed", GREY, "o")]
        return framed("tuning", alt, drawings, keys)


def _curve(axes: Axes, rows: pd.DataFrame, figure: str, hue: str) -> None:
    """Settings of the search, joined where they differ in one parameter; those of the final with
    their intervals; a ring around the chosen one."""
    search, final = rows[rows["stage"] == "search"], rows[rows["stage"] == "final"]
    lines = [(name, group.sort_values("width")) for name, group in search.groupby("line")]
    lines.sort(key=lambda line: -len(line[1]))
    joined = sum(len(group) > 1 for _, group in lines)
    colours = [*shades(hue, max(1, joined))[:joined], *[GREY] * (len(lines) - joined)]
    for colour, (name, group) in zip(colours, lines, strict=True):
        shown = str(name) or f"{rows['along'].iloc[0]} varied"
        axes.plot(
            group["width"],
            group[figure],
            marker="o",
            markersize=3,
            linewidth=1.2,
            color=colour,
            label=shown if len(group) > 1 else None,
        )
    axes.scatter(final["width"], final[figure], 26, color=INK, marker="D")
    if figure == "speedup":
        spans = final.dropna(subset=["low", "high"])
        axes.vlines(spans["width"], spans["low"], spans["high"], color=INK, linewidth=1.1)
    won = rows[rows["chosen"]]
    axes.scatter(won["width"], won[figure], 110, facecolors="none", edgecolors=INK)
    axes.grid(color=INK, alpha=0.12)
