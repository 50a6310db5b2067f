"""The figures of the report: tables of `reports.metrics` in, SVG elements to put into a page out.

Text and axes take the page's text colour, the ground is clear, so that one figure suits light and
dark pages. The same tables give the same bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, TypeVar

import matplotlib.style
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from bench.records.runs import PHASES

Drawn = TypeVar("Drawn")

INK = "#010203"  # stands for the page's text colour until the SVG is written
GREY = "#8a8f98"
# Okabe and Ito's colours without black and yellow, told apart by every reader
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
PHASE_COLOURS = {"verify": "#0072b2", "draft": "#e69f00", "accept": "#009e73", "other": GREY}
LONGEST = 8  # accepted lengths from here on share one bar
NAME_WIDTH, NAME_LINES = 34, 3  # characters and lines of a label
WIDTH = 11.5  # inches
TUNED_ACROSS = 5  # columns of the tuning figure

STYLE: dict[str, Any] = {
    "svg.hashsalt": "chimera-bench",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "ytick.left": False,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}


class Look(NamedTuple):
    """How a method is drawn, the same in every figure of a page."""

    colour: str
    marker: str


def looks(labels: Iterable[str], plain: Iterable[str]) -> dict[str, Look]:
    """A look for each label; those in `plain` (the reference) are grey."""
    grey = set(plain)
    found = {label: Look(GREY, "o") for label in grey}
    for place, label in enumerate(name for name in labels if name not in grey):
        found[label] = Look(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
    return found


class Key(NamedTuple):
    """One entry of a legend."""

    name: str
    colour: str
    marker: str = "s"


class Panel(NamedTuple):
    """One set of axes: its title and its rows, top to bottom."""

    title: str
    rows: pd.DataFrame


class Curve(NamedTuple):
    """Points of one line: y above each x; dashed where it is no measurement."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    dashed: bool = False


class Chart(NamedTuple):
    """One set of axes with lines."""

    title: str
    curves: Sequence[Curve]


# ---------------------------------------------------------------------------------- the figures


