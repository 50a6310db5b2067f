"""Append-only JSON lines in a folder: reading them, and the one process that writes them.

Every line is a record with `schema` (major.minor), `key` (what was measured) and `status` (ok,
error or skipped). Runs (`bench.records.runs`) and cost studies (`bench.records.costs`) share this.
A finished file may be archived as `<file>.gz`: it is read the same way and is read-only.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self, cast

from filelock import FileLock, Timeout

from bench import files
from bench.errors import UsageError
from bench.records import differences
from bench.records.schema import VERSION, Record, version

ENVIRONMENT = "environment.json"  # a folder's provenance
CONTINUED = "continued"  # its key for the environments of later sessions
ARCHIVED = ".gz"  # suffix of a file that is packed and read-only


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

    A last line without a newline was torn by a kill. Lines are cut after `longest` bytes; a cut
    line has no newline. UsageError as `opened`.
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
    """Whether the folder has the file, plain or archived."""
    return (Path(folder) / file).is_file() or archive(folder, file).is_file()


def archive(folder: Path | str, file: str) -> Path:
    """The path of the file's archive."""
    return Path(folder) / f"{file}{ARCHIVED}"


def content(folder: Path | str, file: str) -> bytes:
    """The file's bytes, unpacked where it is archived. UsageError where it cannot be read."""
    with opened(folder, file) as stream:
        return stream.read()


def sha256(folder: Path | str, file: str) -> str:
    """Of the file's unpacked bytes, so that archiving does not change it."""
    with opened(folder, file) as stream:
        return files.sha256_of_stream(stream)


@contextmanager
def opened(folder: Path | str, file: str) -> Iterator[BinaryIO]:
    """The file's bytes as a stream, unpacked where it is archived.

    UsageError where there is none, there are both, or reading fails within the block.
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
        raise UsageError(f"{path} is not a complete archive ({error}); restore it") from None
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
    """Line numbers from 1 and lines, without what follows the last newline: torn by a kill."""
    return enumerate(data.split(b"\n")[:-1], start=1)


def parse(line: bytes, schema: str) -> Record:
    """One line's record. ValueError says what is wrong with it and how to fix it."""
    try:
        record = _decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); restore the file or remove the line") from None
    core = ("schema", "key", "status")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in core):
        raise ValueError(
            f"not a record with {', '.join(core)}; restore the file or remove the line"
        )
    if not VERSION.holds(record["schema"]):
        raise ValueError(
            f"schema is {record['schema']!r}, not {VERSION.name}; "
            "restore the file or remove the line"
        )
    if version(record["schema"])[0] != version(schema)[0]:
        raise ValueError(
            f"schema {record['schema']} is of another major version than {schema}, which this "
            "package reads; use the package version that wrote it or another folder"
        )
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


# Writing


