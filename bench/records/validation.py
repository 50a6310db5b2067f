"""The invariants of a whole folder: every line of its records, and the files that belong to it.

A single record is checked by `violations` of its schema, in `runs` and `costs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UsageError
from bench.files import sha256_of_bytes
from bench.records import completeness, costs, journal, runs
from bench.records.completeness import Place
from bench.records.runs import AUDIT, PAIRED, REFERENCE, RUN_SETTINGS, STOCK_ENGINE, label
from bench.records.schema import Record, faults

Numbered = tuple[int, Record]  # with the number of its line, from 1


def check(folder: Path | str) -> list[str]:
    """Every violated invariant of a run or a cost study, each as one line that names its line in
    the records.

    UsageError where the folder holds no records file.
    """
    if journal.holds(folder, costs.COSTS):
        data = journal.content(folder, costs.COSTS)
        found = _missing(folder, costs.COMPANIONS)
        return found + _broken(data, costs.SCHEMA, costs.violations)[0]
    data = journal.content(folder, runs.RECORDS)
    found = _missing(folder, runs.COMPANIONS)
    broken, done = _broken(data, runs.SCHEMA, runs.violations)
    found += broken
    try:
        ties = _audited_ties(folder, data)
    except ValueError as error:
        found.append(str(error))
        ties = set()
    comparable = [(n, record) for n, record in done if not faults(record, runs.FIELDS, runs.SCHEMA)]
    return found + list(_differences(comparable, ties))


def incomplete(folder: Path | str) -> list[str]:
    """One line for each part of a run with fewer records than its settings plan."""
    path = Path(folder) / RUN_SETTINGS
    if journal.holds(folder, costs.COSTS) or not path.is_file():
        return []
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        records = runs.latest(runs.read(folder))
    except (yaml.YAMLError, UnicodeDecodeError, UsageError):
        return []  # `check` names what is damaged
    labelled = (r | {"label": label(r["method"], r["params"])} for r in records)
    places = (Place._make(record[name] for name in Place._fields) for record in labelled)
    return completeness.incomplete(settings or {}, places)


def summary(folder: Path | str) -> str:
    """How many records a folder without violations holds."""
    study = journal.holds(folder, costs.COSTS)
    records = costs.latest(costs.read(folder)) if study else runs.latest(runs.read(folder))
    good = sum(record["status"] == "ok" for record in records)
    if study:
        return f"{len(records)} measurements, {good} ok, no violations"
    skipped = sum(record["status"] == "skipped" for record in records)
    failed = len(records) - good - skipped
    counts = f"{len(records)} records, {good} ok, {failed} failed, {skipped} skipped"
    return f"{counts}, no violations"


def _missing(folder: Path | str, companions: Sequence[str]) -> list[str]:
    return [f"{name} is missing" for name in companions if not (Path(folder) / name).is_file()]


def _broken(
    data: bytes, schema: str, violations: Callable[[Record], list[str]]
) -> tuple[list[str], list[Numbered]]:
    """(what is wrong with the lines, ok records)."""
    found: list[str] = []
    ok: list[Numbered] = []
    done: dict[str, int] = {}
    for number, line in journal.complete_lines(data):
        try:
            record = journal.parse(line, schema)
        except ValueError as error:
            found.append(f"line {number}: {error}")
            continue
        found += [f"line {number}: {problem}" for problem in violations(record)]
        if record["status"] == "ok":
            ok.append((number, record))
            if done.setdefault(record["key"], number) != number:
                found.append(f"line {number}: its key is done in line {done[record['key']]}")
    if data and not data.endswith(b"\n"):
        number = data.count(b"\n") + 1
        found.append(f"line {number}: torn; the same command run again cuts it off")
    return found, ok


def _differences(numbered: Sequence[Numbered], ties: set[tuple[object, ...]]) -> Iterator[str]:
    """Lossless float32 greedy outputs that differ from the reference's, except explained ties."""
    greedy = [
        (number, record)
        for number, record in numbered
        if record["dtype"] == "float32" and record["temperature"] == 0 and record["lossless"]
    ]
    references: dict[tuple[object, ...], list[Numbered]] = {}
    for number, record in greedy:
        if record["method"] == REFERENCE:
            references.setdefault(_turn(record), []).append((number, record))
    for number, record in greedy:
        peers = [
            (line, reference)
            for line, reference in references.get(_turn(record), [])
            if record["engine"] in (STOCK_ENGINE, reference["engine"])
        ]
        found = [
            f"line {number}: {difference} (line {line})"
            for line, reference in peers
            if (difference := _difference(record, reference["output_ids"], ties))
        ]
        if peers and len(found) == len(peers):
            yield found[0]


def _turn(record: Record) -> tuple[object, ...]:
    return tuple(record[name] for name in PAIRED)


def _difference(
    record: Record, expected: Sequence[int], ties: set[tuple[object, ...]]
) -> str | None:
    ids = record["output_ids"]
    if ids == expected:
        return None
    unequal = (at for at, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b)
    position = next(unequal, None)  # None: one output is a prefix of the other, never a tie
    if position is not None and (*_audit_row(record), *_audit_turn(record), position) in ties:
        return None
    at = "" if position is None else f", first at position {position}"
    if len(ids) != len(expected):
        return f"output_ids holds {len(ids)} ids and the reference {len(expected)}{at}"
    return f"output_ids differs from the reference{at}"


def _audit_row(row: Mapping[str, Any]) -> tuple[object, ...]:
    """The same fields of a record and of a row of the audit: equal where they belong together."""
    name = row["label"] if "label" in row else label(row["method"], row["params"])
    fields = ("model", "engine", "dtype", "dataset", "temperature")
    return (name, *(row[field] for field in fields))


def _audit_turn(row: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(row[field] for field in ("prompt_id", "turn", "repeat"))


def _audited_ties(folder: Path | str, data: bytes) -> set[tuple[object, ...]]:
    """Row, turn and first differing position of every tie that these records' audit found.

    ValueError where the audit is damaged or of other records.
    """
    path = Path(folder) / AUDIT
    if not path.is_file():
        return set()
    try:
        audit = json.loads(path.read_bytes())
        fresh = audit["records_sha256"] == sha256_of_bytes(data)
        ties = {
            (*_audit_row(row), *_audit_turn(example), example["position"])
            for row in audit["rows"]
            for example in row["examples"]
            if example["verdict"] == "tie"
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{AUDIT} cannot be read ({error!r}); run the audit again") from None
    if not fresh:
        raise ValueError(f"{AUDIT} is of other records than these; run the audit again")
    return ties
