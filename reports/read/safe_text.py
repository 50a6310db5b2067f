"""Text that may be hostile, made safe to show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bench.records.runs import Record

ANSWERS = ("text",)  # are shown by character counts, so that their lengths must stay
NESTED = ("params", "warnings")  # hold texts
_UNSHOWN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def inert(name: str) -> str:
    """A name with invisible characters and marks of direction spelled out."""
    if name.isprintable():
        return name
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in name
    )


def is_plain(line: bytes) -> bool:
    """Whether a line holds ASCII alone, and no escape of anything else."""
    return line.isascii() and b"\\u" not in line


def make_inert(record: Record) -> None:
    for name, value in record.items():
        if name in ANSWERS and isinstance(value, str):
            record[name] = _UNSHOWN.sub("\ufffd", value)
        elif isinstance(value, str) or name in NESTED:
            record[name] = inert_values(value)


def inert_values(value: Any) -> Any:
    """A JSON value with every text in it made inert."""
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, Mapping):
        return {inert_values(name): inert_values(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [inert_values(item) for item in value]
    return value
