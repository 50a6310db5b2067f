"""Axes in a grid with titles and a legend: what figures are drawn on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import matplotlib.style
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from reports.page.figures.style import INK, STYLE, WIDTH
from reports.page.figures.svg import svg

Drawn = TypeVar("Drawn")

NAME_WIDTH, NAME_LINES = 34, 3  # characters and lines of a label


class Key(NamedTuple):
    """One entry of a legend."""

    name: str
    colour: str
    marker: str = "s"


class Panel(NamedTuple):
    """One set of axes: its title and its rows, top to bottom."""

    title: str
    rows: pd.DataFrame


def draw_grid(
    name: str,
    alt: str,
    shown: Sequence[tuple[str, Drawn]],
    draw: Callable[[Axes, Drawn], None],
    keys: Sequence[Key],
    x: str,
    y: str,
    height: float,
) -> Markup:
    """Axes of a height in inches, two abreast, each with a title and what is drawn on it."""
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    with matplotlib.style.context(["default", STYLE]):
        size = (WIDTH, height * down + _legend_height(keys))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1))
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (title, what) in zip(grid, shown, strict=False):
            draw(axes, what)
            axes.set_title(wrapped(title, int(WIDTH / across / 0.085)), pad=8)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.grid(color=INK, alpha=0.12)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        _legend(figure, keys, None)
        return svg(figure, name, f"{alt}. The tables below hold the numbers.")


def draw_panels(
    name: str,
    alt: str,
    panels: Sequence[Panel],
    draw: Callable[[Axes, pd.DataFrame], None],
    keys: Sequence[Key] = (),
    key_title: str | None = None,
    rows: str = "label",
) -> Markup:
    """Panels two abreast, their rows named at the left, one legend above; name: of its ids."""
    names = [[_named(value) for value in panel.rows[rows].unique()] for panel in panels]
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    tallest = max(map(len, names))
    lines = [line for ticks in names for tick in ticks for line in tick.splitlines()]
    row = max(0.27, 0.06 + 0.15 * max(tick.count("\n") + 1 for ticks in names for tick in ticks))
    room = WIDTH / across - 0.07 * max(map(len, lines), default=0)  # inches right of the labels
    with matplotlib.style.context(["default", STYLE]):
        height = down * (row * tallest + 0.8) + _legend_height(keys)
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.1))
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, panel, ticks in zip(grid, panels, names, strict=False):
            draw(axes, panel.rows)
            axes.set_title(wrapped(panel.title, int(room / 0.085)), pad=8)
            axes.set_yticks(range(len(ticks)), ticks)
            axes.set_ylim(len(ticks) - 0.4, -0.6)
            axes.grid(axis="x", color=INK, alpha=0.12)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if keys:
            _legend(figure, keys, key_title)
        return svg(figure, name, f"{alt}. The table below holds the numbers.")


def _legend(figure: Figure, keys: Sequence[Key], title: str | None) -> None:
    blank = figure.axes[0]
    figure.legend(
        [blank.scatter([], [], 44, color=key.colour, marker=key.marker) for key in keys],
        [_named(key.name) for key in keys],
        title=title,
        loc="outside upper left",
        ncols=_legend_columns(keys),
        handletextpad=0.2,
        alignment="left",
    )


def _legend_columns(keys: Sequence[Key]) -> int:
    longest = max(len(line) for key in keys for line in _named(key.name).splitlines())
    return min(len(keys), int(WIDTH / (0.3 + 0.075 * longest)))


def _legend_height(keys: Sequence[Key]) -> float:
    """Inches; none without keys."""
    if not keys:
        return 0
    down = -(-len(keys) // _legend_columns(keys))
    return 0.3 + 0.17 * down * max(_named(key.name).count("\n") + 1 for key in keys)


def wrapped(title: str, width: int) -> str:
    return "\n".join(textwrap.wrap(title, width, max_lines=3, placeholder="…"))


def _named(name: object) -> str:
    """A label on as few lines as it needs, broken after commas too; a longer one is cut."""
    text = " ".join(str(name).split()).replace(",", ",\v")
    lines = textwrap.wrap(
        text,
        NAME_WIDTH,
        max_lines=NAME_LINES,
        placeholder="…",
        replace_whitespace=False,
        break_on_hyphens=False,
    )
    return "\n".join(line.replace("\v", "") for line in lines)
