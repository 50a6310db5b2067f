"""Curves of tuned methods."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.style
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from reports.page.figures.canvas import Panel, wrapped
from reports.page.figures.style import COLOURS, GREY, INK, STYLE, WIDTH
from reports.page.figures.svg import svg

TUNED_ACROSS = 5  # columns of the tuning figure


def tuning(panels: Sequence[Panel]) -> Markup:
    """Speedup and, below it, accepted length against width: a column for each tuned method."""
    across = min(TUNED_ACROSS, len(panels))
    down = -(-len(panels) // across)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 4.4 * down), layout=ConstrainedLayoutEngine(h_pad=0.1))
        grid = figure.subplots(2 * down, across, squeeze=False, sharey="row")
        for place, panel in enumerate(panels):
            above, below = grid[2 * (place // across) :, place % across][:2]
            _curve(above, panel.rows, "speedup")
            _curve(below, panel.rows, "accepted")
            above.set_title(wrapped(panel.title, int(13 * WIDTH / across)), pad=8)
            above.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
            above.set_ylabel("speedup" if place % across == 0 else "")
            below.set_ylabel("accepted length" if place % across == 0 else "")
            below.set_xlabel("width of a verify forward")
            if above.get_legend_handles_labels()[0]:
                above.legend(fontsize=7, handlelength=1.2, loc="best")
        for axes in grid.ravel():
            if not axes.has_data():
                axes.set_axis_off()
        blank = grid[0, 0]
        marks = [
            blank.scatter([], [], 26, color=INK, marker="D"),
            blank.scatter([], [], 110, facecolors="none", edgecolors=INK),
        ]
        names = ["measured again in the final", "chosen"]
        figure.legend(marks, names, loc="outside upper left", ncols=2)
        alt = "Speedup and accepted length of tuned methods against the width of a verify forward"
        return svg(figure, "tuning", f"{alt}. The table below holds the best settings.")


def _curve(axes: Axes, rows: pd.DataFrame, figure: str) -> None:
    """Settings of the search, joined where they differ in one parameter; those of the final with
    their intervals; a ring around the chosen one."""
    search, final = rows[rows["stage"] == "search"], rows[rows["stage"] == "final"]
    lines = [(name, group.sort_values("width")) for name, group in search.groupby("line")]
    lines.sort(key=lambda line: -len(line[1]))
    for place, (name, group) in enumerate(lines):
        colour = COLOURS[place % len(COLOURS)] if len(group) > 1 else GREY
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
