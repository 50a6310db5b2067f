"""Values as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.page.model import TableRow

NONE = "–"


def number(value: Any, pattern: str) -> str:
    return NONE if pd.isna(value) else pattern.format(value)


def digits(value: Any) -> str:
    """Three digits, or a whole number: 0.125, 4.20, 1,250."""
    if pd.isna(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def percent(value: Any) -> str:
    return number(100 * value, "{:.1f} %")


def parameters(value: Any) -> str:
    return _scaled(value, ("", "k", "M", "G"), 1000)


def memory(value: Any) -> str:
    return _scaled(value, ("B", "KiB", "MiB", "GiB"), 1024)


def _scaled(value: Any, units: Sequence[str], step: float) -> str:
    """1.45 G: three digits in the largest unit that the value fills."""
    if pd.isna(value):
        return NONE
    amount, place = float(value), 0
    while amount >= step and place < len(units) - 1:
        amount, place = amount / step, place + 1
    return (f"{amount:.0f} " if amount >= 100 else f"{amount:.3g} ") + units[place]


def text(value: Any) -> str:
    return NONE if pd.isna(value) else str(value)


def listed(values: Sequence[Any]) -> str:
    return ", ".join(map(text, values))


def bounds(row: TableRow) -> str:
    return NONE if pd.isna(row["low"]) else f"[{row['low']:.2f}, {row['high']:.2f}]"
