"""The section on cost studies: forwards and steps, and the lower bound from memory bandwidth.

A page of studies alone has this section and no table of records.
"""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.decoding.engines.registry import ENGINES
from reports.measures import cost as measures
from reports.page.columns import Column, column, figure
from reports.page.figures.lines import Chart, Curve, draw_curves
from reports.page.figures.style import ENGINE_COLOURS, GREY, MARKERS, Look
from reports.page.format import NONE, digits, listed, memory, parameters, percent, text
from reports.page.model import Card, Page, Section, Table, TableRow, Tag
from reports.page.tables import plain, reference_tag

COLOURS = dict(zip(ENGINES, ENGINE_COLOURS, strict=True))
GIGA = 1e9


def section(page: Page) -> Section:
    """Nothing to show where no cost study was given."""
    costs = page.costs
    forwards, steps = measures.forwards(costs), measures.steps(costs)
    projections = measures.projections(costs, page.records)
    tables = [
        *_bandwidths(page),
        *_forwards(page, forwards),
        *_ratios(page, forwards),
        *_steps(page, steps),
        *_drafts(page, steps),
        *_projections(page, projections),
        *_engines(page),
        *_failures(page),
    ]
    return Section(
        "cost",
        "Cost",
        "What forwards of the target and steps of each method cost by model size, engine, width "
        "and context, with the lower bound that the memory's bandwidth sets.",
        _figures(page, forwards, steps),
        tables,
        measures.DEFINITIONS,
    )


# ---------------------------------------------------------------------------------- figures


def _figures(page: Page, forwards: pd.DataFrame, steps: pd.DataFrame) -> Markup | None:
    drawn = [_shares(page, steps)] if len(steps) else []
    if len(forwards):
        drawn.append(_by_width(forwards))
        if forwards["context"].nunique() > 1:
            drawn.append(_by_context(forwards))
    return Markup("").join(drawn) if drawn else None


