"""Shared by the tests of whole runs: a few questions, a fast target, decoders made by a test."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.decoding.decoder import Decoder
from bench.questions.sets import DATA_DIR_VARIABLE
from bench.records import runs as records
from bench.run import methods
from bench.run.__main__ import main

ROWS: list[dict[str, Any]] = [
    {"question_id": 1, "category": "sums", "turns": ["how much is it? how much?", "and now?"]},
    {"question_id": 2, "category": "names", "turns": ["name the colours of a bow", "why?"]},
    {"question_id": 3, "category": "sums", "turns": ["count to ten", "again"]},
]
QUESTIONS = "asked.jsonl"
QUICK = (
    *("--models", "synthetic:predictable", "--datasets", QUESTIONS),
    *("--methods", "transformers_generate", "lookahead", "prompt_lookup"),
    *("--max-new-tokens", "12", "--repeats", "1", "--no-report"),
)
TURNS = sum(len(row["turns"]) for row in ROWS)
LABELS = (
    "autoregressive",
    "transformers_generate",
    "lookahead(n=5,w=7,g=7,prompt=true)",
    "prompt_lookup(n=3,k=10)",
)


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `folder` the working directory, with the questions in it and no data folder set."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    ask(folder / QUESTIONS)


def ask(path: Path, rows: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    """Writes a question set."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads do not speed up a tiny model, and slow it down where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(*flags: str) -> int:
    """`python -m bench.run` with quick settings and `flags`, which win; its exit code."""
    with one_thread():
        return main([*QUICK, *flags])


def install(monkeypatch: pytest.MonkeyPatch, *decoders: type[Decoder]) -> None:
    """Makes module-level classes look like decoders of another installed package."""
    points = [
        EntryPoint(kind.name, f"{kind.__module__}:{kind.__qualname__}", methods.GROUP)
        for kind in decoders
    ]
    installed: Callable[..., list[EntryPoint]] = lambda group: [  # noqa: E731
        *entry_points(group=group),
        *points,
    ]
    monkeypatch.setattr(methods, "entry_points", installed)


def kept(folder: Path | str, clocked: bool | None = False) -> list[records.Record]:
    """The records that count: of the timed repeats, of the one with the phase clock, or (None) of
    all."""
    latest = records.latest(records.read(folder))
    return [record for record in latest if clocked in (None, bool(record["clock"]))]


def of(folder: Path | str, method: str, clocked: bool | None = False) -> list[records.Record]:
    """The records of one method that count."""
    return [record for record in kept(folder, clocked) if record["method"] == method]


def outputs(folder: Path | str) -> dict[str, list[int]]:
    """Ids by key of the turns that are done, with the phase clock and without."""
    return {r["key"]: r["output_ids"] for r in kept(folder, None) if r["status"] == "ok"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` except locks, which hold the id of the last process."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
