"""Reads runs for the report: lines that cannot be used are left out and named, and the order of the
records follows from their content, not from their place in the file.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from bench.records import journal
from bench.records import runs as records
from bench.records.schema import COUNT, NUMBER, ORDINAL, SECONDS, Record
from reports.read.left_out import LeftOut
from reports.read.lines import collecting_later, nothing_usable, one_of_each, parsed
from reports.read.packed import Packed
from reports.read.parallel import side_by_side
from reports.read.safe_text import inert, is_plain, make_inert
from reports.read.sorting import natural, positions

LARGE = 1 << 25  # bytes of a file that two processes read

LONGEST_NAME = 1000  # characters
MOST = 10**15  # numbers up to here are exact in figures

# One question set's lines belong together, and so on; runs come as they were given.
PLACE = ("model", "revision", "dataset", "dataset_sha256", "temperature", "dtype", "device")

Values: TypeAlias = list[Any]  # one record's, in the order of COLUMNS

# What no section reads is not kept: a hundred thousand records are to fit.
DROPPED = ("schema", "cell", "code_sha256", "rank", "peak_memory_bytes")
OPTIONAL = ("clock", "card", "prefill_end")  # not in every record
COLUMNS = (*(name for name in records.FIELDS if name not in DROPPED), "label")
AT = {name: at for at, name in enumerate(COLUMNS)}

# Texts that many records share, and stand in tables.
NAMES = (
    *("run", "package_version", "model", "revision", "dtype", "device", "engine", "method"),
    *("checkpoint_sha256", "tree_sha256", "dataset", "dataset_sha256", "prompt_id", "category"),
    *("prompt_sha256", "history", "status", "finish"),
)
LISTS = ("output_ids", "accept_lengths")
_COUNTS = (COUNT, NUMBER, ORDINAL, SECONDS)
_numbers = itemgetter(
    *(n for n, field in records.FIELDS.items() if field.kind in _COUNTS and not field.optional)
)
_columns = itemgetter(*COLUMNS)


def read_run(
    folder: Path, name: str, settings: Mapping[str, Any]
) -> tuple[pd.DataFrame, list[str]]:
    """(the folder's records that count, one row each, with the columns COLUMNS; notices).

    Of two good records of one key the later in the order counts, and of failures the newest where
    no later attempt succeeded. UsageError where nothing can be used.
    """
    with collecting_later():
        rows, left = _read(folder, name)
        rows = _of_this_run(rows, folder.name, left)
        rows = one_of_each(rows, left, AT["key"], AT["status"])
        notices = left.notices()
        if not rows:
            raise nothing_usable(folder, notices)
        kept = _newest([row for _, row in rows])
        kept = _ordered(kept, settings)
        columns = zip(*kept, strict=True)
        found = {name: _series(values) for name, values in zip(COLUMNS, columns, strict=True)}
    return pd.DataFrame(found | {"run": _series([name] * len(kept))}), notices


def _series(values: Sequence[Any]) -> pd.Series[Any]:
    """A column. Texts stay Python objects: records share them, and small tables are faster."""
    known = next((value for value in values if value is not None), None)
    return pd.Series(list(values), dtype=object if isinstance(known, str) else None)


def empty() -> pd.DataFrame:
    """No records."""
    return pd.DataFrame(columns=list(COLUMNS))


def _read(folder: Path, name: str) -> tuple[list[tuple[int, Values]], LeftOut]:
    """Line numbers and values of the folder's valid records in file order, and the other lines."""
    path = journal.kept(folder, records.RECORDS)
    if not path.is_file() or path.stat().st_size < LARGE:
        return _read_share(folder, name, 0, 1)
    (rows, left), (more, left_too) = side_by_side(
        lambda: _read_share(folder, name, 0, 2), lambda: _read_share(folder, name, 1, 2)
    )
    left.join(left_too)
    return sorted(rows + more, key=itemgetter(0)), left


def _read_share(
    folder: Path, name: str, share: int, shares: int
) -> tuple[list[tuple[int, Values]], LeftOut]:
    """`_read` of one of so many shares of the lines."""
    left = LeftOut(name, records.RECORDS)
    with collecting_later():
        return list(_rows(folder, left, share, shares)), left


def _rows(folder: Path, left: LeftOut, share: int, shares: int) -> Iterator[tuple[int, Values]]:
    """Line numbers and values of the valid records of a share of a run's lines."""
    labels: dict[str, str] = {}
    shared: dict[Any, Any] = {}
    for number, line, record in parsed(
        folder, records.RECORDS, records.SCHEMA, left, share, shares
    ):
        broken = records.violations(record)
        if broken:
            left.add("invalid record", number, broken[0])
            continue
        if not is_plain(line):
            make_inert(record)
        name = f"{record['method']} {record['params']!r}"
        try:
            if name not in labels:
                labels[name] = inert(records.label(record["method"], record["params"]))
            record["label"] = labels[name]
            yield number, _values(record, shared)
        except (ValueError, OverflowError, RecursionError) as error:  # infinities, huge ids
            left.add("invalid record", number, str(error))


def _values(record: Record, shared: dict[Any, Any]) -> Values:
    """A record's values in the order of COLUMNS, stored compactly; ValueError for values that
    no page can show or compute with. `shared` holds the names seen before.
    """
    for name in NAMES:
        value = record[name]
        if isinstance(value, str):
            known = shared.get(value)
            if known is None:
                if len(value) > LONGEST_NAME:
                    raise ValueError(f"{name} is {len(value):,} characters long")
                known = shared[value] = value
            record[name] = known
    numbers = (*_numbers(record), *(record["phase_s"] or {}).values())
    if max(filter(None, numbers), default=0) > MOST or _above(record["prompt_id"]):
        raise ValueError(f"a number in it is above {MOST:g}")
    for name in LISTS:
        if record[name] is not None:
            record[name] = array("i", record[name])
    record["steps"] = record.get("steps") and Packed(record["steps"])
    for name in OPTIONAL:
        record[name] = record.get(name)
    return list(_columns(record))


def _above(prompt_id: int | str | None) -> bool:
    return isinstance(prompt_id, int) and prompt_id > MOST


def _of_this_run(
    rows: list[tuple[int, Values]], folder: str, left: LeftOut
) -> list[tuple[int, Values]]:
    """Rows of the run that most rows name, or of the folder's name: a run that was renamed and
    continued has both."""
    names = Counter(row[AT["run"]] for _, row in rows)
    if len(names) < 2:
        return rows
    usual = max(sorted(names), key=lambda name: names[name])
    kept = []
    for number, row in rows:
        if row[AT["run"]] in (usual, folder):
            kept.append((number, row))
        else:
            left.add("of another run", number, f"of {row[AT['run']]}, the others of {usual}")
    return kept


def _newest(rows: list[Values]) -> list[Values]:
    """`records.latest` of rows."""
    if all(row[AT["status"]] == "ok" for row in rows):
        return rows
    names = ("key", "status", "params", "prompt_id", "turn", "repeat", *records.PLACED)
    heads = [{name: row[AT[name]] for name in names} | {"row": row} for row in rows]
    return [head["row"] for head in records.latest(heads)]


def _ordered(rows: list[Values], settings: Mapping[str, Any]) -> list[Values]:
    """Rows by model, question set and temperature as the settings name them, then by question,
    turn, repeat and method."""
    places = {tuple(row[AT[name]] for name in PLACE) for row in rows}
    known = {
        "model": positions(settings.get("models")),
        "dataset": positions(settings.get("datasets")),
        "temperature": positions(settings.get("temperature")),
    }

    def of_place(place: tuple[Any, ...]) -> list[Any]:
        return [
            part
            for name, value in zip(PLACE, place, strict=True)
            for part in (known.get(name, {}).get(value, len(rows)), natural(value))
        ]

    rank = {place: at for at, place in enumerate(sorted(places, key=of_place))}
    prompts = {row[AT["prompt_id"]]: natural(row[AT["prompt_id"]]) for row in rows}
    labels = {name: natural(name) for name in {row[AT["label"]] for row in rows}}
    ints = [AT[name] for name in ("turn", "repeat", "seed")]
    prompt, label, engine, key = (AT[name] for name in ("prompt_id", "label", "engine", "key"))
    columns = [AT[name] for name in PLACE]

    def of_row(row: Values) -> tuple[Any, ...]:
        return (
            rank[tuple([row[at] for at in columns])],
            prompts[row[prompt]],
            [-1 if row[at] is None else row[at] for at in ints],
            row[engine],
            labels[row[label]],
            row[key],
        )

    return sorted(rows, key=of_row)