def speedup(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """Bars of speedup with their 95 % intervals, a panel for each setting."""
    values = pd.concat([panel.rows[["speedup", "high"]] for panel in panels]).max()
    longest = 2 * max(1.0, float(values["speedup"]))  # intervals of few questions may be longer
    right = 1.18 * min(longest, max(1.0, *values.dropna()))

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        axes.barh(
            range(len(rows)), rows["speedup"], 0.62, color=[style[x].colour for x in rows["label"]]
        )
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        for place, (value, low, high) in enumerate(
            zip(rows["speedup"], rows["low"], rows["high"], strict=True)
        ):
            if low == low:  # no interval for the reference and for single questions
                axes.plot([low, high], [place, place], color=INK, linewidth=1.3)
            end = min(longest, max(value, high)) if high == high else value
            axes.text(end + 0.015 * right, place, f"{value:.2f}×", va="center")
        axes.set_xlim(0, right)
        axes.set_xlabel("speedup over autoregressive decoding")

    return _panels("speedup", "Speedup by method with 95 % intervals", panels, draw)


def accepted(panels: Sequence[Panel]) -> Markup:
    """Bars of the share of verify steps by the tokens they emitted, the mean beside each."""
    most = max(max(steps) for panel in panels for steps in panel.rows["histogram"])
    longest = min(LONGEST, most)
    ramp = colormaps["viridis"]
    colours = [to_hex(ramp(0.22 + 0.73 * step / max(1, longest - 1))) for step in range(longest)]
    names = [*map(str, range(1, longest)), f"{longest}+" if most > longest else f"{longest}"]

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        histograms = zip(rows["histogram"], rows["accepted"], strict=True)
        for place, (histogram, mean) in enumerate(histograms):
            steps = [0] * longest
            for length, count in histogram.items():
                steps[min(length, longest) - 1] += count
            _stack(axes, place, [count / sum(steps) for count in steps], colours)
            axes.text(1.02, place, f"{mean:.2f}", va="center")
        _percent_axis(axes, "share of verify steps; accepted length at the right", 1.1)

    keys = [Key(name, colour) for name, colour in zip(names, colours, strict=True)]
    alt = "Shares of verify steps by accepted length"
    return _panels("accepted", alt, panels, draw, keys, "tokens per step")


def shares(panels: Sequence[Panel]) -> Markup:
    """Bars of the decode loop's time by phase."""
    order = sorted(PHASES, key=list(PHASE_COLOURS).index)
    colours = [PHASE_COLOURS[phase] for phase in order]

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for place, (_, row) in enumerate(rows.iterrows()):
            _stack(axes, place, [float(row[phase]) for phase in order], colours)
            if row["verify"] > 0.1:
                text = f"{100 * row['verify']:.0f} %"
                axes.text(row["verify"] / 2, place, text, va="center", ha="center", color="white")
        _percent_axis(axes, "share of the decode loop's time")

    keys = [Key(phase, PHASE_COLOURS[phase]) for phase in order]
    return _panels("shares", "Verification share with draft, accept and other", panels, draw, keys)


def categories(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """Dots of each method's speedup in each category, a panel for each setting."""
    drawn = dict.fromkeys(label for panel in panels for label in panel.rows["label"])
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

    keys = [Key(label, *style[label]) for label in drawn]
    alt = "Speedup by category and method"
    return _panels("categories", alt, panels, draw, keys, rows="category")


def scatter(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """A dot for each question: its speedup above its accepted length, a panel for each setting."""
    drawn = dict.fromkeys(label for panel in panels for label in panel.rows["label"])
    keys = [Key(label, *style[label]) for label in drawn]

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
    return _grid("questions", alt, shown, draw, keys, "accepted length", "speedup", 3.2)


def curves(
    name: str,
    alt: str,
    charts: Sequence[Chart],
    x: str,
    y: str,
    share: bool,
    linear: bool = False,
) -> Markup:
    """Lines over a logarithmic or a linear x, two charts abreast; y is a share of a whole or
    logarithmic.

    name: of the figure's ids; x, y: what the axes say. Lines of one name look the same everywhere.
    """
    keys = {c.name: Key(c.name, c.look.colour, c.look.marker) for ch in charts for c in ch.curves}

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
            _log_ticks(axes.xaxis, ticks)
        if share:
            _share_axis(axes)
        else:
            axes.set_yscale("log")
            _log_ticks(axes.yaxis)

    shown = [(chart.title, chart.curves) for chart in charts]
    return _grid(name, alt, shown, draw, list(keys.values()), x, y, 2.9)


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
            above.set_title(_wrapped(panel.title, int(13 * WIDTH / across)), pad=8)
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
        return _svg(figure, "tuning", f"{alt}. The table below holds the best settings.")


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


# ---------------------------------------------------------------------------------- drawing


def _grid(
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
            axes.set_title(_wrapped(title, int(WIDTH / across / 0.085)), pad=8)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.grid(color=INK, alpha=0.12)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        _legend(figure, keys, None)
        return _svg(figure, name, f"{alt}. The tables below hold the numbers.")


def _panels(
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
    room = WIDTH / across - 0.07 * max(map(len, lines), default=0)  # inches beside the labels
    with matplotlib.style.context(["default", STYLE]):
        height = down * (row * tallest + 0.8) + _legend_height(keys)
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.1))
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, panel, ticks in zip(grid, panels, names, strict=False):
            draw(axes, panel.rows)
            axes.set_title(_wrapped(panel.title, int(room / 0.085)), pad=8)
            axes.set_yticks(range(len(ticks)), ticks)
            axes.set_ylim(len(ticks) - 0.4, -0.6)
            axes.grid(axis="x", color=INK, alpha=0.12)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if keys:
            _legend(figure, keys, key_title)
        return _svg(figure, name, f"{alt}. The table below holds the numbers.")


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


def _stack(axes: Axes, place: int, widths: Sequence[float], colours: Sequence[str]) -> None:
    left = 0.0
    for width, colour in zip(widths, colours, strict=True):
        if width > 0:
            axes.barh(place, width, 0.62, left=left, color=colour)
        left += width


def _log_ticks(axis: Axis, ticks: Sequence[float] = ()) -> None:
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


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])


def _percent_axis(axes: Axes, name: str, right: float = 1.0) -> None:
    axes.set_xlim(0, right)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.set_xlabel(name)


def _wrapped(title: str, width: int) -> str:
    return "\n".join(textwrap.wrap(title, width, max_lines=3, placeholder="…"))


def _named(name: object) -> str:
    """A label on as few lines as it needs, broken behind commas too; a longer one is cut."""
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


def _shorter(body: str) -> str:
    """The same drawing in half the bytes: the page's font, a hundredth of a point, no indents."""
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = _tag.sub(lambda tag: _long.sub("", tag[0]), body)  # not in what it says
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    return re.sub(r" *\n\s*", " ", body)


_tag, _long = re.compile(r"<[^>]+>"), re.compile(r"(?<=\d\.\d\d)\d+")
_drawn = re.compile(r"<svg\b[^>]*?viewBox=\"([^\"]*)\"[^>]*>(.*)</svg>", re.DOTALL)


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as one `svg` element that loads nothing and whose ids are its own."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    match = _drawn.search(file.getvalue())
    assert match is not None
    box, body = match.groups()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = _shorter(body.replace(INK, "currentColor"))
    width = 96 / 72 * float(box.split()[2])
    return Markup(
        f'<svg class="drawn" viewBox="{box}" style="width:{width:.0f}px" role="img" '
        f'aria-label="{escape(alt)}">{body}</svg>'
    )
