"""Reads folders of records for the report: what cannot be used is left out and said, and the rest
comes in an order that follows from what it is, not from where it stood.
"""

from __future__ import annotations

import gc
import pickle
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias, overload

import pandas as pd

from bench.errors import UsageError
from bench.records import costs as cost_records
from bench.records import journal
from bench.records import runs as records
from bench.records.schema import COUNT, NUMBER, ORDINAL, SECONDS, Record
from reports.read.processes import side_by_side

LARGE = 1 << 25  # bytes of a file that two processes read
LONGEST = 1 << 26  # bytes of a line that is read at all
NAMED = 12  # stretches of lines that a notice names
WORDS = 200  # characters of an example
LONGEST_NAME = 1000  # characters
MOST = 10**15  # numbers up to here are exact in figures

# One question set's lines belong together, and so on; runs come as they were given.
PLACE = ("model", "revision", "dataset", "dataset_sha256", "temperature", "dtype", "device")

Values: TypeAlias = list[Any]  # one record's, in the order of COLUMNS

# What no section reads is not kept: a hundred thousand records are to fit.
DROPPED = ("schema", "cell")
COLUMNS = (*(name for name in records.FIELDS if name not in DROPPED), "label")
AT = {name: at for at, name in enumerate(COLUMNS)}

# Texts that many records share, and stand in tables.
NAMES = (
    *("run", "package_version", "model", "revision", "dtype", "device", "engine", "method"),
    *("checkpoint_sha256", "tree_sha256", "dataset", "dataset_sha256", "prompt_id", "category"),
    *("prompt_sha256", "history", "status", "finish"),
)
LISTS = ("output_ids", "accept_lengths")
_COUNTS = (COUNT, ORDINAL, NUMBER, SECONDS)
_numbers = itemgetter(
    *(n for n, field in records.FIELDS.items() if field.kind in _COUNTS and not field.optional)
)
_columns = itemgetter(*COLUMNS)


class LeftOut:
    """Lines of one file that were not used, by reason."""

    def __init__(self, run: str, file: str) -> None:
        self._where = f"{run}: {{}} of {file}"
        self._lines: dict[str, list[int]] = defaultdict(list)
        self._examples: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, number: int, detail: str = "") -> None:
        self._lines[reason].append(number)
        self._examples.setdefault(reason, (number, shown(detail)))

    def join(self, other: LeftOut) -> None:
        """Adds the lines that another reader of the same file left out."""
        for reason, numbers in other._lines.items():
            self._lines[reason] += numbers
            both = [known[reason] for known in (self._examples, other._examples) if reason in known]
            self._examples[reason] = min(both)

    def notices(self) -> list[str]:
        """One line for each reason: how many lines, which, and what the first one says."""
        found = []
        for reason in sorted(self._lines):
            numbers = sorted(self._lines[reason])
            one = len(numbers) == 1
            count = self._where.format("1 line" if one else f"{len(numbers):,} lines")
            at, detail = self._examples[reason]
            which = f"line {at}" if one else f"lines {stretches(numbers)}"
            example = "" if not detail else f": {detail}" if one else f"; line {at}: {detail}"
            found.append(f"{count} left out, {reason} ({which}{example})")
        return found


