"""Bars: speedup, accepted length, and the decode loop's time by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from bench.records.runs import PHASES
from reports.page.figures.axes import percent_axis, stack
from reports.page.figures.canvas import Key, Panel, draw_panels
from reports.page.figures.style import INK, PHASE_COLOURS, Look

LONGEST = 8  # accepted lengths from here on share one bar


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
            end = max(end, 1.0)  # right of the line at 1
            axes.text(end + 0.015 * right, place, f"{value:.2f}×", va="center")
        axes.set_xlim(0, right)
        axes.set_xlabel("speedup over autoregressive decoding")

    alt = "Speedup by method with 95 % intervals"
    return draw_panels("speedup", alt, panels, draw, lambda label: style[label].name)


def accepted(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """Bars of the share of verify steps by the tokens they emitted, the mean next to each."""
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
            stack(axes, place, [count / sum(steps) for count in steps], colours)
            axes.text(1.02, place, f"{mean:.2f}", va="center")
        percent_axis(axes, "share of verify steps; accepted length at the right", 1.1)

    keys = [Key(name, colour) for name, colour in zip(names, colours, strict=True)]
    alt = "Shares of verify steps by accepted length"
    return draw_panels(
        *("accepted", alt, panels, draw, lambda label: style[label].name, keys),
        key_title="Tokens per step",
    )


def shares(panels: Sequence[Panel], style: Mapping[str, Look]) -> Markup:
    """Bars of the decode loop's time by phase."""
    order = sorted(PHASES, key=list(PHASE_COLOURS).index)
    colours = [PHASE_COLOURS[phase] for phase in order]

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for place, (_, row) in enumerate(rows.iterrows()):
            stack(axes, place, [float(row[phase]) for phase in order], colours)
            if row["verify"] > 0.1:
                text = f"{100 * row['verify']:.0f} %"
                axes.text(row["verify"] / 2, place, text, va="center", ha="center", color="white")
        percent_axis(axes, "share of the decode loop's time")

    keys = [Key(phase, PHASE_COLOURS[phase]) for phase in order]
    alt = "Verification share with draft, accept and other"
    return draw_panels("shares", alt, panels, draw, lambda label: style[label].name, keys)
