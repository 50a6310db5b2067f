"""Lines of record files: parsing, and one record for each key."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.records import journal
from bench.records.runs import Record
from reports.read.left_out import LeftOut

LONGEST = 1 << 26  # bytes of a line that is read at all


def parsed(
    folder: Path, file: str, schema: str, left: LeftOut, share: int = 0, shares: int = 1
) -> Iterator[tuple[int, bytes, Record]]:
    """Line number, line and record of every line that holds one, of one share of the lines."""
    number = 0
    try:
        for number, line in journal.lines(folder, file, LONGEST):
            if (number >> 8) % shares != share:
                continue
            if not line.endswith(b"\n"):
                reason = "torn" if len(line) < LONGEST else f"longer than {LONGEST >> 20} MiB"
                left.add(reason, number)
                continue
            try:
                yield number, line, journal.parse(line, schema)
            except ValueError as error:
                left.add(_kind(str(error)), number, str(error))
    except UsageError as error:
        if not number:
            raise
        if share == 0:
            left.add("after which the file cannot be read", number, str(error))


def _kind(error: str) -> str:
    """The reason why a line does not parse."""
    if error.startswith("not JSON"):
        return "not JSON"
    return "of another schema" if error.startswith("schema") else "no record"


def one_of_each(
    rows: list[tuple[int, Any]], left: LeftOut, key: int | str, status: int | str
) -> list[tuple[int, Any]]:
    """Rows with one good row for each key; which one follows from their content.

    key, status: where these stand in a row.
    """
    done: dict[str, tuple[int, Any]] = {}
    chosen: dict[str, int] = {}
    for number, row in rows:
        if row[status] != "ok":
            continue
        at, known = done.setdefault(row[key], (number, row))
        if known is row:
            continue
        less, more = (number, row), (at, known)
        if row != known:
            less, more = sorted((less, more), key=lambda one: repr(one[1]))
        detail = f"a copy of line {at}" if row == known else f"line {more[0]} differs"
        left.add("of a turn that has a record already", less[0], detail)
        done[row[key]], chosen[row[key]] = more, more[0]
    if not chosen:
        return rows
    return [
        (number, row)
        for number, row in rows
        if row[status] != "ok" or chosen.get(row[key], number) == number
    ]


def nothing_usable(folder: Path, notices: Sequence[str]) -> UsageError:
    if not notices:
        return UsageError(f"{folder} holds no records; run the benchmark first")
    return UsageError(f"{folder} holds no record that can be used: {'; '.join(notices)}")


@contextmanager
def collecting_later() -> Iterator[None]:
    """Suspends the cyclic garbage collector, which would scan all records again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
