"""Colours, markers and matplotlib's settings of every figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

INK = "#010203"  # placeholder of the page's text colour, replaced in the SVG
GREY = "#8a8f98"
# Okabe and Ito's colours without black and yellow, which colour-blind readers can distinguish
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
PHASE_COLOURS = {"verify": "#0072b2", "draft": "#e69f00", "accept": "#009e73", "other": GREY}

WIDTH = 11.5  # inches

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
