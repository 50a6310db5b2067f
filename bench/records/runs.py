"""The records of a run: one JSON object a turn in `records.jsonl`, and what must hold of them.

python -m bench.records check results/<run> [...]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.records import journal
from bench.records.journal import (
    COUNT,
    FLAG,
    HEX,
    IDS,
    LENGTHS,
    LINE,
    NAME,
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
    at_least_zero,
    choice,
)

if TYPE_CHECKING:
    import pandas as pd

Record: TypeAlias = journal.Record

SCHEMA = "1.1"  # major.minor: readers accept every minor version of their major
RECORDS = "records.jsonl"
AUDIT = "audit.json"
COMPANIONS = ("run.yaml", "environment.json", "history.jsonl")  # what a run folder holds besides


# The schema

PHASES = ("draft", "verify", "accept", "other")

PHASE_SECONDS = Kind(
    f"an object of seconds from 0 with {', '.join(PHASES)}",
    lambda value: (
        isinstance(value, dict)
        and value.keys() >= set(PHASES)
        and all(at_least_zero(seconds) for seconds in value.values())
    ),
)

# One verify step: nodes drafted, the root not counted; levels drafted, or null; characters of
# `text` up to this step's last; times by phase.
STEP = ("drafted", "depth", "end", "us")


_of_step = itemgetter(*STEP)


def _are_steps(values: Any) -> bool:
    """Whether these are steps, looked at key by key: they are most of what a file holds."""
    if not isinstance(values, list) or not set(map(type, values)) <= {dict}:
        return False
    try:
        parts = list(zip(*map(_of_step, values), strict=True)) or [()] * len(STEP)
    except KeyError:
        return False
    drafted, depths, ends, times = map(list, parts)
    if not set(map(type, times)) <= {list} or not set(map(len, times)) <= {len(PHASES)}:
        return False
    known = [depth for depth in depths if depth is not None]
    return all(map(IDS.holds, (drafted, known, ends, list(chain.from_iterable(times)))))


# A step lies between the end of one accept phase and the end of the next, so that the steps add up
# to `phase_s`: `us` holds [draft, verify, accept, other] in microseconds. `depth` counts the levels
# that were drafted below the root. A character that two steps gave the bytes of is of the second.
STEPS = Kind(f"a list of objects with {', '.join(STEP)}", _are_steps)

FIELDS: dict[str, Field] = {
    "schema": Field(VERSION),
    "run": Field(TEXT),
    "cell": Field(HEX),
    "key": Field(SHA256),
    "package_version": Field(TEXT),
    "model": Field(TEXT),
    "revision": Field(TEXT, Null.ANY),
    "dtype": Field(choice("float32", "bfloat16", "float16")),
    "device": Field(TEXT),
    "engine": Field(choice("eager", "graph", "compile", "stock")),
    "method": Field(TEXT),
    "params": Field(OBJECT),
    "lossless": Field(FLAG),
    "checkpoint_sha256": Field(SHA256, Null.ANY),
    "tree_sha256": Field(SHA256, Null.ANY),
    "dataset": Field(TEXT),
    "dataset_sha256": Field(SHA256, Null.ANY),
    "prompt_id": Field(NAME, Null.FAILED),
    "category": Field(TEXT, Null.ANY),
    "turn": Field(ORDINAL, Null.FAILED),
    "prompt_sha256": Field(SHA256, Null.FAILED),
    "history": Field(SHA256, Null.ANY),
    "temperature": Field(NUMBER),
    "top_k": Field(COUNT, Null.ANY),
    "top_p": Field(NUMBER, Null.ANY),
    "seed": Field(COUNT),
    "repeat": Field(COUNT, Null.FAILED),
    "max_new_tokens": Field(ORDINAL),
    "status": Field(choice("ok", "error", "skipped")),
    "error": Field(LINE, Null.ANY),
    "prompt_tokens": Field(ORDINAL, Null.FAILED),
    "new_tokens": Field(ORDINAL, Null.FAILED, figure=True),
    "output_ids": Field(IDS, Null.FAILED, figure=True),
    "text": Field(TEXT, Null.FAILED, figure=True),
    "accept_lengths": Field(LENGTHS, Null.ANY, figure=True),
    "prefill_s": Field(SECONDS, Null.FAILED, figure=True),
    "draft_prefill_s": Field(SECONDS, Null.ANY, figure=True),
    "decode_s": Field(SECONDS, Null.FAILED, figure=True),
    "phase_s": Field(PHASE_SECONDS, Null.ANY, figure=True),
    # Of each verify step, in the records of repeat 0 alone, which keeps files small.
    "steps": Field(STEPS, Null.ANY, figure=True, optional=True),
    # Characters of `text` that prefill's token gives; with `steps`.
    "prefill_end": Field(COUNT, Null.ANY, figure=True, optional=True),
    "drafted": Field(COUNT, Null.ANY, figure=True),
    "draft_parameters": Field(COUNT, Null.ANY, figure=True),
    "peak_memory_bytes": Field(COUNT, Null.ANY, figure=True),
    "startup_s": Field(SECONDS, Null.ANY, figure=True),
    "finish": Field(choice("eos", "length"), Null.FAILED, figure=True),
    "warnings": Field(TEXTS),
}

FIGURES: tuple[str, ...] = tuple(name for name, field in FIELDS.items() if field.figure)

REFERENCE = "autoregressive"
STOCK_ENGINE = "stock"  # generate as transformers ships it: no verify steps, no phases

# A method's output and the reference's are of the same turn when these are equal; the engine must
# be too, except for the stock row, which is held against the reference on any engine.
PAIRED = (
    "model",
    "dtype",
    "dataset",
    "prompt_id",
    "turn",
    "repeat",
    "max_new_tokens",
    "prompt_sha256",
)


PLACED = (
    "model",
    "dtype",
    "device",
    "engine",
    "method",
    "dataset",
    "dataset_sha256",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "max_new_tokens",
)


def blank_figures() -> dict[str, None]:
    """The figures of an error or skipped record: all null."""
    return dict.fromkeys(FIGURES)


# Names and hashes


def _canonical(value: object) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: object) -> str:
    """sha256 in hex of the value's canonical JSON. ValueError on NaN and infinities."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def label(method: str, params: Mapping[str, object]) -> str:
    """The row's name: `lookahead(n=5,w=7,g=7)`, parameters in the mapping's order."""
    if not params:
        return method
    settings = (
        f"{name}={value if isinstance(value, str) else _canonical(value)}"
        for name, value in params.items()
    )
    return f"{method}({','.join(settings)})"


