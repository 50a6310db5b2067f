"""The top of the page: its cards, and notes on smoke runs and on records left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from reports.page.format import NONE, bounds, digits, listed
from reports.page.model import Card, Page, TableRow
from reports.page.shown_turns import COMMAND
from reports.read.preparation import TUNING
from reports.read.words import counted

NOT_REPORTED = "The weights are random: only costs and shares are measured"


def smoke(page: Page) -> list[str]:
    """The notice above a page of smoke runs: a line for each run, and what the page leaves out."""
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
                counted(_repeats(records), "repeat"),
            )
        )
        name = f" ({run.name})" if len(page.runs) > 1 else ""
        lines.append(
            f"A smoke run{name}: {size}. It shows that the suite works; it is no benchmark result."
        )
    if page.smoke:
        lines.append(f"Finer sections are left out. Answers step by step: {COMMAND} RUN PROMPT_ID")
    return lines


def notes(page: Page) -> list[str]:
    """Lines on records that are not shown, and on times that the phase clock is part of."""
    return [*_left_out(page), *_clocked(page)]


def _clocked(page: Page) -> Iterator[str]:
    slowed = page.records[page.records["ok"] & page.records["clocked"] & page.records["timed"]]
    runs = list(slowed["run"].unique())
    if runs:
        yield (
            f"The phase clock ran in all repeats of {listed(runs)}, whose speedups and tokens/s "
            "hold what it costs."
        )


def _repeats(records: pd.DataFrame) -> int:
    """Timed repeats."""
    return int(records.loc[records["timed"], "repeat"].nunique())


def _left_out(page: Page) -> list[str]:
    if not page.left_out:
        return []
    return [
        f"{counted(page.left_out, 'record')} of the question set {TUNING} left out: "
        "it is for choosing parameters only and is in no table."
    ]


def _asked(records: pd.DataFrame) -> pd.Series[int]:
    """Questions of each set."""
    known = records.loc[records["prompt_id"].notna(), ["dataset", "prompt_id"]]
    return known.drop_duplicates().groupby("dataset", sort=False).size()


def cards(page: Page) -> list[Card]:
    """The headline of each model, and what was measured."""
    records = page.records
    limits = listed(list(records["max_new_tokens"].unique()))
    questions = [f"{count} of {name}" for name, count in _asked(records).items()]
    engines = list(records.loc[~records["stock"], "engine"].unique())
    return [
        *(_headline(page, str(model)) for model in records["model"].unique()),
        Card("Model", listed(list(records["model"].unique()))),
        Card("Device", listed(list(records["device"].unique()))),
        Card("Precision", listed(list(records["dtype"].unique()))),
        Card("Engine", listed(engines) or NONE),
        Card(
            "Questions",
            listed(questions) or NONE,
            f"{counted(_repeats(records), 'repeat')}, up to {limits} tokens",
        ),
    ]


def _headline(page: Page, model: str) -> Card:
    """The fastest lossless setting of a model in tokens/s, with its speedup over the reference on
    its own engine; in words where that is not known to be above 1."""
    of = f", {model}" if page.records["model"].nunique() > 1 else ""
    title = f"Fastest lossless setting{of}"
    held = [
        row
        for row in page.speedup.to_dict("records")
        if row["model"] == model
        and not (row["reference"] or row["stock"] or row["lossy"] or page.defects(row))
        and not pd.isna(row["speedup"])
    ]
    if model.startswith("synthetic:"):
        return Card(f"No speed is reported{of}", NOT_REPORTED, strong=True)
    if not held:
        return Card(title, "No lossless method was compared with plain decoding", strong=True)
    fastest = max(held, key=_tokens)
    beside = [row for row in held if row["panel"] == fastest["panel"]]
    sure = [row for row in beside if row["distinct"] and row["speedup"] > 1]
    if sure:
        best = max(sure, key=_tokens)
        return Card(title, _speed(best), _where(page, best), strong=True, figure=True)
    return Card(title, _unsure(beside), f"{_speed(fastest)}: {_where(page, fastest)}", strong=True)


def _tokens(row: TableRow) -> float:
    return float(row["tokens_per_s"])


def _speed(row: TableRow) -> str:
    return f"{digits(row['tokens_per_s'])} tokens/s, {row['speedup']:.2f}×"


def _where(page: Page, row: TableRow) -> str:
    span = "" if pd.isna(row["low"]) else f"; 95\u00a0% interval of the speedup {bounds(row)}"
    where = f"{row['dataset']}, engine {row['engine']}, T\u00a0=\u00a0{row['temperature']:g}"
    return f"{page.style[row['label']].name} on {where}{span}"


def _unsure(rows: Sequence[TableRow]) -> str:
    """Of the lossless methods of one panel, none of which is faster for sure."""
    if all(pd.isna(row["low"]) for row in rows):
        return "One question is too few to tell a method from plain decoding"
    if all(row["distinct"] for row in rows):
        return "No lossless method is faster than plain decoding"
    return "No lossless method is distinguishably faster than plain decoding"
