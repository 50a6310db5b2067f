"""What a schema of records is made of: kinds of values, fields, and the check of one record."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: its name in messages and the test of one value that is not null."""

    name: str
    holds: Callable[[Any], bool]


class Null(Enum):
    """When a field may be null."""

    NEVER = "never"
    FAILED = "in error and skipped records"
    ANY = "always"


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a record. A figure is a measurement: every failure carries null in it."""

    kind: Kind
    null: Null = Null.NEVER
    figure: bool = False
    optional: bool = False  # the key itself may be absent


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least  # bool is a subclass of int


def at_least_zero(value: object) -> bool:
    return _whole(value, 0) or (isinstance(value, float) and 0 <= value < math.inf)


def _whole_list(value: object, least: int) -> bool:
    if not isinstance(value, list):
        return False
    return set(map(type, value)) <= {int} and min(value, default=least) >= least


def choice(*names: str) -> Kind:
    return Kind(" or ".join(names), lambda value: value in names)


def _spelled(name: str, pattern: str) -> Kind:
    whole = re.compile(pattern).fullmatch
    return Kind(name, lambda value: isinstance(value, str) and whole(value) is not None)


VERSION = _spelled("of the form major.minor", "[0-9]{1,9}[.][0-9]{1,9}")
CARD = _spelled("of the form GPU-1a2b3c4d", "GPU-[0-9a-f]{8}")
TEXT = Kind("text", lambda value: isinstance(value, str))
LINE = Kind("one line", lambda value: isinstance(value, str) and len(value.splitlines()) < 2)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TEXTS = Kind(
    "a list of text",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
NAME = Kind("text or a whole number", lambda value: type(value) is int or isinstance(value, str))
COUNT = Kind("a whole number from 0", lambda value: _whole(value, 0))
ORDINAL = Kind("a whole number from 1", lambda value: _whole(value, 1))
NUMBER = Kind("a number from 0", at_least_zero)
IDS = Kind("a list of token ids", lambda value: _whole_list(value, 0))
LENGTHS = Kind("a list of whole numbers from 1", lambda value: _whole_list(value, 1))
SECONDS = Kind("seconds from 0", at_least_zero)
HEX = _spelled("lower-case hex digits", "[0-9a-f]+")
SHA256 = _spelled("a sha256 in hex", "[0-9a-f]{64}")


def faults(record: Record, fields: Mapping[str, Field], schema: str) -> list[str]:
    """Which keys are missing, unknown or of another type than `fields` has them; figures must be
    null in failures. Unknown keys are allowed in records of a later minor version than `schema`.
    """
    failed = record.get("status") in ("error", "skipped")
    found = []
    for name, field in fields.items():
        value = record.get(name)
        if value is None:
            if name not in record:
                if not field.optional:
                    found.append(f"{name} is missing")
            elif field.null is Null.NEVER or (field.null is Null.FAILED and not failed):
                found.append(f"{name} is null")
        elif failed and field.figure:
            found.append(f"{name} is a figure, null in a record of status {record['status']}")
        elif not field.kind.holds(value):
            found.append(f"{name} must be {field.kind.name}, not {json.dumps(value)[:60]}")
    if found or record.keys() <= fields.keys() or version(record["schema"]) > version(schema):
        return found
    return [f"{name} is no key of schema {schema}" for name in record if name not in fields]


@functools.lru_cache(16)
def version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
