"""The settings by which a reader can hide rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.records.costs import STEP
from bench.records.runs import label
from reports.page.model import Page, Table
from reports.page.settings import TITLES, setting

# Settings that filters go by; tables name them by these heads.
SETTINGS = ("run", "model", "dataset", "engine", "temperature")
FILTERED = (*SETTINGS, "label")
HEADS = {**{TITLES[name]: name for name in FILTERED if name in TITLES}, "Method": "label"}


@dataclass(frozen=True)
class Filter:
    """One setting that rows can be hidden by, with its values as tables hold them, and as they
    print them."""

    name: str
    title: str
    values: Mapping[str, str]


def facts(table: Table) -> dict[str, str]:
    """The settings of a whole table, by which filters find it."""
    shared = {HEADS[head]: value for head, value in table.shared.items() if head in HEADS}
    return {**shared, **table.facts}


def filters(page: Page) -> list[Filter]:
    """Those that hold more than one value on the page."""
    known: Mapping[str, dict[str, None]] = {name: {} for name in FILTERED}
    for name in FILTERED:
        values = page.records[name].dropna().unique()
        known[name].update(dict.fromkeys(setting(name, value) for value in values))
    for record in page.costs:
        named = (
            {"label": label(record["method"], record["params"])} if record["kind"] == STEP else {}
        )
        for name, value in (*named.items(), *((n, record[n]) for n in ("run", "model", "engine"))):
            if value is not None:
                known[name].setdefault(str(value))
    titles = {name: title for title, name in HEADS.items()}
    several = {name: list(values) for name, values in known.items() if len(values) > 1}
    return [
        Filter(name, titles[name], {value: _shown(page, name, value) for value in values})
        for name, values in several.items()
    ]


def _shown(page: Page, name: str, value: str) -> str:
    return page.name(value) if name == "label" else value
