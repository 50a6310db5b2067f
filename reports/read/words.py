"""Counts and line numbers in words."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 12  # stretches of lines that a notice names


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def stretches(numbers: Sequence[int]) -> str:
    """Ascending line numbers in words: 3, 5-9 and 12 more."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    named = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:NAMED]]
    more = sum(b - a + 1 for a, b in runs[NAMED:])
    return ", ".join(named) + (f" and {more:,} more" if more else "")
