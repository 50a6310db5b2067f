"""Hashes of files and JSON values, files written atomically, and the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import platformdirs

CACHE = "CHIMERA_BENCH_CACHE"  # environment variable: the cache folder


def sha256_of_bytes(data: bytes) -> str:
    """In hex, as every hash here."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_stream(stream: BinaryIO) -> str:
    """Of the bytes from the stream's position to its end."""
    # typeshed wants a protocol that BinaryIO meets but does not declare
    return hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of_stream(file)


def sha256_of_files(paths: Sequence[Path]) -> str:
    """Of one file; of several, the hash of their hashes in hex, one a line."""
    sums = [sha256_of_file(path) for path in paths]
    return sums[0] if len(sums) == 1 else sha256_of_bytes("\n".join(sums).encode())


def json_of(data: bytes) -> Any:
    """The JSON value in a file's UTF-8 bytes, with or without a byte order mark. ValueError, one
    line, where there is none."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def canonical_json(value: object) -> str:
    """Sorted keys and no spaces: equal values give equal text. ValueError on NaN and infinities."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def canonical_sha256(value: object) -> str:
    """Of the value's canonical JSON. ValueError on NaN and infinities."""
    return sha256_of_bytes(canonical_json(value).encode())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it replaces `path` when the block succeeds.

    A process killed in between leaves the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a UTF-8 file atomically, with newlines as they are in `text`."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors=errors, newline="\n")


def cache_root() -> Path:
    """`$CHIMERA_BENCH_CACHE`, else `chimera-bench` in the user's cache folder."""
    if chosen := os.environ.get(CACHE):
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("chimera-bench", appauthor=False)