# Reading


def read(folder: Path | str) -> list[Record]:
    """The folder's records in file order, without a torn last line.

    UsageError where there are none to read, a line is damaged or the schema's major is another.
    """
    return journal.read(folder, RECORDS, SCHEMA)


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each key; an ok record beats every failure."""
    newest: dict[str, Record] = {}
    done: set[tuple[object, ...]] = set()
    for record in records:
        known = newest.get(record["key"])
        if known is None or record["status"] == "ok" or known["status"] != "ok":
            newest[record["key"]] = record
        if record["status"] == "ok":
            done |= {_place(record), _place(record, whole=True)}
    return [r for r in newest.values() if r["status"] == "ok" or _place(r) not in done]


def _place(record: Record, whole: bool = False) -> tuple[object, ...]:
    """Where a record belongs in the grid, by what is known before it runs; the turn is null for a
    failure of the `whole` cell. A failure and a later success there may have other keys."""
    turn = (None,) * 3 if whole else (record.get(n) for n in ("prompt_id", "turn", "repeat"))
    params = _canonical(record.get("params"))
    return (params, *turn, *(record.get(name) for name in PLACED))


def frame(folders: Iterable[Path | str]) -> pd.DataFrame:
    """The latest records of every folder, one row each: all fields, and the column `label`."""
    import pandas as pd  # here, since a run needs this module and no table

    rows = [
        {**record, "label": label(record["method"], record["params"])}
        for folder in folders
        for record in latest(read(folder))
    ]
    newer = dict.fromkeys(name for row in rows for name in row)  # fields of later minor versions
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*FIELDS, "label", *newer])))


class RunFolder(journal.Folder):
    """A run folder held by one process: `with RunFolder(path) as folder: folder.append(record)`."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path, RECORDS, SCHEMA)


# Checking


def violations(record: Record) -> list[str]:
    """What is wrong with one record, taken alone: keys and types first, then the invariants."""
    return journal.faults(record, FIELDS, SCHEMA) or _broken_rules(record)


def _broken_rules(record: Record) -> list[str]:
    """The invariants of a record whose keys and types hold."""
    if record["status"] != "ok":
        return [] if record["error"] else [f"status {record['status']} gives no reason in error"]
    count, limit = record["new_tokens"], record["max_new_tokens"]
    ids, lengths, finish = len(record["output_ids"]), record["accept_lengths"], record["finish"]
    stock = record["engine"] == STOCK_ENGINE
    emitted = count - 1 if lengths is None else sum(lengths)
    rules = [
        (record["error"] is None, "error is not null in an ok record"),
        (ids == count, f"output_ids holds {ids} ids, new_tokens is {count}"),
        (count <= limit, f"new_tokens is {count}, max_new_tokens {limit}"),
        (finish == "eos" or count == limit, f"finish is length at {count} of {limit} tokens"),
        (
            emitted == count - 1,
            f"accept_lengths sums to {emitted}, not new_tokens - 1 = {count - 1}",
        ),
        *(
            ((record[name] is None) == stock, f"{name} is null in the stock row and in no other")
            for name in ("accept_lengths", "phase_s")
        ),
    ]
    return [message for holds, message in (*rules, *_step_rules(record)) if not holds]