class Folder:
    """A folder that one process writes: `with Folder(path, file, schema) as folder: ...`.

    Entering creates the folder, locks it and cuts a torn last line off its records.
    UsageError if another process has the lock, the folder cannot be written, or its records cannot
    be read or are archived.
    """

    def __init__(self, path: Path | str, file: str, schema: str) -> None:
        self.path = Path(path)
        self._name, self._schema = file, schema
        self._environment: str | None = None  # the file with this session's, once it adds records

    def __enter__(self) -> Self:
        packed = kept(self.path, self._name)
        if packed.name != self._name:
            raise UsageError(
                f"{packed} is archived and read-only; gunzip it first, or choose another --out"
            )
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._lock())
                records = self.path / self._name
                self._file = stack.enter_context(open(records, "ab", buffering=0))
            except OSError as error:
                raise UsageError(
                    f"cannot write to {self.path} ({error.strerror}); choose another --out"
                ) from None
            known = read(self.path, self._name, self._schema)  # raises before anything is changed
            self._file.truncate(records.read_bytes().rfind(b"\n") + 1)
            self._newest: dict[str, tuple[str, str | None]] = {}
            self._done: set[str] = set()
            self.know(known)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _lock(self) -> AbstractContextManager[object]:
        """The lock, held; its file names this process. A killed process leaves none behind."""
        path = self.path / ".lock"
        try:
            held = FileLock(path, timeout=0).acquire()
        except Timeout:
            raise UsageError(
                f"{self.path} is in use by process {_holder(path)}; "
                "wait for it or choose another --out"
            ) from None
        with suppress(PermissionError):  # Windows: a locked file cannot be written
            path.write_text(str(os.getpid()), encoding="utf-8")
        return held

    def append(self, record: Record) -> None:
        """Writes one line and waits for the disk; a failure equal to the key's newest record is
        not written again. ValueError on a second ok record of a key, UsageError on a full disk.
        """
        if record["status"] == "ok" and record["key"] in self._done:
            raise ValueError(f"{record['key']} is already done")
        self.absorb([record])

    def absorb(self, records: Iterable[Record]) -> None:
        """Writes the records that add something, in one piece: not those of a key that is done, nor
        a failure equal to the key's newest record. UsageError on a full disk."""
        new = [record for record in records if self._adds(record)]
        if not new:
            return
        if self._environment is not None:
            self.write_once(ENVIRONMENT, self._environment)
            self._environment = None
        self._write(b"".join(map(_line, new)))
        self.know(new)

    def know(self, records: Iterable[Record]) -> None:
        """Counts records that are written, here or elsewhere."""
        for record in records:
            self._newest[record["key"]] = _outcome(record)
            if record["status"] == "ok":
                self._done.add(record["key"])

    def _adds(self, record: Record) -> bool:
        if record["status"] == "ok":
            return record["key"] not in self._done
        return self._newest.get(record["key"]) != _outcome(record)

    def _write(self, data: bytes) -> None:
        """Writes whole lines and waits for the disk."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) != len(data):
                raise OSError(None, "the line was written in part")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)  # no later line may follow a torn one
            raise UsageError(
                f"cannot write {self.path / self._name} ({error.strerror}); make room and run again"
            ) from None

    def records(self) -> list[Record]:
        """What the folder holds, in file order."""
        return read(self.path, self._name, self._schema)

    def done(self) -> set[str]:
        """The keys of ok records."""
        return set(self._done)

    def write_once(self, name: str, text: str) -> None:
        """Writes a whole file in one step: a kill leaves the old text or the new one."""
        try:
            files.write_text(self.path / name, text)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path / name} ({error.strerror}); make room and run again"
            ) from None

    def stamp(self, name: str, settings: str, environment: Mapping[str, Any]) -> None:
        """Writes the settings as the file `name`, and environment.json: the environment of the
        session that began the records, with those of later sessions that add any in a list.

        UsageError where the folder holds records of other settings or of another environment.
        """
        known, before = self.read(name), self.read(ENVIRONMENT)
        changed = None if known is None else differences.of_settings(known, settings)
        if changed:
            raise UsageError(
                f"{self.path} holds a run of other settings: {changed}; choose another --out"
            )
        if before is not None and self._newest:
            began = self._began(before)
            changed = differences.of_environments(began, json.loads(json.dumps(environment)))
            if changed:
                raise UsageError(
                    f"{self.path} was recorded with another {changed}; choose another --out"
                )
            sessions = [*began.get(CONTINUED, []), environment]
            self._environment = _environment({**began, CONTINUED: sessions})
        elif known is None or before != _environment(environment):
            self.write_once(ENVIRONMENT, _environment(environment))
        self.write_once(name, settings)

    def _began(self, text: str) -> dict[str, Any]:
        """The environment that the records began with. UsageError where the file is damaged."""
        try:
            began = json.loads(text)
            if isinstance(began, dict):
                return began
        except (ValueError, RecursionError):
            pass
        raise UsageError(
            f"{self.path / ENVIRONMENT} is damaged; restore the file or choose another --out"
        )

    def read(self, name: str) -> str | None:
        """The text of a file in the folder; None where there is none. UsageError where it cannot be
        read."""
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            why = "it is not UTF-8" if isinstance(error, ValueError) else error.strerror
            raise UsageError(
                f"cannot read {path} ({why}); restore the file or choose another --out"
            ) from None


def _holder(lock: Path) -> str:
    """The id of the process that has the lock, as far as its file tells."""
    with suppress(OSError):
        return lock.read_text(encoding="utf-8").strip() or "unknown"
    return "unknown"


def _line(record: Record) -> bytes:
    return (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _outcome(record: Record) -> tuple[str, str | None]:
    return record["status"], record.get("error")


def _environment(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
