"""Tuned parameters on disk: what `python -m bench.tune` leaves and `bench.run --tree tuned` takes.

A file for each place (device, engine, model, revision, precision) with an entry for each method:
the parameters chosen and the measured curve that they were chosen from. Files lie in the user's
cache and beside this module, where they ship. The report reads them too: no torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import UsageError
from bench.files import canonical_sha256

SCHEMA = "1.0"  # major.minor
TREE = "tuned"  # the value of --tree that asks for these parameters
FILE = "tuned.json"  # in a run folder: what the run took

SEARCH, FINAL = "search", "final"

Built = TypeVar("Built")


@dataclass(frozen=True)
class Place:
    """What parameters are tuned for.

    Attributes:
        device: the GPU's name, or `cpu, 2 threads`.
    """

    device: str
    engine: str
    model: str
    revision: str
    dtype: str

    @property
    def file(self) -> str:
        """The name of its file: readable, and its own."""
        words = f"{self.model} {self.engine} {self.dtype} {self.device}".lower()
        readable = re.sub(r"[^a-z0-9.]+", "-", words).strip("-")
        return f"{readable}-{canonical_sha256(asdict(self))[:8]}.json"

    def __str__(self) -> str:
        return f"{self.model}, {self.engine}, {self.dtype}, {self.device}"


@dataclass(frozen=True)
class Point:
    """One setting of a method, measured beside the reference.

    Attributes:
        params: every parameter.
        stage: "search", or "final" for one of the best, on questions that the search did not see.
        questions: how many were asked; the search drops settings that are far behind.
        steps: verify steps.
        width: mean width of a verify forward, drafted nodes and the root.
        accepted: accepted length.
        step_s: seconds of the decode loop a step.
        reference_s: the reference's seconds a token on the same questions, between these.
        speedup: accepted * reference_s / step_s.
        low, high: its 95 % interval over questions; None for fewer than two.
    """

    params: dict[str, Any]
    stage: str
    questions: int
    steps: int
    width: float
    accepted: float
    step_s: float
    reference_s: float
    speedup: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Entry:
    """A method's tuned parameters.

    Attributes:
        params: every parameter, as chosen.
        checkpoint_sha256: of the draft's weights, None for a method without.
        tuning: the question set with its sha256, questions and tokens of both stages.
        package_version: this package's.
        environment: what the figures depend on, as `environment.json` has it.
        points: the measured curve, the search's points before the final ones.
    """

    params: dict[str, Any]
    checkpoint_sha256: str | None
    tuning: dict[str, Any]
    package_version: str
    environment: dict[str, Any]
    points: tuple[Point, ...]

    @property
    def chosen(self) -> Point:
        """The final measurement of the chosen parameters."""
        return next(p for p in self.points if p.stage == FINAL and p.params == self.params)


@dataclass(frozen=True)
class Tuned:
    """A file: entries by method."""

    place: Place
    entries: dict[str, Entry]

    def text(self) -> str:
        """The file's text; the same entries give the same bytes."""
        methods = {name: asdict(self.entries[name]) for name in sorted(self.entries)}
        content = {"schema": SCHEMA, **asdict(self.place), "methods": methods}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse(text: str, origin: str) -> Tuned:
    """A file's text. UsageError, which names `origin`, where it is no file of this schema."""
    try:
        content = json.loads(text)
        schema = str(content.pop("schema"))
        if schema.partition(".")[0] != SCHEMA.partition(".")[0]:
            raise ValueError(f"schema {schema}, this package knows {SCHEMA}")
        entries = {name: _entry(entry) for name, entry in content.pop("methods").items()}
        return Tuned(_build(Place, content), entries)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"{origin} is no file of tuned parameters ({reason}); remove it, then run "
            "python -m bench.tune again"
        ) from None


def read(path: Path) -> Tuned | None:
    """The file, None where there is none. UsageError where it is damaged."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} ({error}); remove it or mend it") from None


def write(folder: Path, found: Tuned) -> Path:
    """The file in `folder` with these entries in the place of older ones, whole or not at all.

    UsageError where it cannot be written.
    """
    path = folder / found.place.file
    known = read(path)
    entries = {**(known.entries if known else {}), **found.entries}
    draft = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(Tuned(found.place, entries).text(), encoding="utf-8", newline="\n")
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); choose another --out") from None
    return path


def find(
    place: Place,
    method: str,
    parameters: Iterable[str],
    checkpoint_sha256: str | None,
    folders: Iterable[Path],
) -> tuple[Entry, Path] | None:
    """The first folder's entry for exactly this place, method and weights, and its file.

    `parameters` are those that the method has: an entry of a version with others is passed over.
    """
    names = set(parameters)
    for folder in folders:
        path = folder / place.file
        found = read(path)
        entry = found.entries.get(method) if found and found.place == place else None
        if entry and entry.checkpoint_sha256 == checkpoint_sha256 and set(entry.params) == names:
            return entry, path
    return None


def _entry(content: Mapping[str, Any]) -> Entry:
    points = tuple(_build(Point, point) for point in content["points"])
    entry = _build(Entry, {**content, "points": points})
    _ = entry.chosen  # there is one
    return entry


def _build(kind: type[Built], content: Mapping[str, Any]) -> Built:
    """A dataclass from a JSON object; fields of later minor versions are left out."""
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: content[name] for name in names})
