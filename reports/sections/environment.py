"""The section on the machine, the packages and the settings of each run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reports.page.format import NONE
from reports.page.model import Cell, Head, Page, Section, Table
from reports.read.companions import sessions


def section(page: Page) -> Section:
    found = [(run.name, _items(run.environment)) for run in page.runs if run.environment]
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


def _items(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first session's items; of later ones what differs from it."""
    first, *later = (_flat(one) for one in sessions(environment))
    known = dict(first)
    return first + [
        (f"{item} (session {number})", value)
        for number, items in enumerate(later, start=2)
        for item, value in items
        if known.get(item) != value
    ]


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
