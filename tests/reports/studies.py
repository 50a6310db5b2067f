"""Cost studies for the report's tests, made by hand."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.records import costs as cost_records
from bench.records.costs import ENGINE, FORWARD, STEP
from bench.records.runs import Record

GIB = 1 << 30
BANDWIDTH = 4e12


def measurement(kind: str, **changes: Any) -> Record:
    """A good record: weights of 4 GB and 1 MB a cached token at 4 TB/s, so a floor of 1 ms and
    0.25 ms for every 1,000 cached tokens; forwards and steps take 2 ms unless changed."""
    record: Record = {
        "package_version": "0.1.0",
        "model": "synthetic:tiny",
        "dtype": "bfloat16",
        "device": "a card",
        "engine": "eager",
        "seed": 0,
        "revision": None,
        "parameters": 2_000_000_000,
        "weight_bytes": 4_000_000_000,
        "row_bytes": 1_000_000,
        "copy_bytes_per_s": BANDWIDTH,
        "read_bytes_per_s": BANDWIDTH / 2,
        "kind": kind,
    }
    own: dict[str, Record] = {
        ENGINE: {"startup_s": 3.5, "peak_memory_bytes": 5 * GIB},
        FORWARD: {"context": 1000, "width": 1, "seconds": [0.002, 0.001, 0.004]},
        STEP: {
            "context": 1000,
            "method": "autoregressive",
            "params": {},
            "checkpoint": None,
            "tree": None,
            "max_new_tokens": 5,
            "turns": [turn()],
            "width": 1,
            "draft_parameters": 0,
            "draft_bytes": 0,
            "startup_s": 1.0,
            "checkpoint_sha256": None,
            "tree_sha256": None,
            "warnings": [],
        },
    }
    record |= own[kind] | changes
    if kind != ENGINE:
        repeated: list[Any] = record["seconds" if kind == FORWARD else "turns"]
        record.setdefault("repeats", len(repeated))
    identity = {name: record.pop(name) for name in cost_records.IDENTITY[kind]}
    return cost_records.ok(identity, record)


def turn(
    draft: float = 0.0,
    verify: float = 0.002,
    accept: float = 0.0,
    other: float = 0.0,
    steps: int = 4,
    drafted: int = 0,
) -> Record:
    """A turn of so many steps of one token, with seconds of each phase a step."""
    phases = {"draft": draft, "verify": verify, "accept": accept, "other": other}
    return {
        "phase_s": {name: steps * seconds for name, seconds in phases.items()},
        "decode_s": steps * sum(phases.values()),
        "accept_lengths": [1] * steps,
        "drafted": steps * drafted,
        "quiet_s": 0.8 * steps * sum(phases.values()),
    }


def skipped(kind: str, reason: str, **changes: Any) -> Record:
    """A measurement that could not be made."""
    record = measurement(kind, **changes)
    identity = {name: record[name] for name in cost_records.IDENTITY[kind]}
    return cost_records.failure(identity, "skipped", reason)


def fast(**changes: Any) -> Record:
    """A step of `fast(n=3)`: 3 ms, of which 2 verify; its draft reads 2 GB, 0.5 ms."""
    values = {
        "method": "fast",
        "params": {"n": 3},
        "checkpoint": "random",
        "turns": [turn(draft=0.00075, accept=0.0002, other=0.00005, drafted=6)],
        "width": 7,
        "draft_parameters": 1_000_000_000,
        "draft_bytes": 2_000_000_000,
    }
    return measurement(STEP, **values | changes)


def example(**changes: Any) -> list[Record]:
    """Forwards of two widths at two contexts, and steps of the reference and of `fast`."""
    widths = {1: (0.002, 0.0015, 0.003), 64: (0.003, 0.0025, 0.0035)}
    found = [measurement(ENGINE, **changes)]
    for context in (1000, 4000):
        found += [
            measurement(FORWARD, context=context, width=w, seconds=list(seconds), **changes)
            for w, seconds in widths.items()
        ]
        found += [measurement(STEP, context=context, **changes), fast(context=context, **changes)]
    return found


def write_study(
    folder: Path, lines: Iterable[Record], settings: str = "", environment: Sequence[str] = ()
) -> Path:
    """The folder of a study."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / cost_records.COSTS).write_text(text, encoding="utf-8")
    (folder / cost_records.SETTINGS).write_text(settings, encoding="utf-8")
    known = dict.fromkeys(environment, "here")
    (folder / "environment.json").write_text(json.dumps(known), encoding="utf-8")
    return folder