def _charts(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows that may share axes, with a title of the model and the settings that vary."""
    by = ["run", "model", "dtype", "device"]
    shown = [name for name in by if name == "model" or rows[name].nunique() > 1]
    return [
        (" · ".join(str(group.iloc[0][name]) for name in shown), group)
        for _, group in rows.groupby(by, sort=False)
    ]


def _by_width(rows: pd.DataFrame) -> Markup:
    """A line for each engine and context, and the floor of each context."""
    contexts = sorted(rows["context"].unique())
    marker = dict(zip(contexts, itertools.cycle(MARKERS), strict=False))
    charts = []
    for title, group in _charts(rows):
        curves = [
            Curve(
                list(line["width"]),
                list(line["ms"]),
                Look(COLOURS[str(engine)], marker[context], f"{engine}, context {context:,}"),
            )
            for (engine, context), line in group.groupby(["engine", "context"], sort=False)
        ]
        for context, line in group.groupby("context"):
            floor = line.groupby("width")["floor_ms"].min()
            look = Look(GREY, marker[context], f"floor, context {context:,}")
            curves.append(Curve(list(floor.index), list(floor), look, dashed=True))
        charts.append(Chart(title, curves))
    alt = "Time of a forward against its width, by model, engine and context, with the floor"
    return draw_curves(
        "cost-width", alt, charts, "width of the forward, tokens", "ms a forward", False
    )


def _by_context(rows: pd.DataFrame) -> Markup:
    """A line for each engine at the narrowest and the widest forward, and the floor."""
    widths = sorted({rows["width"].min(), rows["width"].max()})
    marker = dict(zip(widths, MARKERS, strict=False))
    charts = []
    for title, group in _charts(rows[rows["width"].isin(widths)]):
        curves = [
            Curve(
                list(line["context"]),
                list(line["ms"]),
                Look(COLOURS[str(engine)], marker[width], f"{engine}, width {width}"),
            )
            for (engine, width), line in group.groupby(["engine", "width"], sort=False)
        ]
        floor = group.groupby("context")["floor_ms"].min()
        look = Look(GREY, "D", "floor")
        curves.append(Curve(list(floor.index), list(floor), look, dashed=True))
        charts.append(Chart(title, curves))
    alt = "Time of a forward against the context, by model, engine and width, with the floor"
    return draw_curves(
        "cost-context", alt, charts, "cached tokens before the forward", "ms a forward", False
    )


def _shares(page: Page, rows: pd.DataFrame) -> Markup:
    """Verification share against the target's size, a chart for each engine and context."""
    several = {name: rows[name].nunique() > 1 for name in ("run", "dtype", "device")}
    charts = []
    by = ["run", "dtype", "device", "engine", "context"]
    for (run, dtype, device, engine, context), group in rows.groupby(by, sort=False):
        extra = {"run": run, "dtype": dtype, "device": device}
        title = " · ".join(
            [
                *(str(value) for name, value in extra.items() if several[name]),
                str(engine),
                f"context {context:,}",
            ]
        )
        curves = []
        for label, line in group.groupby("label", sort=False):
            ordered = line.sort_values("parameters")
            x, y = list(ordered["parameters"]), list(ordered["verify"])
            curves.append(Curve(x, y, page.style[str(label)]))
        charts.append(Chart(title, curves))
    alt = "Verification share against the target's parameters, by engine, context and method"
    return draw_curves(
        "cost-shares", alt, charts, "parameters of the target", "verification share", True
    )


# ---------------------------------------------------------------------------------- tables


def _names(rows: pd.DataFrame, *own: str) -> list[str]:
    """The settings that a table prints: its own, and others that vary."""
    if rows.empty:
        return []
    rare = ("run", "dtype", "device", "package_version", "revision")
    return [*(name for name in rare if rows[name].nunique(dropna=False) > 1), *own]


def _bandwidths(page: Page) -> list[Table]:
    rows = measures.bandwidths(page.costs)
    columns = [
        column("Device", "device", text, numeric=False),
        column("Copy GB/s", "copy", _per_second),
        column("Read GB/s", "read", _per_second),
        column("Bandwidth GB/s", "best", _per_second),
    ]
    names = ["run"] if len(rows) and rows["run"].nunique() > 1 else []
    return plain(page, "Bandwidth of the device's memory", rows, names, columns)


def _forwards(page: Page, rows: pd.DataFrame) -> list[Table]:
    columns = [
        figure("Width", "width", "{:,}"),
        column("Forward ms", "ms", digits),
        Column("Middle half", "low", lambda row: f"[{digits(row['low'])}, {digits(row['high'])}]"),
        column("Floor ms", "floor_ms", digits),
        column("Time over floor", "over_floor", _times),
        column("Achieved GB/s", "achieved", _per_second),
        column("Bytes", "bytes", memory),
    ]
    names = _names(rows, "model", "engine", "context")
    return plain(page, "Forward by model, engine, context and width", rows, names, columns)


def _ratios(page: Page, rows: pd.DataFrame) -> list[Table]:
    """Wider forwards over those of one token: a row for each engine and context."""
    if rows.empty or rows["over_one"].isna().all():
        return []
    wide = sorted(width for width in rows["width"].unique() if width > 1)
    by = list(measures.SETTINGS)
    lines: list[dict[str, Any]] = []
    for _, group in rows.groupby(by, dropna=False, sort=False):
        found = group.set_index("width")["over_one"]
        lines.append(
            {name: group.iloc[0][name] for name in by} | {f"w{w}": found.get(w) for w in wide}
        )
    table = pd.DataFrame(lines)
    columns = [figure(f"Width {w} over 1", f"w{w}", "{:.2f}×") for w in wide]
    names = _names(table, "model", "engine", "context")
    return plain(page, "Wider forwards over those of one token", table, names, columns)


def _steps(page: Page, rows: pd.DataFrame) -> list[Table]:
    columns = [
        column("Step ms", "step_ms", digits),
        column("Draft ms", "draft_ms", digits),
        column("Verify ms", "verify_ms", digits),
        column("Accept ms", "accept_ms", digits),
        column("Other ms", "other_ms", digits),
        column("Accept + other ms", "overhead_ms", digits),
        column("Verification", "verify", percent),
        figure("Clock", "clock", "{:.3f}×"),
        figure("Break-even", "break_even", "{:.2f}"),
        figure("Nodes/step", "nodes", "{:.1f}"),
    ]
    names = _names(rows, "model", "engine", "context")
    return plain(
        page, "Phases of a step by model, engine, context and method", rows, names, columns, _tags
    )


def _drafts(page: Page, rows: pd.DataFrame) -> list[Table]:
    rows = rows if rows.empty else rows[rows["draft_floor_ms"].notna()]
    columns = [
        column("Draft ms", "draft_ms", digits),
        column("Floor ms", "draft_floor_ms", digits),
        column("Time over floor", "draft_over_floor", _times),
        column("Bytes a step", "draft_bytes", memory),
        column("Draft parameters", "draft_parameters", parameters),
    ]
    names = _names(rows, "model", "engine", "context")
    return plain(page, "Drafts and their floor", rows, names, columns, _tags)


def _projections(page: Page, rows: pd.DataFrame) -> list[Table]:
    columns = [
        figure("Projected", "projected", "{:.2f}×"),
        figure("Accepted length", "accepted", "{:.2f}"),
        column("Accepted length of", "source", text, numeric=False),
        column("On", "dataset", text, numeric=False),
        figure("T", "temperature", "{:g}"),
        figure("Break-even", "break_even", "{:.2f}"),
    ]
    names = _names(rows, "model", "engine", "context")
    caption = "Projection, not measured: another model's accepted length, this model's steps"
    return plain(page, caption, rows, names, columns, _tags)


def _engines(page: Page) -> list[Table]:
    rows = measures.engines(page.costs)
    columns = [
        column("Parameters", "parameters", parameters),
        column("Weights read a forward", "weight_bytes", memory),
        column("Keys and values a token", "row_bytes", memory),
        figure("Start-up s", "startup_s", "{:.1f}"),
        column("Peak memory", "peak_memory_bytes", memory),
    ]
    return plain(page, "Models and engines", rows, _names(rows, "model", "engine"), columns)


def _failures(page: Page) -> list[Table]:
    rows = measures.failures(page.costs)
    columns = [
        column("What", "what", text, numeric=False),
        column("Status", "status", text, numeric=False),
        column("Reason", "error", text, numeric=False),
    ]
    names = _names(rows, "model", "engine", "context")
    return plain(page, "Not measured", rows, names, columns)


def _per_second(value: float) -> str:
    return digits(value / GIGA)


def _times(value: float) -> str:
    return NONE if pd.isna(value) else f"{digits(value)}×"


def _tags(row: TableRow) -> list[Tag]:
    return reference_tag(row) + [Tag("random draft")] * bool(row["random"])


# ---------------------------------------------------------------------------------- the top


def cards(page: Page) -> list[Card]:
    """Of a page without runs: each model's forward of one token over its floor, and what was
    measured."""
    rows = measures.forwards(page.costs)
    found = []
    if len(rows):
        one = rows[rows["width"] == rows["width"].min()]
        for model, group in one.groupby("model", sort=False):
            best = group.loc[group["over_floor"].idxmin()]
            place = f"width {best['width']}, context {best['context']:,}, {best['engine']}"
            note = f"{digits(best['ms'])} ms, floor {digits(best['floor_ms'])} ms; {place}"
            title = f"Forward over floor, {model}"
            found.append(Card(title, f"{best['over_floor']:.2f}×", note, strong=True))
    facts = {"Model": "model", "Device": "device", "Precision": "dtype", "Engine": "engine"}
    return found + [
        Card(title, listed(list(dict.fromkeys(record[name] for record in page.costs))))
        for title, name in facts.items()
    ]