def _step_rules(record: Record) -> list[tuple[bool, str]]:
    steps, first, lengths = record.get("steps"), record.get("prefill_end"), record["accept_lengths"]
    if steps is None and first is None:
        return []
    if steps is None or first is None or lengths is None:
        return [(False, "steps, prefill_end and accept_lengths do not come together")]
    ends = [first, *(step["end"] for step in steps)]
    drafted = sum(step["drafted"] for step in steps)
    phases = record["phase_s"] or {} if steps else {}
    times = zip(*(step["us"] for step in steps), strict=True)
    spent = {name: sum(us) / 1e6 for name, us in zip(PHASES, times, strict=False)}
    slack = 1e-6 * (len(steps) + 1)  # each is rounded
    return [
        (
            len(steps) == len(lengths),
            f"steps holds {len(steps)} steps, accept_lengths {len(lengths)}",
        ),
        (ends == sorted(ends), "a step ends in the text before the one before it"),
        (
            ends[-1] <= len(record["text"]),
            f"steps end at {ends[-1]}, text at {len(record['text'])}",
        ),
        (
            drafted == record["drafted"],
            f"steps drafted {drafted} nodes, drafted {record['drafted']}",
        ),
        *(
            (
                abs(spent[name] - phases[name]) <= slack,
                f"steps spent {spent[name]:.6f} s in {name}, phase_s says {phases[name]:.6f}",
            )
            for name in phases.keys() & spent.keys()
        ),
    ]


def check(folder: Path | str) -> list[str]:
    """Every violated invariant of a run folder as one line that names its line in the records.

    UsageError where the folder holds no records file.
    """
    data = journal.content(folder, RECORDS)
    found = [f"{name} is missing" for name in COMPANIONS if not (Path(folder) / name).is_file()]
    sound: list[tuple[int, Record]] = []
    done: dict[str, int] = {}
    for number, line in journal.complete_lines(data):
        try:
            record = journal.parse(line, SCHEMA)
        except ValueError as error:
            found.append(f"line {number}: {error}")
            continue
        found += [f"line {number}: {problem}" for problem in violations(record)]
        if record["status"] == "ok":
            if done.setdefault(record["key"], number) != number:
                found.append(f"line {number}: its key is done in line {done[record['key']]}")
            if not journal.faults(record, FIELDS, SCHEMA):
                sound.append((number, record))
    if data and not data.endswith(b"\n"):
        number = data.count(b"\n") + 1
        found.append(f"line {number}: torn; the same command run again cuts it off")
    try:
        ties = _audited_ties(folder, data)
    except ValueError as error:
        found.append(str(error))
        ties = set()
    return found + list(_differences(sound, ties))


def _differences(
    numbered: Sequence[tuple[int, Record]], ties: set[tuple[object, ...]]
) -> Iterator[str]:
    """Lossless float32 greedy outputs that differ from the reference's, explained ties left out."""
    greedy = [
        (number, record)
        for number, record in numbered
        if record["dtype"] == "float32" and record["temperature"] == 0 and record["lossless"]
    ]
    references: dict[tuple[object, ...], list[tuple[int, Record]]] = {}
    for number, record in greedy:
        if record["method"] == REFERENCE:
            references.setdefault(_turn(record), []).append((number, record))
    for number, record in greedy:
        rivals = [
            (line, reference)
            for line, reference in references.get(_turn(record), [])
            if record["engine"] in (STOCK_ENGINE, reference["engine"])
        ]
        found = [
            f"line {number}: {difference} (line {line})"
            for line, reference in rivals
            if (difference := _difference(record, reference["output_ids"], ties))
        ]
        if rivals and len(found) == len(rivals):
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
    position = next(unequal, None)  # None: one output is the start of the other, never a tie
    if position is not None and (*_audit_row(record), *_audit_turn(record), position) in ties:
        return None
    at = "" if position is None else f", first at position {position}"
    if len(ids) != len(expected):
        return f"output_ids holds {len(ids)} ids and the reference {len(expected)}{at}"
    return f"output_ids differs from the reference{at}"


def _audit_row(row: Mapping[str, Any]) -> tuple[object, ...]:
    """A record's row in the audit, and the audit row's own name, by the same fields."""
    name = row["label"] if "label" in row else label(row["method"], row["params"])
    fields = ("model", "engine", "dtype", "dataset", "temperature")
    return (name, *(row[field] for field in fields))


def _audit_turn(row: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(row[field] for field in ("prompt_id", "turn", "repeat"))


def _audited_ties(folder: Path | str, data: bytes) -> set[tuple[object, ...]]:
    """Row, turn and first differing position of every tie that the audit of these records found.

    ValueError where the audit is damaged or of other records.
    """
    path = Path(folder) / AUDIT
    if not path.is_file():
        return set()
    try:
        audit = json.loads(path.read_bytes())
        fresh = audit["records_sha256"] == hashlib.sha256(data).hexdigest()
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


def summary(folder: Path | str) -> str:
    """How many records a folder without violations holds."""
    records = latest(read(folder))
    good = sum(record["status"] == "ok" for record in records)
    return f"{len(records)} records, {good} ok, {len(records) - good} failed, no violations"
