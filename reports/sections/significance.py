"""The section on which differences are significant, and how steady the machine was."""

from __future__ import annotations

import pandas as pd

from reports.measures import cards
from reports.measures.significance import DEFINITIONS, MIN_QUESTIONS, MIN_REPEATS, drift, few
from reports.page.columns import INTERVAL, Column, defined, figure, ratio, words
from reports.page.format import NONE, number
from reports.page.model import Page, Section, TableRow
from reports.page.tables import tables
from reports.read.words import counted


def notices(page: Page) -> list[str]:
    """What weakens the figures' significance, a sentence each."""
    rows, found = page.speedup, []
    if rows.empty:
        return []
    measured = cards.cards(page.records)
    if len(measured) and measured["differs"].any():
        apart = measured.loc[measured["differs"], "card"].nunique()
        found.append(
            f"The reference's speed differs between cards by more than its noise "
            f"({counted(apart, 'card')}): tokens/s of this run mix them."
        )
    known = rows[~rows["synthetic"]].to_dict("records")
    weak = sum(bool(few(row)) for row in known)
    drifted = int(rows["drifted"].sum())
    if weak:
        found.append(
            f"{counted(weak, 'row')} with fewer than {MIN_REPEATS} repeats or "
            f"{MIN_QUESTIONS} questions: these are marked."
        )
    if drifted:
        where = counted(drifted, "setting")
        found.append(f"The reference drifted between the first repeat and the last in {where}.")
    return found


def section(page: Page) -> Section:
    rows, drifting = page.speedup, drift(page.records)
    tested = rows[rows["p"].notna()] if len(rows) else rows
    beside = rows[rows["beside"].notna()] if len(rows) else rows
    reference = [
        figure("Speedup", "speedup", "{:.2f}×"),
        INTERVAL,
        Column("p", "p", lambda row: _p(row["p"])),
        words("Verdict", _against_reference),
    ]
    fastest = [
        ratio("Relative to the fastest", "beside"),
        Column("p", "beside_p", lambda row: _p(row["beside_p"])),
        words("Verdict", _against_fastest),
    ]
    columns = [
        defined(figure("First, ms/token", "first_ms", "{:.3f}"), "Drift"),
        defined(figure("Last, ms/token", "last_ms", "{:.3f}"), "Drift"),
        figure("Drift", "drift", "{:.3f}"),
        Column("95 % interval", "low", _bounds_of_drift, parts=("low", "high")),
        Column("p", "p", lambda row: _p(row["p"])),
        words("Verdict", _drifted),
        figure("Questions", "prompts", "{:,.0f}"),
    ]
    on_cards = [
        words("Card", lambda row: row["card"]),
        defined(figure("ms/token", "ms", "{:.3f}"), "Card against the others"),
        defined(figure("Against the others", "others", "{:.3f}"), "Card against the others"),
        Column("p", "p", lambda row: _p(row["p"])),
        words("Verdict", _of_card),
        figure("Questions", "prompts", "{:,.0f}"),
    ]
    return Section(
        "significance",
        "Significance",
        " ".join(
            ("Which differences are significant, and how steady the machine was.", *notices(page))
        ),
        tables=[
            *tables(page, "Each method against the reference", tested, reference),
            *tables(page, "Each method against the fastest lossless one", beside, fastest),
            *tables(page, "Drift of the reference from first repeat to last", drifting, columns),
            *tables(page, "The reference on each card", cards.cards(page.records), on_cards),
        ],
        definitions=(*DEFINITIONS, *cards.DEFINITIONS),
        empty="Nothing to test: no method was compared on two questions, no reference repeated.",
        records=page.good,
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else number(value, "{:.3f}")


def _against_reference(row: TableRow) -> str:
    if not row["distinct"]:
        return "not distinguishable from the reference"
    return "faster" if row["speedup"] > 1 else "slower"


def _against_fastest(row: TableRow) -> str:
    return "not distinguishable from the fastest" if row["peer"] else "slower"


def _drifted(row: TableRow) -> str:
    if pd.isna(row["p"]):
        return NONE
    return "drifted" if row["drifted"] else "within the noise"


def _of_card(row: TableRow) -> str:
    if pd.isna(row["p"]):
        return NONE
    return "differs" if row["differs"] else "within the noise"


def _bounds_of_drift(row: TableRow) -> str:
    return NONE if pd.isna(row["low"]) else f"[{row['low']:.3f}, {row['high']:.3f}]"
