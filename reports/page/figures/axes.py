"""Parts of axes: stacked bars and ticks."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator


def stack(axes: Axes, place: int, widths: Sequence[float], colours: Sequence[str]) -> None:
    left = 0.0
    for width, colour in zip(widths, colours, strict=True):
        if width > 0:
            axes.barh(place, width, 0.62, left=left, color=colour)
        left += width


def log_ticks(axis: Axis, ticks: Sequence[float] = ()) -> None:
    """Plain numbers on a logarithmic axis: at `ticks`, or at 1, 2 and 5 of every decade."""
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """0.5, 64, 4,096, 6.7 G."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return (
                f"{value / size:.2g} {unit}" if value < 99 * size else f"{value / size:.0f} {unit}"
            )
    return f"{value:,g}" if value >= 1000 else f"{value:g}"


def share_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])


def percent_axis(axes: Axes, name: str, right: float = 1.0) -> None:
    axes.set_xlim(0, right)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.set_xlabel(name)
