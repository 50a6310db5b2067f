"""The exception for invalid user input, and errors as one line of text."""

from __future__ import annotations

LONGEST = 500  # characters of an error in a record or a message


class UsageError(Exception):
    """Invalid user input. The message is one line that says how to fix it; commands print it and
    end with exit code 2."""


def one_line(error: BaseException) -> str:
    """`RuntimeError: what it said`, on one line and cut at `LONGEST` characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
