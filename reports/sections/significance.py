"""The section on what can be told apart, and how steady the machine was."""

from __future__ import annotations

import pandas as pd

from reports.measures import significance as sureness_metrics
from reports.page.columns import defined, ratio, words
from reports.page.tables import (
    INTERVAL,
    NONE,
    Column,
    Page,
    Row,
    Section,
    counted,
    figure,
    number,
    tables,
)


def notices(page: Page) -> list[str]:
    """What is less sure than it should be, a sentence each."""
    rows = page.speedup
    if rows.empty:
        return []
    known = rows[~rows["synthetic"]].to_dict("records")
    weak = sum(bool(sureness_metrics.few(row)) for row in known)
    drifted = int(rows["drifted"].sum())
    found = []
    if weak:
        found.append(
            f"{counted(weak, 'row')} with fewer than {sureness_metrics.MIN_REPEATS} repeats or "
            f"{sureness_metrics.MIN_QUESTIONS} questions: marked, and to be read with care."
        )
    if drifted:
        where = counted(drifted, "setting")
        found.append(f"The reference drifted between the first repeat and the last in {where}.")
    return found


def section(page: Page) -> Section:
    rows, drifts = page.speedup, sureness_metrics.drift(page.records)
    tested = rows[rows["p"].notna()] if len(rows) else rows
    beside = rows[rows["beside"].notna()] if len(rows) else rows
    reference = [
        figure("Speedup", "speedup", "{:.2f}×"),
        INTERVAL,
        Column("p", "p", lambda row: _p(row["p"])),
        words("Verdict", _against_reference),
    ]
    fastest = [
        ratio("Beside the fastest", "beside"),
        Column("p", "beside_p", lambda row: _p(row["beside_p"])),
        words("Verdict", _against_fastest),
    ]
    drift = [
        defined(figure("First, ms/token", "first_ms", "{:.3f}"), "Drift"),
        defined(figure("Last, ms/token", "last_ms", "{:.3f}"), "Drift"),
        figure("Drift", "drift", "{:.3f}"),
        Column("95 % interval", "low", _bounds_of_drift, parts=("low", "high")),
        Column("p", "p", lambda row: _p(row["p"])),
        words("Verdict", _drifted),
        figure("Questions", "prompts", "{:,.0f}"),
    ]
    return Section(
        "sureness",
        "How sure",
        " ".join(("What can be told apart, and how steady the machine was.", *notices(page))),
        tables=[
            *tables(page, "Each method against the reference", tested, reference),
            *tables(page, "Each method against the fastest lossless one", beside, fastest),
            *tables(page, "Drift of the reference from first repeat to last", drifts, drift),
        ],
        definitions=sureness_metrics.DEFINITIONS,
        empty="Nothing to test: no method was compared on two questions, no reference repeated.",
        records=int(page.records["ok"].sum()),
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else number(value, "{:.3f}")


def _against_reference(row: Row) -> str:
    if not row["distinct"]:
        return "not distinguishable from the reference"
    return "faster" if row["speedup"] > 1 else "slower"


def _against_fastest(row: Row) -> str:
    return "not distinguishable from the fastest" if row["peer"] else "slower"


def _drifted(row: Row) -> str:
    if pd.isna(row["p"]):
        return NONE
    return "drifted" if row["drifted"] else "within the noise"


def _bounds_of_drift(row: Row) -> str:
    return NONE if pd.isna(row["low"]) else f"[{row['low']:.3f}, {row['high']:.3f}]"
