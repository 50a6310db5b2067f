"""The records of a run: one JSON object a turn in `records.jsonl`, and their invariants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import canonical_json
from bench.records import journal
from bench.records.schema import (
    CARD,
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
    faults,
)
from bench.records.schema import Record as Record  # runs.Record: the type of a run's records

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "1.3"  # major.minor: readers accept every minor version of their major
RECORDS = "records.jsonl"
AUDIT = "audit.json"
RUN_SETTINGS = "run.yaml"
PARTS = "parts"  # folder of what the other processes of a launch recorded, until it is merged
COMPANIONS = (RUN_SETTINGS, journal.ENVIRONMENT, "history.jsonl")  # the other files of a run folder


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
    """Whether these are steps. Checked column by column for speed: steps are most of a file."""
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
# that were drafted below the root. A character with bytes from two steps belongs to the second.
STEPS = Kind(f"a list of objects with {', '.join(STEP)}", _are_steps)

FIELDS: dict[str, Field] = {
    "schema": Field(VERSION),
    "run": Field(TEXT),
    "cell": Field(HEX),
    "key": Field(SHA256),
    "package_version": Field(TEXT),
    # Since 1.2: of the sources of this package and, for another package's method, of its own.
    "code_sha256": Field(SHA256, optional=True),
    "model": Field(TEXT),
    "revision": Field(TEXT, Null.ANY),
    "dtype": Field(choice("float32", "bfloat16", "float16")),
    "device": Field(TEXT),
    # Since 1.3: of the process that ran the turn; 0 where there was one process.
    "rank": Field(COUNT, optional=True),
    # Since 1.3: the beginning of the card's UUID. Null on a CPU.
    "card": Field(CARD, Null.ANY, optional=True),
    "engine": Field(choice("eager", "graph", "compile", "exact", "stock")),
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
    # Since 1.2: whether the phase clock ran. Null in the stock row and for a method that cannot
    # run. Records of earlier versions have no such key: the clock ran in all but the stock row's.
    "clock": Field(FLAG, Null.ANY, optional=True),
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
    # Of each verify step; before 1.2 in the records of repeat 0 alone.
    "steps": Field(STEPS, Null.ANY, figure=True, optional=True),
    # Characters of `text` that prefill's token gives; with `steps`.
    "prefill_end": Field(COUNT, Null.ANY, figure=True, optional=True),
    "drafted": Field(COUNT, Null.ANY, figure=True),
    "draft_parameters": Field(COUNT, Null.ANY, figure=True),
    # Before 1.2; of the process, with every method of the run loaded.
    "peak_memory_bytes": Field(COUNT, Null.ANY, figure=True, optional=True),
    "startup_s": Field(SECONDS, Null.ANY, figure=True),
    "finish": Field(choice("eos", "length"), Null.FAILED, figure=True),
    "warnings": Field(TEXTS),
}

FIGURES: tuple[str, ...] = tuple(name for name, field in FIELDS.items() if field.figure)

REFERENCE = "autoregressive"
STOCK = "transformers_generate"  # run whole by the runner: no decoder, no phase clock
STOCK_ENGINE = "stock"  # transformers' own generate: no verify steps, no phases

# A method's output and the reference's belong to the same turn when these fields are equal. The
# engine must be too, except for the stock row, which is compared with the reference on any engine.
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


def clocked(record: Mapping[str, Any]) -> bool:
    """Whether the phase clock ran in an ok record."""
    return record["engine"] != STOCK_ENGINE and record.get("clock") is not False


# Names


def label(method: str, params: Mapping[str, object]) -> str:
    """The row's name: `lookahead(n=5,w=7,g=7)`, parameters in the mapping's order."""
    if not params:
        return method
    settings = (
        f"{name}={value if isinstance(value, str) else canonical_json(value)}"
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
    """A record's point in the grid, by what is known before it runs; the turn is null for a failure
    of the `whole` cell. A failure and a later success there may have different keys."""
    turn = (None,) * 3 if whole else (record.get(n) for n in ("prompt_id", "turn", "repeat"))
    params = canonical_json(record.get("params"))
    return (params, *turn, *(record.get(name) for name in PLACED))


def frame(folders: Iterable[Path | str]) -> pd.DataFrame:
    """The latest records of every folder, one row each: all fields, and the column `label`."""
    import pandas as pd  # slow to import, and a run needs none of it

    rows = [
        {**record, "label": label(record["method"], record["params"])}
        for folder in folders
        for record in latest(read(folder))
    ]
    newer = dict.fromkeys(name for row in rows for name in row)  # fields of later minor versions
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*FIELDS, "label", *newer])))


class RunFolder(journal.Folder):
    """A run folder that one process writes: `with RunFolder(path) as folder: ...`."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path, RECORDS, SCHEMA)


# Checking


def violations(record: Record) -> list[str]:
    """What is wrong with one record, taken alone: keys and types first, then the invariants."""
    return faults(record, FIELDS, SCHEMA) or _broken_rules(record)


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
        (not stock or record.get("clock") is None, "clock is not null in the stock row"),
        ((lengths is None) == stock, "accept_lengths is null in the stock row and in no other"),
        (
            (record["phase_s"] is None) != clocked(record),
            "phase_s is null where the phase clock did not run, and nowhere else",
        ),
    ]
    return [message for holds, message in (*rules, *_step_rules(record)) if not holds]


def _step_rules(record: Record) -> list[tuple[bool, str]]:
    steps, first, lengths = record.get("steps"), record.get("prefill_end"), record["accept_lengths"]
    if steps is None and first is None:
        return []
    if record.get("clock") is False:
        return [(False, "steps are known, and the phase clock did not run")]
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
