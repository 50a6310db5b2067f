"""Append-only JSON lines in a folder: the words of their schema, reading, and the one writer.

Every line is a record with `schema` (major.minor), `key` (what it is a measurement of) and `status`
(ok, error or skipped). Runs (`bench.records`) and cost studies (`bench.cost_records`) are kept so.
A finished file may be archived as `<file>.gz`: it reads the same and is not written to.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self, TextIO, TypeAlias, cast

from bench.errors import UsageError

Record: TypeAlias = dict[str, Any]

ARCHIVED = ".gz"  # behind the name of a file that is packed and read-only


# The words of a schema


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
    return type(value) is int and value >= least  # a bool is no number


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


# Reading


def read(folder: Path | str, file: str, schema: str) -> list[Record]:
    """The records in file order, without a torn last line.

    UsageError where there are none to read, a line is damaged or the schema's major is another.
    """
    records = []
    for number, line in lines(folder, file):
        if not line.endswith(b"\n"):
            break
        try:
            records.append(parse(line, schema))
        except ValueError as error:
            raise UsageError(f"{Path(folder) / file} line {number}: {error}") from None
    return records


def lines(folder: Path | str, file: str, longest: int = -1) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and lines with their newlines, read as they are asked for.

    A last line without a newline was torn by a kill. What is behind the `longest` bytes of a line
    is left out, its newline too. UsageError as `opened`.
    """
    with opened(folder, file) as stream:
        for number in itertools.count(1):
            line = stream.readline(longest)
            if not line:
                return
            yield number, line
            while len(line) == longest and not line.endswith(b"\n"):
                line = stream.readline(longest)


def holds(folder: Path | str, file: str) -> bool:
    """Whether the folder has the file, as it is or archived."""
    return (Path(folder) / file).is_file() or archive(folder, file).is_file()


def archive(folder: Path | str, file: str) -> Path:
    """Where the file is kept when it is archived."""
    return Path(folder) / f"{file}{ARCHIVED}"


def content(folder: Path | str, file: str) -> bytes:
    """The file's bytes, unpacked where it is archived. UsageError where it cannot be read."""
    with opened(folder, file) as stream:
        return stream.read()


def sha256(folder: Path | str, file: str) -> str:
    """In hex, of the file's bytes, unpacked where it is archived: the same before and after."""
    with opened(folder, file) as stream:
        # BinaryIO lacks what the function asks of it in words only
        return hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()


@contextmanager
def opened(folder: Path | str, file: str) -> Iterator[BinaryIO]:
    """The file's bytes as a stream, unpacked where it is archived.

    UsageError where there is none, there are both, or reading it in the block fails.
    """
    path = kept(folder, file)
    try:
        if path.name == file:
            with open(path, "rb") as plain:
                yield plain
        else:
            with gzip.open(path, "rb") as packed:
                yield cast(BinaryIO, packed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is no whole archive ({error}); restore it") from None
    except OSError as error:
        raise UsageError(
            f"cannot read {path} ({error.strerror}); give the folder of a run"
        ) from None


def kept(folder: Path | str, file: str) -> Path:
    """The path of the file, or of its archive where it is archived; UsageError where both are."""
    plain, packed = Path(folder) / file, archive(folder, file)
    if not packed.is_file():
        return plain
    if plain.exists():
        raise UsageError(
            f"{folder} holds both {file} and {packed.name}; remove the one that is out of date"
        )
    return packed


def complete_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and lines; what follows the last newline was torn by a kill."""
    return enumerate(data.split(b"\n")[:-1], start=1)


def parse(line: bytes, schema: str) -> Record:
    """One line's record. ValueError says what is wrong with it and names the mend."""
    try:
        record = _decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); restore the file or remove the line") from None
    core = ("schema", "key", "status")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in core):
        raise ValueError(f"no record with {', '.join(core)}; restore the file or remove the line")
    if not VERSION.holds(record["schema"]):
        raise ValueError(
            f"schema is {record['schema']!r}, not {VERSION.name}; "
            "restore the file or remove the line"
        )
    if version(record["schema"])[0] != version(schema)[0]:
        raise ValueError(
            f"schema {record['schema']} is of another major version than {schema}, which this "
            "package knows; use the package version that wrote it or another folder"
        )
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


@functools.lru_cache(16)
def version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


# Writing


class Folder:
    """A folder held by one process: `with Folder(path, file, schema) as folder: ...`.

    Entering makes the folder, locks it and cuts a torn last line off its records.
    UsageError if another process holds it, it cannot be written, or its records cannot be read or
    are archived.
    """

    def __init__(self, path: Path | str, file: str, schema: str) -> None:
        self.path = Path(path)
        self._name, self._schema = file, schema

    def __enter__(self) -> Self:
        packed = kept(self.path, self._name)
        if packed.name != self._name:
            raise UsageError(
                f"{packed} is archived and not written to; gunzip it first, or choose another --out"
            )
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._claim(stack.enter_context(open(self.path / ".lock", "a+")))
                records = self.path / self._name
                self._file = stack.enter_context(open(records, "ab", buffering=0))
            except OSError as error:
                raise UsageError(
                    f"cannot write to {self.path} ({error.strerror}); choose another --out"
                ) from None
            known = read(self.path, self._name, self._schema)  # refuses before anything is changed
            self._file.truncate(records.read_bytes().rfind(b"\n") + 1)
            self._newest = {record["key"]: _outcome(record) for record in known}
            self._done = {record["key"] for record in known if record["status"] == "ok"}
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _claim(self, lock: TextIO) -> None:
        """The lock lasts as long as its open file, so a killed process leaves none behind."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UsageError(
                f"{self.path} is in use by process {lock.read().strip() or 'unknown'}; "
                "wait for it or choose another --out"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def append(self, record: Record) -> None:
        """Writes one line and waits for the disk; a failure like the key's newest record is not
        written again. ValueError on a second ok record of a key, UsageError on a full disk.
        """
        key, outcome = record["key"], _outcome(record)
        if record["status"] == "ok" and key in self._done:
            raise ValueError(f"{key} is already done")
        if record["status"] != "ok" and self._newest.get(key) == outcome:
            return
        line = (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(None, "the disk took a part of a line")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)  # no later line may follow a torn one
            raise UsageError(
                f"cannot write {self.path / self._name} ({error.strerror}); make room and run again"
            ) from None
        self._newest[key] = outcome
        if record["status"] == "ok":
            self._done.add(key)

    @property
    def begun(self) -> bool:
        """Whether there is any record."""
        return bool(self._newest)

    def done(self) -> set[str]:
        """The keys of ok records."""
        return set(self._done)

    def write_once(self, name: str, text: str) -> None:
        """Writes a whole file in one step: a kill leaves the old text or the new one."""
        draft = self.path / f".{name}.part"
        try:
            with open(draft, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path / name)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise UsageError(
                f"cannot write {self.path / name} ({error.strerror}); make room and run again"
            ) from None

    def read(self, name: str) -> str | None:
        """The text of a file in the folder; None where there is none."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None


def _outcome(record: Record) -> tuple[str, str | None]:
    return record["status"], record.get("error")
