"""What the page says: one function a section, from the page's records to tables ready to print.

A new section is one function here, added to SECTIONS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from reports.measures import metrics, published
from reports.page import figures
from reports.page.columns import defined, drawn, faster, non_repeating, pivot, ratio
from reports.page.tables import (
    INTERVAL,
    NONE,
    Card,
    Cell,
    Column,
    Head,
    Page,
    Row,
    Section,
    Table,
    bounds,
    column,
    counted,
    figure,
    listed,
    memory,
    number,
    parameters,
    percent,
    tables,
    tags,
    text,
)
from reports.sections import breakdown, comparability, cost, overview, viewer
from reports.sections import outputs as same_output
from reports.sections import significance as sureness
from reports.sections import tuning as tune


def speedup(page: Page) -> Section:
    rows = page.speedup
    drawing, cut = drawn(_known(rows, "speedup"), lambda shown: figures.speedup(shown, page.style))
    columns = [
        figure("Speedup", "speedup", "{:.2f}×"),
        INTERVAL,
        ratio("Beside the fastest", "beside"),
        ratio("End to end", "end_to_end"),
        non_repeating("Non-repeating"),
        figure("Median", "median", "{:.2f}×"),
        figure("Tokens/s", "tokens_per_s", "{:.1f}"),
        column("Draft parameters", "draft_parameters", parameters),
        column("Peak memory", "peak_memory_bytes", memory),
        figure("Pairs", "pairs", "{:,.0f}"),
        figure("Questions", "prompts", "{:,.0f}"),
        figure("Repeats", "repeats", "{:,.0f}"),
    ]
    lead = "How much faster than plain autoregressive decoding on the same engine and device."
    if page.records["synthetic"].any():
        lead += " Synthetic models have random weights: no speedup is reported for them."
    return Section(
        "speedup",
        "Speedup",
        " ".join((lead, *sureness.notices(page))) + cut,
        drawing,
        tables(page, "Speedup by model, question set, engine and method", rows, columns),
        metrics.SPEEDUP,
        "No good records: nothing to compare.",
        records=_good(page),
    )


def accepted(page: Page) -> Section:
    rows = page.accepted
    drawing, cut = drawn(_known(rows, "accepted"), figures.accepted)
    columns = [
        figure("Accepted length", "accepted", "{:.2f}"),
        INTERVAL,
        figure("Drafted only", "drafted_only", "{:.2f}"),
        figure("Verify steps", "verify_steps", "{:,.0f}"),
        figure("Nodes/step", "nodes_per_step", "{:.1f}"),
    ]
    return Section(
        "accepted",
        "Accepted length",
        "How many tokens one forward of the target gives." + cut,
        drawing,
        tables(page, "Accepted length by model, question set, engine and method", rows, columns),
        metrics.ACCEPTED,
        "No good records: nothing to count.",
        records=_good(page),
    )


def shares(page: Page) -> Section:
    rows = page.shares
    drawing, cut = drawn(_known(rows, "verify"), figures.shares)
    columns = [
        defined(column("Verification", "verify", percent), "Verification share"),
        Column("95 % interval", "low", _percent_bounds, parts=("low", "high")),
        column("Draft", "draft", percent),
        column("Accept", "accept", percent),
        column("Other", "other", percent),
        figure("Verify steps", "verify_steps", "{:,.0f}"),
        figure("Verify ms/step", "verify_ms", "{:.2f}"),
        figure("Loop ms/step", "loop_ms", "{:.2f}"),
    ]
    return Section(
        "shares",
        "Verification share",
        "Where the decode loop's time goes." + cut,
        drawing,
        tables(page, "Verification share by model, question set, engine and method", rows, columns),
        metrics.SHARES,
        "No good records: nothing was timed.",
        records=int((page.records["ok"] & page.records["loop_s"].notna()).sum()),
    )


def _percent_bounds(row: Row) -> str:
    if pd.isna(row["low"]):
        return NONE
    return f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}] %"


def _good(page: Page) -> int:
    return int(page.records["ok"].sum())


def _known(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    return rows if rows.empty else rows[rows[key].notna()]


def categories(page: Page) -> Section:
    rows = metrics.by_category(page.records[~page.records["synthetic"]])
    if len(rows):
        rows = rows.assign(category=rows["category"].map(text))
    known = _known(rows, "speedup")
    known = known if known.empty else known[~known["reference"]]
    drawing, cut = drawn(known, lambda shown: figures.categories(shown, page.style))
    sets = rows.groupby("dataset", sort=False) if len(rows) else ()
    return Section(
        "categories",
        "By category",
        "Speedup over the reference, and below it the accepted length, for each category." + cut,
        drawing,
        [table for name, group in sets for table in _categories_of(page, str(name), group)],
        metrics.CATEGORIES,
        "No good records of a real model: nothing to compare.",
        records=int((page.records["ok"] & ~page.records["synthetic"]).sum()),
    )


def _categories_of(page: Page, dataset: str, rows: pd.DataFrame) -> list[Table]:
    """One question set: a row for each method, a column for each category."""
    names = [(name, str(name)) for name in rows["category"].unique()]
    caption = f"{dataset}: speedup and accepted length by category"
    return pivot(page, caption, rows, "category", names, faster, "Category")


def beside_published(page: Page) -> Section:
    rows = page.speedup
    titles = ("Method", "Models", "Question sets", "Temperature", "Published", "Source")
    heads = [Head(title) for title in (*titles, "Measured here", "On")]
    heads += [Head("Speedup", True), Head("95 % interval", True)]
    lines: list[list[Cell]] = []
    for known in published.FIGURES:
        words = (known.model, known.dataset, known.temperature, known.speedup, known.source)
        stated = [Cell(word, word) for word in (known.method, *words)]
        found = known.measured(rows).to_dict("records")
        lines += [[*stated, *_measured_cells(page, row)] for row in found]
        if not found:
            lines.append([*stated, Cell("not run", "not run"), Cell(NONE), Cell(NONE), Cell(NONE)])
    return Section(
        "published",
        "Published beside measured",
        "What papers state for their methods, and what this page's records give on the same "
        "models and question sets.",
        tables=[Table("Published speedups and those measured here", heads, lines)],
        definitions=metrics.PUBLISHED,
    )


def _measured_cells(page: Page, row: Row) -> list[Cell]:
    names = ["run"] * (len(page.runs) > 1) + ["model", "dataset", "dtype", "engine"]
    where = ", ".join((*(str(row[name]) for name in names), f"T = {row['temperature']:g}"))
    speed, span = number(row["speedup"], "{:.2f}×"), bounds(row)
    return [
        Cell(row["label"], row["label"], tags=tags(page, row), names_row=True),
        Cell(where, where),
        Cell(speed, row["speedup"]),
        Cell(span, None if span == NONE else row["low"]),
    ]


def failures(page: Page) -> Section:
    failed, warned = metrics.failures(page.records), metrics.warnings(page.records)
    reasons = [
        column("Status", "status", text, numeric=False),
        column("Reason", "error", text, numeric=False),
        figure("Records", "count", "{:,.0f}"),
    ]
    first = [
        column("First warning", "first", text, numeric=False),
        figure("Records", "count", "{:,.0f}"),
    ]
    return Section(
        "failures",
        "Errors and skips",
        "What did not run and why, and what ran with a warning.",
        tables=[
            *tables(page, "Errors and skips", failed.assign(failed=0), reasons),
            *tables(page, "Good records with warnings", warned.assign(failed=0), first),
        ],
        definitions=metrics.FAILURES,
        empty="None: every record is good and without a warning.",
    )


def environment(page: Page) -> Section:
    found = [(run.name, _flat(run.environment)) for run in page.runs if run.environment]
    return Section(
        "environment",
        "Environment",
        "The machine, the packages and the settings that the figures were measured with.",
        tables=[
            Table(
                name,
                [Head("Item"), Head("Value")],
                [[Cell(item, item, names_row=True), Cell(value, value)] for item, value in items],
            )
            for name, items in found
        ],
        empty="No environment.json was kept.",
        details=[
            (f"Settings of {run.name} ({run.settings_name})", run.settings_text)
            for run in page.runs
            if run.settings_text
        ],
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str):
            found.append((f"{prefix}{name}", value or NONE))
        else:
            found.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return found


SECTIONS: tuple[Callable[[Page], Section], ...] = (
    overview.section,
    comparability.section,
    speedup,
    sureness.section,
    accepted,
    shares,
    breakdown.factors,
    breakdown.questions,
    breakdown.depths,
    categories,
    breakdown.temperatures,
    breakdown.positions,
    breakdown.contexts,
    breakdown.loops,
    viewer.section,
    tune.section,
    cost.section,
    same_output.section,
    beside_published,
    failures,
    environment,
)
OF_STUDIES: tuple[Callable[[Page], Section], ...] = (cost.section, environment)  # without a run


# ---------------------------------------------------------------------------------- the top


def smoke(page: Page) -> list[str]:
    """The words over a page of smoke runs, one line for each."""
    lines = []
    for run in page.runs:
        if run.settings.get("preset") != "quick":
            continue
        records = page.records[page.records["run"] == run.name]
        if records.empty:
            continue
        size = ", ".join(
            (
                counted(int(_asked(records).sum()), "question"),
                f"{listed(list(records['max_new_tokens'].unique()))} tokens",
                counted(records["repeat"].nunique(), "repeat"),
            )
        )
        name = f" ({run.name})" if len(page.runs) > 1 else ""
        lines.append(
            f"A smoke run{name}: {size}. It shows that the suite works; it is no benchmark result."
        )
    return lines


def notes(page: Page) -> list[str]:
    """What was given and is not shown, in one line."""
    if not page.left_out:
        return []
    return [
        f"{counted(page.left_out, 'record')} of the question set {metrics.TUNING} left out: "
        "it is for choosing parameters only and is in no table."
    ]


def _asked(records: pd.DataFrame) -> pd.Series[int]:
    """Questions of each set."""
    known = records.loc[records["prompt_id"].notna(), ["dataset", "prompt_id"]]
    return known.drop_duplicates().groupby("dataset", sort=False).size()


def cards(page: Page) -> list[Card]:
    """Each model's highest speedup among its lossless methods, and what was measured."""
    records = page.records
    limits = listed(list(records["max_new_tokens"].unique()))
    questions = [f"{count} of {name}" for name, count in _asked(records).items()]
    engines = list(records.loc[~records["stock"], "engine"].unique())
    return [
        *_best(page),
        Card("Model", listed(list(records["model"].unique()))),
        Card("Device", listed(list(records["device"].unique()))),
        Card("Precision", listed(list(records["dtype"].unique()))),
        Card("Engine", listed(engines) or NONE),
        Card(
            "Questions",
            listed(questions) or NONE,
            f"{counted(records['repeat'].nunique(), 'repeat')}, up to {limits} tokens",
        ),
    ]


def _best(page: Page) -> Iterator[Card]:
    rows = page.speedup.to_dict("records")
    models = page.records["model"].unique()
    for model in models:
        title = f"Highest speedup, {model}" if len(models) > 1 else "Highest speedup"
        candidates = [
            row
            for row in rows
            if row["model"] == model
            and not (row["reference"] or row["stock"] or row["lossy"] or page.defects(row))
            and not pd.isna(row["speedup"])
        ]
        if candidates:
            best = max(candidates, key=lambda row: float(row["speedup"]))
            where = f"{best['dataset']}, {best['engine']}, T = {best['temperature']:g}"
            span = "" if pd.isna(best["low"]) else f"95 % interval {bounds(best)}; "
            note = f"{span}{best['label']} on {where}"
            yield Card(title, f"{best['speedup']:.2f}×", note, strong=True)
        elif str(model).startswith("synthetic:"):
            yield Card(title, NONE, "not reported: random weights", strong=True)
        else:
            yield Card(title, NONE, "no lossless method was compared", strong=True)
