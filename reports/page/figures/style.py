"""Colours, markers and matplotlib's settings of every figure."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from matplotlib.colors import to_hex, to_rgb

INK = "#010203"  # placeholder of the page's text colour, replaced in the SVG
GREY = "#8a8f98"
# Of methods: Okabe and Ito's hues without black and yellow, which colour-blind readers can
# distinguish, and two of Tol's. Nothing else on the page has them.
HUES = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#882255", "#999933"),
)
# Drawings of markers, 12 units wide around 0, by matplotlib's names.
MARKERS = {
    "o": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "s": "M-4.5-4.5h9v9h-9Z",
    "D": "M0-6L6 0L0 6L-6 0Z",
    "^": "M0-5L5.5 4.5h-11Z",
    "v": "M0 5L5.5-4.5h-11Z",
    "P": "M-2-5.5h4v3.5h3.5v4H2v3.5h-4V2h-3.5v-4h3.5Z",
    "X": "M-5.5-3L-3-5.5 0-2.5 3-5.5 5.5-3 2.5 0 5.5 3 3 5.5 0 2.5-3 5.5-5.5 3-2.5 0Z",
}
PHASE_COLOURS = {"verify": "#5a4fa2", "draft": "#9188cf", "accept": "#beb8e4", "other": GREY}
ENGINE_COLOURS = ("#8c6d31", "#7a4ea3", "#2f7f7f", "#a3485b")  # in the order of ENGINES

WIDTH = 4.9  # inches of a panel; the page sets as many abreast as fit

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
    """How a method is drawn and named, the same everywhere on a page."""

    colour: str
    marker: str
    name: str


def looks(names: Mapping[str, str], plain: Container[str]) -> dict[str, Look]:
    """A look for each label of `names`, which maps labels to what is shown: one hue a method, a
    shade and a marker for each of its labels; methods in `plain` (the reference) are grey."""
    methods: dict[str, list[str]] = {}
    for label in sorted(names):
        methods.setdefault(label.partition("(")[0], []).append(label)
    coloured = [method for method in methods if method not in plain]
    hues = dict(zip(coloured, itertools.cycle(HUES), strict=False))
    markers = itertools.cycle(MARKERS)
    return {
        label: Look(colour, next(markers), names[label])
        for method, labels in methods.items()
        for label, colour in zip(labels, shades(hues.get(method, GREY), len(labels)), strict=True)
    }


def shades(hue: str, count: int) -> list[str]:
    """So many shades of a hue, the hue itself first where there are one or two."""
    if count == 1:
        return [hue]
    darkest = 0.0 if count == 2 else -0.35
    return [_mixed(hue, darkest + (0.55 - darkest) * at / (count - 1)) for at in range(count)]


def _mixed(hue: str, share: float) -> str:
    """A colour mixed with a share of white, or of black where the share is below 0."""
    other = 1.0 if share > 0 else 0.0
    return to_hex([part + (other - part) * abs(share) for part in to_rgb(hue)])
