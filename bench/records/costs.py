"""The records of a cost study: one measurement a line in `costs.jsonl`, and their invariants."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.files import canonical_sha256
from bench.records import journal
from bench.records.runs import PHASE_SECONDS
from bench.records.schema import (
    COUNT,
    LENGTHS,
    LINE,
    NUMBER,
    OBJECT,
    ORDINAL,
    SECONDS,
    SHA256,
    TEXT,
    TEXTS,
    VERSION,
    Field,
    Kind,
    Null,
    Record,
    at_least_zero,
    choice,
    faults,
)

SCHEMA = "1.1"  # major.minor: readers accept every minor version of their major
COSTS = "costs.jsonl"
SETTINGS = "cost.yaml"
COMPANIONS = (SETTINGS, journal.ENVIRONMENT)  # the other files of a study's folder

ENGINE, FORWARD, STEP = "engine", "forward", "step"  # kinds of record


# The schema

TURN = {  # one timed turn of a method
    "phase_s": PHASE_SECONDS,
    "decode_s": SECONDS,
    "accept_lengths": LENGTHS,  # tokens emitted by each verify step
    "drafted": COUNT,  # nodes drafted in all of them
}
QUIET = "quiet_s"  # since 1.1: decode_s of the same turn without the phase clock's marks


def _is_turn(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() >= TURN.keys()
        and all(kind.holds(value[name]) for name, kind in TURN.items())
        and SECONDS.holds(value.get(QUIET, 0.0))
    )


TIMES = Kind(
    "a list of seconds from 0",
    lambda value: isinstance(value, list) and bool(value) and all(map(at_least_zero, value)),
)
TURNS = Kind(
    f"a list of objects with {', '.join(TURN)}",
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_turn, value)),
)

# What is measured and how; the key is the hash of these.
SAME = {
    "kind": Field(choice(ENGINE, FORWARD, STEP)),
    "package_version": Field(TEXT),
    "model": Field(TEXT),
    "dtype": Field(choice("float32", "bfloat16", "float16")),
    "device": Field(TEXT),
    "engine": Field(TEXT),
    "seed": Field(COUNT),
}
IDENTITY: dict[str, dict[str, Field]] = {
    ENGINE: SAME,
    FORWARD: SAME
    | {
        "context": Field(ORDINAL),  # committed rows
        "width": Field(ORDINAL),  # nodes of the tree, the root counted
        "repeats": Field(ORDINAL),
    },
    STEP: SAME
    | {
        "context": Field(ORDINAL),  # tokens of the prompt
        "method": Field(TEXT),
        "params": Field(OBJECT),
        "checkpoint": Field(TEXT, Null.ANY),  # "random", or what was given; null: shipped or none
        "tree": Field(TEXT, Null.ANY),
        "max_new_tokens": Field(ORDINAL),
        "repeats": Field(ORDINAL),
    },
}

OUTCOME = {
    "schema": Field(VERSION),
    "key": Field(SHA256),
    "status": Field(choice("ok", "error", "skipped")),
    "error": Field(LINE, Null.ANY),
    "revision": Field(TEXT, Null.ANY),
    "parameters": Field(ORDINAL, Null.FAILED, figure=True),  # of the target
    # What one forward must read: all parameters but an embedding table of its own, and for each
    # committed row its keys and values.
    "weight_bytes": Field(ORDINAL, Null.FAILED, figure=True),
    "row_bytes": Field(ORDINAL, Null.FAILED, figure=True),
    # Measured in the process that made the record; a copy counts what it reads and what it writes.
    "copy_bytes_per_s": Field(NUMBER, Null.FAILED, figure=True),
    "read_bytes_per_s": Field(NUMBER, Null.FAILED, figure=True),
}
MEASURED: dict[str, dict[str, Field]] = {
    ENGINE: {
        "startup_s": Field(SECONDS, Null.FAILED, figure=True),
        "peak_memory_bytes": Field(COUNT, Null.ANY, figure=True),
    },
    FORWARD: {"seconds": Field(TIMES, Null.FAILED, figure=True)},
    STEP: {
        "turns": Field(TURNS, Null.FAILED, figure=True),
        "width": Field(ORDINAL, Null.FAILED, figure=True),  # most nodes of a verify forward
        "draft_parameters": Field(COUNT, Null.FAILED, figure=True),
        "draft_bytes": Field(COUNT, Null.FAILED, figure=True),  # of weights, read in a step
        "startup_s": Field(SECONDS, Null.FAILED, figure=True),
        "checkpoint_sha256": Field(SHA256, Null.ANY, figure=True),
        "tree_sha256": Field(SHA256, Null.ANY, figure=True),
        "warnings": Field(TEXTS, Null.FAILED, figure=True),
    },
}
FIELDS = {kind: OUTCOME | IDENTITY[kind] | MEASURED[kind] for kind in IDENTITY}


def key(identity: Record) -> str:
    """The resume key of a measurement: the hash of the fields that identify it."""
    return canonical_sha256({name: identity[name] for name in IDENTITY[identity["kind"]]})


def failure(identity: Record, status: str, reason: str) -> Record:
    """The record of what could not be measured: its figures are all null."""
    figures = {name for name, field in FIELDS[identity["kind"]].items() if field.figure}
    blank = dict.fromkeys((*sorted(figures), "revision"))
    return ok(identity, blank) | {"status": status, "error": reason}


def ok(identity: Record, figures: Record) -> Record:
    """The record of a measurement."""
    outcome = {"schema": SCHEMA, "key": key(identity), "status": "ok", "error": None}
    return {**outcome, **identity, **figures}


# Reading and writing


def read(folder: Path | str) -> list[Record]:
    """The folder's records in file order, without a torn last line.

    UsageError where there are none to read, a line is damaged or the schema's major is another.
    """
    return journal.read(folder, COSTS, SCHEMA)


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each key; an ok record beats every failure."""
    newest: dict[str, Record] = {}
    for record in records:
        known = newest.get(record["key"])
        if known is None or record["status"] == "ok" or known["status"] != "ok":
            newest[record["key"]] = record
    return list(newest.values())


class CostFolder(journal.Folder):
    """The folder of a study, written by one process."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path, COSTS, SCHEMA)


# Checking


def violations(record: Record) -> list[str]:
    """What is wrong with one record, taken alone: keys and types first, then the invariants."""
    kind = record.get("kind")
    if kind not in FIELDS:
        return [f"kind must be {' or '.join(FIELDS)}, not {kind!r}"]
    return faults(record, FIELDS[kind], SCHEMA) or _broken_rules(record)


def _broken_rules(record: Record) -> list[str]:
    found = [] if record["key"] == key(record) else ["key is not the hash of what was measured"]
    if record["status"] != "ok":
        missing = f"status {record['status']} gives no reason in error"
        return found if record["error"] else [*found, missing]
    if record["error"] is not None:
        found.append("error is not null in an ok record")
    if record["kind"] == FORWARD and len(record["seconds"]) != record["repeats"]:
        found.append(f"seconds holds {len(record['seconds'])} of {record['repeats']} repeats")
    if record["kind"] == STEP:
        if len(record["turns"]) != record["repeats"]:
            found.append(f"turns holds {len(record['turns'])} of {record['repeats']} repeats")
        emitted = record["max_new_tokens"] - 1  # the first token is prefill's, and nothing ends it
        found += [
            f"accept_lengths sums to {sum(turn['accept_lengths'])}, not {emitted}"
            for turn in record["turns"]
            if sum(turn["accept_lengths"]) != emitted
        ]
    return found
