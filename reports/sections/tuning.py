"""How tuned parameters were chosen: the curves that `python -m bench.tune` measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from bench.records.runs import label
from bench.records.tuned import FINAL, SEARCH, Point, TunedFor, TunedMethod
from reports.measures import Definitions
from reports.page.figures import tuning
from reports.page.figures.canvas import Panel
from reports.page.format import bounds, listed, number
from reports.page.model import Cell, Head, Page, Section, Table, Tag
from reports.read.preparation import TUNING

DEFINITIONS: Definitions = (
    (
        "Speedup",
        "accepted length / seconds a step, times the reference's seconds a token: decode loops "
        "alone, reference and settings interleaved question by question. The 95 % interval is a "
        "bootstrap over questions.",
    ),
    (
        "Search",
        "parameter by parameter from the method's defaults; the values of one race on the same "
        "few questions, and those much slower drop out. The first parameter's neighbours race once "
        "more at the end. A line joins settings that differ in one parameter alone.",
    ),
    (
        "Final",
        "the best of each method on questions that the search did not see; the fastest is chosen.",
    ),
    (
        "Width",
        "mean tokens of a verify forward: drafted nodes and the root.",
    ),
)


class _Curve(NamedTuple):
    """A method as tuned for one machine."""

    tuned_for: TunedFor
    method: str
    entry: TunedMethod


def section(page: Page) -> Section:
    """Nothing to show where no run took tuned parameters."""
    curves = list(_curves(page))
    return Section(
        "tuning",
        "Tuning",
        "How tuned parameters were chosen: by decoding the question set "
        f"{TUNING}, which is in no other table.",
        _drawing(page, curves) if curves else None,
        [_table(curves)] if curves else [],
        DEFINITIONS,
    )


def _curves(page: Page) -> Iterator[_Curve]:
    """The runs' entries, each once."""
    known: list[_Curve] = []
    for run in page.runs:
        if run.tuned is None:
            continue
        for method, entry in run.tuned.methods.items():
            curve = _Curve(run.tuned.tuned_for, method, entry)
            if curve not in known:
                known.append(curve)
                yield curve


def _drawing(page: Page, curves: Sequence[_Curve]) -> Markup:
    several = len({curve.tuned_for for curve in curves}) > 1
    return tuning.tuning(
        [(page.style[curve.method].colour, _panel(curve, several)) for curve in curves]
    )


def _panel(curve: _Curve, several: bool) -> Panel:
    """Its points, `line` naming the settings that share a line and `chosen` the one that won."""
    points, chosen = curve.entry.points, curve.entry.chosen
    along, others = _axis(points)
    rows = [
        asdict(point)
        | {"line": _settings(point, others), "chosen": point == chosen, "along": along}
        for point in points
    ]
    place = f" · {curve.tuned_for.engine} · {curve.tuned_for.device}" if several else ""
    return Panel(curve.method + place, pd.DataFrame(rows))


def _axis(points: Sequence[Point]) -> tuple[str, list[str]]:
    """The parameter of which most values were tried, and the others that were varied."""
    values = {name: {point.params[name] for point in points} for name in points[0].params}
    counts = Counter({name: len(tried) for name, tried in values.items()})
    along = counts.most_common(1)[0][0]
    return along, [name for name, count in counts.items() if count > 1 and name != along]


def _settings(point: Point, names: Sequence[str]) -> str:
    return label("", {name: point.params[name] for name in names}).strip("()")


def _table(curves: Sequence[_Curve]) -> Table:
    """The finalists of every method, the chosen one marked."""
    heads = [Head(text) for text in ("Model", "Engine", "Dtype", "Device", "Method")]
    names = ("Speedup", "95 % interval", "Accepted length", "Width", "Step ms", "Reference ms")
    heads += [Head(text, True) for text in (*names, "Questions", "Settings tried")]
    lines = [
        [*_setup(curve.tuned_for), *_figures(curve, point)]
        for curve in curves
        for point in curve.entry.points
        if point.stage == FINAL
    ]
    return Table("Settings in the final of each method", heads, lines)


def _setup(tuned_for: TunedFor) -> list[Cell]:
    words = (tuned_for.model, tuned_for.engine, tuned_for.dtype, tuned_for.device)
    return [Cell(word, word, setting=True) for word in words]


def _figures(curve: _Curve, point: Point) -> list[Cell]:
    name, tried = label(curve.method, point.params), _tried(curve.entry)
    won = [Tag("chosen")] if point == curve.entry.chosen else []
    span = bounds({"low": point.low, "high": point.high})
    return [
        Cell(name, name, tags=won, names_row=True),
        Cell(number(point.speedup, "{:.2f}×"), point.speedup),
        Cell(span, point.low),
        Cell(number(point.accepted, "{:.2f}"), point.accepted),
        Cell(number(point.width, "{:.1f}"), point.width),
        Cell(number(1000 * point.step_s, "{:.2f}"), point.step_s),
        Cell(number(1000 * point.reference_s, "{:.2f}"), point.reference_s),
        Cell(listed([point.questions]), point.questions),
        Cell(listed([tried]), tried),
    ]


def _tried(entry: TunedMethod) -> int:
    return sum(point.stage == SEARCH for point in entry.points)
