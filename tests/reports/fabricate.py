"""Records and run folders for the report's tests, made by hand."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.files import canonical_sha256
from bench.records import runs as records

Record = dict[str, Any]


def record(method: str = "autoregressive", **changes: Any) -> Record:
    """A good record of schema 1.0: 4 tokens after the first in 4 s, unless changed."""
    made: Record = {
        "schema": "1.0",
        "run": "run",
        "cell": "ab",
        "package_version": "0.1.0",
        "model": "tiny",
        "revision": None,
        "dtype": "float32",
        "device": "cpu",
        "engine": "eager",
        "method": method,
        "params": {},
        "lossless": True,
        "checkpoint_sha256": None,
        "tree_sha256": None,
        "dataset": "mini",
        "dataset_sha256": None,
        "prompt_id": 1,
        "category": "writing",
        "turn": 1,
        "prompt_sha256": "aa",
        "history": None,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
        "seed": 0,
        "repeat": 0,
        "max_new_tokens": 8,
        "status": "ok",
        "error": None,
        "prompt_tokens": 3,
        "text": "",
        "accept_lengths": [1, 1, 1, 1],
        "prefill_s": 1.0,
        "draft_prefill_s": None,
        "decode_s": 4.0,
        "phase_s": {"draft": 0.0, "verify": 3.0, "accept": 0.0, "other": 1.0},
        "drafted": 0,
        "draft_parameters": 0,
        "peak_memory_bytes": None,
        "startup_s": 0.0,
        "finish": "eos",
        "warnings": [],
    } | changes
    if made["prompt_sha256"] is not None:
        made["prompt_sha256"] = made["prompt_sha256"].zfill(64)
    made.setdefault("new_tokens", 1 + sum(made["accept_lengths"] or []))
    made.setdefault("output_ids", [0] * made["new_tokens"])
    made["key"] = canonical_sha256(
        [made[name] for name in ("run", "model", "engine", "method", "params", "dataset")]
        + [made[name] for name in ("temperature", "prompt_id", "turn", "repeat", "dtype")]
    )
    return made


def failure(method: str, error: str, status: str = "error", **changes: Any) -> Record:
    """A failed record: null in every figure."""
    return record(method, **changes) | {
        "status": status,
        "error": error,
        **records.blank_figures(),
    }


def stock(**changes: Any) -> Record:
    """A record of stock generate: 4 tokens after the first, no steps or phases."""
    return record(
        "transformers_generate",
        **{
            "engine": "stock",
            "accept_lengths": None,
            "phase_s": None,
            "drafted": None,
            "new_tokens": 5,
            **changes,
        },
    )


def duel(questions: int = 4, repeats: int = 2, **changes: Any) -> list[Record]:
    """The reference and `fast`, twice as fast, over questions of two categories."""
    shared = [
        {
            "prompt_id": question,
            "prompt_sha256": f"{question:02x}",
            "category": ("writing", "math")[question % 2],
            "repeat": repeat,
            **changes,
        }
        for question in range(questions)
        for repeat in range(repeats)
    ]
    fast = {
        "params": {"n": 3},
        "accept_lengths": [3, 1],
        "decode_s": 2.0,
        "phase_s": {"draft": 0.5, "verify": 1.0, "accept": 0.25, "other": 0.25},
        "drafted": 6,
    }
    return [one for same in shared for one in (record(**same), record("fast", **fast, **same))]


CROWD: tuple[
    tuple[str, Record, int, tuple[float, ...]], ...
] = (  # method, parameters, tokens of a step, shares of a step's time by phase
    ("autoregressive", {}, 1, (0.0, 0.97, 0.02, 0.01)),
    ("lookahead", {"n": 4, "w": 3}, 2, (0.05, 0.9, 0.03, 0.02)),
    ("chimera", {"nodes": 15}, 3, (0.25, 0.7, 0.03, 0.02)),
    ("chimera", {"nodes": 63}, 4, (0.3, 0.65, 0.03, 0.02)),
    ("loose", {}, 4, (0.2, 0.75, 0.03, 0.02)),
)


def crowd(questions: int = 8, repeats: int = 2) -> list[Record]:
    """Several methods, among them a lossy one, on two models and two question sets: answers of 25
    tokens with the steps that gave them, and a failure.
    """
    draw = random.Random(0)
    places = itertools.product(("small", "large"), ("mini", "mt"), range(questions), range(repeats))
    lines = []
    for model, dataset, question, repeat in places:
        text = "".join(draw.choice("abcde ") * 4 for _ in range(25))  # 4 characters a token
        for method, params, most, shares in CROWD:
            lengths: list[int] = []
            while sum(lengths) < 24:
                lengths.append(min(24 - sum(lengths), draw.randint(1, most)))
            times = [
                [round(draw.uniform(9, 11) * (1 + most / 9) * 1000 * share) for share in shares]
                for _ in lengths
            ]
            sums = [sum(us) / 1e6 for us in zip(*times, strict=True)]
            phases = dict(zip(records.PHASES, sums, strict=True))
            ends = itertools.accumulate(lengths, initial=1)
            first = 4 * next(ends)
            steps = [
                {"drafted": 2 * most, "depth": most, "end": 4 * end, "us": us}
                for end, us in zip(ends, times, strict=True)
            ]
            lines.append(
                record(
                    method,
                    params=params,
                    model=model,
                    dataset=dataset,
                    lossless=method != "loose",
                    prompt_id=question,
                    category=("writing", "math")[question % 2],
                    prompt_sha256=f"{question:02x}",
                    repeat=repeat,
                    max_new_tokens=32,
                    text=text,
                    output_ids=[ord(text[4 * at]) for at in range(25)],
                    accept_lengths=lengths,
                    prefill_s=0.02,
                    decode_s=sum(phases.values()),
                    phase_s=phases,
                    drafted=2 * most * len(lengths),
                    draft_parameters=1_000_000 * (most - 1),
                    peak_memory_bytes=10**9,
                    **({"steps": steps, "prefill_end": first} if repeat == 0 else {}),
                )
            )
    return [*lines, failure("heads", "no heads for small", "skipped", **NOWHERE)]


NOWHERE = {
    "model": "small",
    "max_new_tokens": 32,
    **dict.fromkeys(("prompt_id", "turn", "repeat", "prompt_sha256")),
}


def write_run(folder: Path, lines: Iterable[Record], **companions: str) -> Path:
    """A run folder; companions: `run_yaml="..."`, `environment_json="..."`, `audit_json="..."`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / records.RECORDS).write_text(text, encoding="utf-8")
    for name, content in companions.items():
        (folder / name.replace("_", ".")).write_text(content, encoding="utf-8")
    return folder


def audit(folder: Path, rows: Sequence[Record]) -> None:
    """Writes an audit of the folder's records as they are now."""
    sha256 = hashlib.sha256((folder / records.RECORDS).read_bytes()).hexdigest()
    content = {"records_sha256": sha256, "rows": list(rows)}
    (folder / records.AUDIT).write_text(json.dumps(content), encoding="utf-8")
