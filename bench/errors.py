"""The exception for invalid user input, and error texts that fit on one line."""

from __future__ import annotations

LONGEST = 500  # characters of an error in a record or a message


class UsageError(Exception):
    """Invalid user input; the message is one line and says how to fix it.

    A command prints it and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of the error's own words; its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def flat(error: BaseException) -> str:
    """The error's own words, on one line."""
    return " ".join(str(error).split())


def one_line(error: BaseException) -> str:
    """`ValueError: the message`, on one line."""
    return f"{type(error).__name__}: {flat(error)}"[:LONGEST]
