"""Lines: values over widths, contexts, depths or sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes

from reports.page.figures.axes import log_ticks, share_axis
from reports.page.figures.canvas import Key, draw_grid
from reports.page.figures.style import Look


class Curve(NamedTuple):
    """Points of one line: y above each x; dashed where it is no measurement."""

    x: Sequence[float]
    y: Sequence[float]
    look: Look
    dashed: bool = False


class Chart(NamedTuple):
    """One set of axes with lines."""

    title: str
    curves: Sequence[Curve]


def draw_curves(
    name: str,
    alt: str,
    charts: Sequence[Chart],
    x: str,
    y: str,
    share: bool,
    linear: bool = False,
) -> Markup:
    """Lines over a logarithmic or a linear x; y is a share of a whole or logarithmic.

    name: of the figure's ids; x, y: what the axes say. Lines of one name look the same everywhere.
    """
    looks = dict.fromkeys(curve.look for chart in charts for curve in chart.curves)
    keys = [Key(look.name, look.colour, look.marker) for look in looks]

    def draw(axes: Axes, lines: Sequence[Curve]) -> None:
        for curve in lines:
            axes.plot(
                curve.x,
                curve.y,
                color=curve.look.colour,
                marker=curve.look.marker,
                markersize=5,
                linewidth=1.4,
                linestyle=(0, (4, 2)) if curve.dashed else "solid",
                clip_on=False,
            )
        ticks = sorted({at for curve in lines for at in curve.x})
        if linear:
            axes.set_xticks(ticks)
        else:
            axes.set_xscale("log")
            log_ticks(axes.xaxis, ticks)
        if share:
            share_axis(axes)
        else:
            axes.set_yscale("log")
            log_ticks(axes.yaxis)

    shown = [(chart.title, chart.curves) for chart in charts]
    return draw_grid(name, alt, shown, draw, keys, x, y, 2.9)
