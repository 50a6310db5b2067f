"""The top of the page: its cards, and notes on smoke runs and on records left out."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from reports.page.format import NONE, bounds, listed
from reports.page.model import Card, Page
from reports.read.preparation import TUNING
from reports.read.words import counted


def smoke(page: Page) -> list[str]:
    """The notice above a page of smoke runs, one line for each run."""
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
            f"{counted(_repeats(records), 'repeat')}, up to {limits} tokens",
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
