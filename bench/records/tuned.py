"""Tuned parameters on disk: written by `python -m bench.tune`, read by `bench.run --tree tuned`.

One file for each device, engine, model, revision and precision. For each method it holds the chosen
parameters and the measurements that they were chosen from. Files are in the user's cache and in
`bench.run.tuned_files`, which ships. Reports read them too: no torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import UsageError, one_line
from bench.files import canonical_sha256, write_text

SCHEMA = "1.0"  # major.minor
TREE = "tuned"  # the value of --tree that asks for these parameters
FILE = "tuned.json"  # in a run folder: what the run took

SEARCH, FINAL = "search", "final"
DTYPES = ("float32", "bfloat16", "float16")

Built = TypeVar("Built")


@dataclass(frozen=True)
class TunedFor:
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
        """The name of its file: readable and unique."""
        words = f"{self.model} {self.engine} {self.dtype} {self.device}".lower()
        readable = re.sub(r"[^a-z0-9.]+", "-", words).strip("-")
        return f"{readable}-{canonical_sha256(asdict(self))[:8]}.json"

    def __str__(self) -> str:
        return f"{self.model}, {self.engine}, {self.dtype}, {self.device}"


@dataclass(frozen=True)
class Point:
    """One setting of a method, measured together with the reference.

    Attributes:
        params: every parameter.
        stage: "search", or "final" for one of the best, on questions that the search did not use.
        questions: how many were asked; the search drops settings that are far behind.
        steps: verify steps.
        width: mean width of a verify forward, drafted nodes and the root.
        accepted: accepted length.
        step_s: seconds of the decode loop a step.
        reference_s: the reference's seconds a token on the same questions, interleaved with these.
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
class TunedMethod:
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
    """A file: tuned methods by name."""

    tuned_for: TunedFor
    methods: dict[str, TunedMethod]

    def text(self) -> str:
        """The file's text; equal content gives equal bytes."""
        methods = {name: asdict(self.methods[name]) for name in sorted(self.methods)}
        content = {"schema": SCHEMA, **asdict(self.tuned_for), "methods": methods}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse(text: str, origin: str) -> Tuned:
    """A file's text. UsageError, which names `origin`, where it does not follow the schema."""
    try:
        content = json.loads(text)
        schema = str(content.pop("schema"))
        if schema.partition(".")[0] != SCHEMA.partition(".")[0]:
            raise ValueError(f"schema {schema}, this package reads {SCHEMA}")
        methods = {name: _method(entry) for name, entry in content.pop("methods").items()}
        return Tuned(_build(TunedFor, content), methods)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UsageError(
            f"{origin} is not a file of tuned parameters ({one_line(error)}); remove it, then run "
            "python -m bench.tune again"
        ) from None


def read(path: Path) -> Tuned | None:
    """The file, None where there is none. UsageError where it is damaged."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} ({error}); remove it or repair it") from None


def write(folder: Path, found: Tuned) -> Path:
    """Write the file in `folder` atomically; these methods replace its older ones, others stay.

    UsageError where it cannot be written.
    """
    path = folder / found.tuned_for.file
    known = read(path)
    methods = {**(known.methods if known else {}), **found.methods}
    try:
        write_text(path, Tuned(found.tuned_for, methods).text())
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); choose another --out") from None
    return path


def dtypes(tuned_for: TunedFor, folders: Iterable[Path]) -> list[str]:
    """The other dtypes for which there are parameters, all else being equal."""
    candidates = (replace(tuned_for, dtype=name) for name in DTYPES if name != tuned_for.dtype)
    places = [*folders]
    return [c.dtype for c in candidates if any((place / c.file).is_file() for place in places)]


def find(
    tuned_for: TunedFor,
    method: str,
    parameters: Iterable[str],
    checkpoint_sha256: str | None,
    folders: Iterable[Path],
) -> tuple[TunedMethod, Path] | None:
    """The first folder's parameters for exactly this machine, method and weights, and their file.

    `parameters` are the method's own: a file with one that the method no longer has is passed over.
    """
    names = set(parameters)
    for folder in folders:
        path = folder / tuned_for.file
        file = read(path)
        found = file.methods.get(method) if file and file.tuned_for == tuned_for else None
        if found and found.checkpoint_sha256 == checkpoint_sha256 and set(found.params) <= names:
            return found, path
    return None


def _method(content: Mapping[str, Any]) -> TunedMethod:
    points = tuple(_build(Point, point) for point in content["points"])
    method = _build(TunedMethod, {**content, "points": points})
    _ = method.chosen  # StopIteration where there is none
    return method


def _build(kind: type[Built], content: Mapping[str, Any]) -> Built:
    """A dataclass from a JSON object; fields of later minor versions are ignored."""
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: content[name] for name in names})
