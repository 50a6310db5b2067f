"""Panels with a legend: what figures are drawn on.

Each panel is a drawing of its own, so that a page can set one or several abreast; titles and the
legend are text of the page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import matplotlib.style
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from reports.page.figures.style import INK, MARKERS, STYLE, WIDTH, Look
from reports.page.figures.svg import svg

Drawn = TypeVar("Drawn")

NAME_WIDTH, NAME_LINES = 25, 4  # characters and lines of a row's name

_KEY = Markup(
    '<li class="key"><svg viewBox="-6 -6 12 12" aria-hidden="true"><path d="{}" fill="{}"/></svg>'
    "{}</li>"
)
_PANEL = Markup('<div class="panel-drawn"><p class="title">{}</p>{}</div>')


class Key(NamedTuple):
    """One entry of a legend."""

    name: str
    colour: str
    marker: str = "s"


class Panel(NamedTuple):
    """One set of axes: its title and its rows, top to bottom."""

    title: str
    rows: pd.DataFrame


def keys_of(labels: Iterable[str], style: Mapping[str, Look]) -> list[Key]:
    """The legend of methods, each once."""
    looks = [style[label] for label in dict.fromkeys(labels)]
    return [Key(look.name, look.colour, look.marker) for look in looks]


def legend(keys: Sequence[Key], title: str = "") -> Markup:
    """Nothing without keys."""
    if not keys:
        return Markup("")
    named = Markup('<li class="of">{}:</li>').format(title) if title else ""
    shown = Markup("").join(_KEY.format(MARKERS[k.marker], k.colour, k.name) for k in keys)
    return Markup('<ul class="keys">{}{}</ul>').format(named, shown)


def framed(
    name: str,
    alt: str,
    drawings: Sequence[tuple[str, Figure]],
    keys: Sequence[Key] = (),
    key_title: str = "",
) -> Markup:
    """Drawings with their titles below one legend; name: of their ids."""
    panels = [
        _PANEL.format(
            title, svg(figure, f"{name}-{at}", f"{alt}, {title}. The tables hold the numbers.")
        )
        for at, (title, figure) in enumerate(drawings)
    ]
    return legend(keys, key_title) + Markup('<div class="panels">{}</div>').format(
        Markup("").join(panels)
    )


def blank(height: float) -> Figure:
    """A figure of a panel's width and a height in inches."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.06))


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
    """Axes of a height in inches, each with a title and what is drawn on it."""
    drawings = []
    with matplotlib.style.context(["default", STYLE]):
        for title, what in shown:
            figure = blank(height)
            axes = figure.subplots()
            draw(axes, what)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.grid(color=INK, alpha=0.12)
            drawings.append((title, figure))
        return framed(name, alt, drawings, keys)


def draw_panels(
    name: str,
    alt: str,
    panels: Sequence[Panel],
    draw: Callable[[Axes, pd.DataFrame], None],
    named: Callable[[str], str],
    keys: Sequence[Key] = (),
    key_title: str = "",
    rows: str = "label",
) -> Markup:
    """Panels whose rows are named at the left: `named` of the column `rows`."""
    drawings = []
    with matplotlib.style.context(["default", STYLE]):
        for panel in panels:
            names = [_wrapped(named(str(value))) for value in panel.rows[rows].unique()]
            row = max(0.27, 0.06 + 0.15 * max(name.count("\n") + 1 for name in names))
            figure = blank(row * len(names) + 0.5)
            axes = figure.subplots()
            draw(axes, panel.rows)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.grid(axis="x", color=INK, alpha=0.12)
            drawings.append((panel.title, figure))
        return framed(name, alt, drawings, keys, key_title)


def _wrapped(name: str) -> str:
    """A name on as few lines as it needs, broken after commas too; a longer one is cut."""
    text = " ".join(name.split()).replace(",", ",\v").replace("(", "(\v")
    lines = textwrap.wrap(
        text,
        NAME_WIDTH,
        max_lines=NAME_LINES,
        placeholder="…",
        replace_whitespace=False,
        break_on_hyphens=False,
    )
    return "\n".join(line.replace("\v", "") for line in lines)