def stretches(numbers: Sequence[int]) -> str:
    """Ascending line numbers in words: 3, 5-9 and 12 more."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    named = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:NAMED]]
    more = sum(b - a + 1 for a, b in runs[NAMED:])
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def shown(text: str) -> str:
    """A text that may be hostile, in one short line of plain characters."""
    plain = inert(text)
    return plain if len(plain) <= WORDS else plain[:WORDS] + "…"


# ---------------------------------------------------------------------------------- runs


def run(folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[pd.DataFrame, list[str]]:
    """(the folder's records that count, one row each, with the columns COLUMNS; notices).

    Of two good records of one key the later in the order counts, and of failures the newest where
    no later attempt succeeded. UsageError where nothing can be used.
    """
    with collecting_later():
        rows, left = _read(folder, name)
        rows = _of_this_run(rows, folder.name, left)
        rows = _one_of_each(rows, left, AT["key"], AT["status"])
        notices = left.notices()
        if not rows:
            raise _nothing(folder, notices)
        kept = _newest([row for _, row in rows])
        kept = _ordered(kept, settings)
        columns = zip(*kept, strict=True)
        found = {name: _series(values) for name, values in zip(COLUMNS, columns, strict=True)}
    return pd.DataFrame(found | {"run": _series([name] * len(kept))}), notices


def _series(values: Sequence[Any]) -> pd.Series[Any]:
    """A column. Texts stay Python's own: records share them, and small tables are quicker so."""
    known = next((value for value in values if value is not None), None)
    return pd.Series(list(values), dtype=object if isinstance(known, str) else None)


def empty() -> pd.DataFrame:
    """No records."""
    return pd.DataFrame(columns=list(COLUMNS))


def _nothing(folder: Path, notices: Sequence[str]) -> UsageError:
    if not notices:
        return UsageError(f"{folder} holds no records; run the benchmark first")
    return UsageError(f"{folder} holds no record that can be used: {'; '.join(notices)}")


@contextmanager
def collecting_later() -> Iterator[None]:
    """Without the collector of cycles, which would go through all records again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _read(folder: Path, name: str) -> tuple[list[tuple[int, Values]], LeftOut]:
    """Line numbers and values of the folder's sound records in file order, and the other lines."""
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


def _parsed(
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
            left.add("behind which the file cannot be read", number, str(error))


def _kind(error: str) -> str:
    """What a line that does not parse is."""
    if error.startswith("not JSON"):
        return "not JSON"
    return "of another schema" if error.startswith("schema") else "no record"


def _rows(folder: Path, left: LeftOut, share: int, shares: int) -> Iterator[tuple[int, Values]]:
    """Line numbers and values of the sound records of a share of a run's lines."""
    labels: dict[str, str] = {}
    shared: dict[Any, Any] = {}
    for number, line, record in _parsed(
        folder, records.RECORDS, records.SCHEMA, left, share, shares
    ):
        broken = records.violations(record)
        if broken:
            left.add("no sound record", number, broken[0])
            continue
        if not _plain(line):
            _make_inert(record)
        name = f"{record['method']} {record['params']!r}"
        try:
            if name not in labels:
                labels[name] = inert(records.label(record["method"], record["params"]))
            record["label"] = labels[name]
            yield number, _values(record, shared)
        except (ValueError, OverflowError, RecursionError) as error:  # infinities, huge ids
            left.add("no sound record", number, str(error))


def _values(record: Record, shared: dict[Any, Any]) -> Values:
    """A record's values in the order of COLUMNS, held as small as they can be; ValueError on what
    no page can show or count with. `shared` holds the names seen before.
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
    record["prefill_end"] = record.get("prefill_end")
    return list(_columns(record))


def _above(prompt_id: int | str | None) -> bool:
    return isinstance(prompt_id, int) and prompt_id > MOST


class Packed(Sequence[Any]):
    """A list that is unpacked when it is looked at: steps are many, and few of them are shown."""

    __slots__ = ("_bytes",)

    def __init__(self, values: list[Any]) -> None:
        self._bytes = pickle.dumps(values, pickle.HIGHEST_PROTOCOL)

    def _list(self) -> list[Any]:
        values: list[Any] = pickle.loads(self._bytes)
        return values

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        return self._list()[at]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list())

    def __len__(self) -> int:
        return len(self._list())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packed) and self._bytes == other._bytes

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._list())


def _of_this_run(
    rows: list[tuple[int, Values]], folder: str, left: LeftOut
) -> list[tuple[int, Values]]:
    """Rows of the run that most are of, or of the folder's name: a run that was renamed and
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


def _one_of_each(
    rows: list[tuple[int, Any]], left: LeftOut, key: int | str, status: int | str
) -> list[tuple[int, Any]]:
    """Rows without those whose key is done by another one; which one follows from what they say.

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
        detail = f"a copy of line {at}" if row == known else f"line {more[0]} says otherwise"
        left.add("of a turn that is done", less[0], detail)
        done[row[key]], chosen[row[key]] = more, more[0]
    if not chosen:
        return rows
    return [
        (number, row)
        for number, row in rows
        if row[status] != "ok" or chosen.get(row[key], number) == number
    ]


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
        "model": _positions(settings.get("models")),
        "dataset": _positions(settings.get("datasets")),
        "temperature": _positions(settings.get("temperature")),
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


def _positions(names: Any) -> dict[Any, int]:
    """Where each of a setting's values stands; none where the setting is no list."""
    values = names if isinstance(names, list) else []
    return {value: at for at, value in enumerate(values) if isinstance(value, str | float | int)}


def natural(value: Any) -> tuple[Any, ...]:
    """A key by which null, numbers and names sort, and names by the numbers in them."""
    if value is None:
        return (0,)
    if not isinstance(value, str):
        return (1, value)
    parts = re.split(r"([0-9]{1,18})", value)
    return (2, [(int(part), "") if at % 2 else (0, part) for at, part in enumerate(parts)], value)


# ---------------------------------------------------------------------------------- studies


def study(folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[list[Record], list[str]]:
    """(the newest record of each measurement, with the study's name as `run`; notices).

    UsageError where nothing can be used.
    """
    left = LeftOut(name, cost_records.COSTS)
    found = []
    for number, line, record in _parsed(folder, cost_records.COSTS, cost_records.SCHEMA, left):
        broken = cost_records.violations(record)
        if broken:
            left.add("no sound record", number, broken[0])
            continue
        if not _plain(line):
            _make_inert(record)
        found.append((number, record))
    kept = [record for _, record in _one_of_each(found, left, "key", "status")]
    notices = left.notices()
    if not kept:
        raise _nothing(folder, notices)
    models = _positions(settings.get("models"))
    provenance = settings.get("provenance")
    methods = _positions(provenance.get("methods") if isinstance(provenance, Mapping) else None)

    def place(record: Record) -> tuple[Any, ...]:
        names = ("dtype", "device", "engine", "kind", "context", "width")
        label = records.label(record.get("method", ""), record.get("params", {}))
        return (
            models.get(record["model"], len(models)),
            natural(record["model"]),
            *(natural(record.get(name)) for name in names),
            methods.get(label, len(methods)),
            natural(label),
            record["key"],
        )

    newest = sorted(cost_records.latest(kept), key=place)
    return [{**record, "run": name} for record in newest], notices


# ---------------------------------------------------------------------------------- hostile text

ANSWERS = ("text",)  # are shown by character counts, so that their lengths must stay
NESTED = ("params", "warnings")  # hold texts
_UNSHOWN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def inert(name: str) -> str:
    """A name with what cannot be seen, and what turns text around, spelled out."""
    if name.isprintable():
        return name
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in name
    )


def _plain(line: bytes) -> bool:
    """Whether a line holds ASCII alone, and no escape of anything else."""
    return line.isascii() and b"\\u" not in line


def _make_inert(record: Record) -> None:
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
