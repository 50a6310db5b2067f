"""Prepared records and rows of tables, for tests of figures."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.records import runs as records
from reports.read.preparation import prepare
from tests.reports.fabricate import Record


def frame(lines: Sequence[Record]) -> pd.DataFrame:
    rows = [{**line, "label": records.label(line["method"], line["params"])} for line in lines]
    return prepare(pd.DataFrame(rows))


def row(table: pd.DataFrame, label: str, **settings: Any) -> "pd.Series[Any]":
    """The table's one row of this label and these settings."""
    found = table[table["label"] == label]
    for name, value in settings.items():
        found = found[found[name] == value]
    assert len(found) == 1
    return found.iloc[0]
