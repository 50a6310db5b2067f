"""Checkpoints converted from GGUF files, in the user's cache: made once, verified at every load."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from bench.errors import UsageError
from bench.files import CACHE, cache_root, sha256_of_file

MANIFEST = "manifest.json"
RECIPE = 2  # raised when the conversion changes, so that older caches are converted again


@dataclass(frozen=True)
class Converted:
    """A plain transformers checkpoint made from a GGUF file.

    Attributes:
        name: the target's, for messages.
        folder: where it is, or will be.
        gguf_sha256: of the file that it is made from.
    """

    name: str
    folder: Path
    gguf_sha256: str

    def ready(self) -> bool:
        """Whether it exists, by its files' sizes; `ensure` reads the bytes."""
        return self._listed() is not None

    def ensure(self, make: Callable[[Path], Path]) -> Path:
        """The folder, made by `make` when needed.

        `make` is given an empty folder to work in, and returns the one in it that holds the
        checkpoint. Every file is compared to the manifest's sha256; a damaged or partial checkpoint
        is made again, once. Raises UsageError for a cache that cannot be written.
        """
        if self._damage() is not None:
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder.with_name(f"{self.folder.name}.lock")):
                    self._make(make)
            except OSError as error:
                raise UsageError(
                    f"the cache {self.folder.parent} cannot be written "
                    f"({error.strerror or error}); set {CACHE} to another folder"
                ) from error
        return self.folder

    def _make(self, make: Callable[[Path], Path]) -> None:
        """Under the lock, in a temporary folder; the result then replaces `folder`."""
        damage = self._damage()  # another process may have been faster
        if damage is None:
            return
        if self.folder.exists():
            note(self.name, f"the cached copy is damaged ({damage}); making it again")
        prefix = f".{self.folder.name}-"
        for left in self.folder.parent.glob(f"{prefix}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=self.folder.parent) as scratch:
            fresh = make(Path(scratch))
            self._seal(fresh)
            if self.folder.exists():
                shutil.rmtree(self.folder)
            os.replace(fresh, self.folder)

    def _seal(self, fresh: Path) -> None:
        """Writes the manifest."""
        files = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in sorted(fresh.iterdir())
        }
        manifest = {"recipe": RECIPE, "gguf_sha256": self.gguf_sha256, "files": files}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")

    def _listed(self) -> dict[str, str] | None:
        """sha256 by file name, by the manifest; None if it is missing or stale, or a size is
        wrong."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text("utf-8"))
            if (manifest["recipe"], manifest["gguf_sha256"]) != (RECIPE, self.gguf_sha256):
                return None
            files = manifest["files"].items()
            if any((self.folder / name).stat().st_size != entry["size"] for name, entry in files):
                return None
            return {name: entry["sha256"] for name, entry in files}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _damage(self) -> str | None:
        """What is wrong with the checkpoint; None if nothing is. Reads every byte."""
        if (listed := self._listed()) is None:
            return "incomplete, or of another version"
        return next(
            (
                f"{name} has another checksum"
                for name, sum_ in listed.items()
                if sha256_of_file(self.folder / name) != sum_
            ),
            None,
        )


def check_space(name: str, needed: int) -> None:
    """UsageError unless the cache's disk has `needed` bytes free."""
    root = cache_root()
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UsageError(
            f"{name} needs {needed / 1e9:.1f} GB in {root}, which has {free / 1e9:.1f} GB free; "
            f"make room, or set {CACHE} to a folder on another disk"
        )


def note(name: str, text: str) -> None:
    """A line for people, on standard error."""
    tqdm.write(f"{name}: {text}", file=sys.stderr)
