"""Points: speedup by category and by question, accepted length by draft cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

from reports.page.figures.canvas import Panel, draw_grid, draw_panels, keys_of
from reports.page.figures.style import INK, Look


def categories(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """Dots of each method's speedup in each category, a panel for each setting."""
    drawn = [label for panel in panels for label in panel.rows["label"]]
    values = pd.concat([panel.rows["speedup"] for panel in panels])
    left, right = min(1.0, float(values.min())), max(1.0, float(values.max()))
    room = 0.04 * max(right - left, 0.1)

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        names = list(rows["category"].unique())
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        for label, dots in rows.groupby("label", sort=False):
            look = style[str(label)]
            places = [names.index(name) for name in dots["category"]]
            axes.scatter(dots["speedup"], places, 34, color=look.colour, marker=look.marker)
        axes.set_xlim(left - room, right + room)
        axes.grid(axis="y", color=INK, alpha=0.1)
        axes.set_xlabel("speedup over autoregressive decoding")

    alt, keys = "Speedup by category and method", keys_of(drawn, style)
    return draw_panels("categories", alt, panels, draw, str, keys, rows="category")


def scatter(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """A dot for each question: its speedup above its accepted length, a panel for each setting."""
    keys = keys_of((label for panel in panels for label in panel.rows["label"]), style)

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        for label, dots in rows.groupby("label", sort=False):
            look = style[str(label)]
            axes.plot(
                dots["accepted"],
                dots["speedup"],
                linestyle="none",
                color=look.colour,
                marker=look.marker,
                markersize=3.5,
                markeredgewidth=0,
            )
        axes.set_ylim(bottom=0)

    alt = "Speedup of single questions against their accepted length, by method"
    shown = [(panel.title, panel.rows) for panel in panels]
    return draw_grid("questions", alt, shown, draw, keys, "accepted length", "speedup", 3.2)


def costs(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """A dot for each method: its accepted length above its draft cost, a panel for each setting;
    the line is where a method breaks even if verifying costs no more than the reference."""
    keys = keys_of((label for panel in panels for label in panel.rows["label"]), style)

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for label, dots in rows.groupby("label", sort=False):
            look = style[str(label)]
            axes.scatter(
                dots["draft_cost"], dots["accepted"], 40, color=look.colour, marker=look.marker
            )
        right = 1.08 * max(float(rows["draft_cost"].max()), 0.05)
        axes.plot((0, right), (1, 1 + right), color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.set_xlim(0, right)
        axes.set_ylim(bottom=0.9)

    alt = "Accepted length against draft cost, by method"
    shown = [(panel.title, panel.rows) for panel in panels]
    x = "draft cost, in tokens of the reference"
    return draw_grid("costs", alt, shown, draw, keys, x, "accepted length", 3.2)
