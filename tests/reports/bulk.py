"""Run folders as large as real ones, made by hand: many methods, sets, repeats and long answers.

python -m tests.reports.bulk FOLDER [RECORDS]
"""

import hashlib
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.files import canonical_sha256
from bench.records import runs as records
from tests.reports.fabricate import Record

TOKENS = 128
RUNS = 2
MODELS = ("smollm2-135m", "vicuna-7b-v1.3")
SETS = {"mt_bench": (80, 2), "vicuna_bench": (80, 1)}  # questions, turns
TEMPERATURES = (0.0, 1.0)
CATEGORIES = [
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
]
WORDS = [
    "the",
    "of",
    "island",
    "and",
    "a",
    "vibrant",
    "to",
    "in",
    "culture",
    "that",
    "breathtaking",
    "landscape",
    "day",
    "with",
    "it",
]


@dataclass(frozen=True)
class Method:
    name: str
    params: dict[str, Any]
    draft: float = 0.0  # share of a step
    nodes: int = 0
    longest: int = 1  # tokens of a step


METHODS = (
    Method(records.REFERENCE, {}),
    Method("lookahead", {"n": 5, "w": 7, "g": 7, "prompt": True}, 0.05, 21, 3),
    Method("prompt_lookup", {"n": 3, "k": 10}, 0.01, 10, 3),
    Method("medusa", {"nodes": 63}, 0.1, 63, 4),
    Method("chimera", {"nodes": 15, "depth": 0, "dynamic": False, "beam": 8}, 0.2, 15, 5),
    Method("chimera", {"nodes": 63, "depth": 0, "dynamic": True, "beam": 8}, 0.3, 63, 6),
    Method("transformers_generate", {}),
)


def bulk(run: str, count: int, seed: int = 0) -> Iterator[Record]:
    """So many records of one run, repeats outermost; greedy answers of one prompt are alike."""
    draw = random.Random(f"{run} {seed}")
    answers: dict[Any, list[int]] = {}
    made = 0
    for repeat in itertools.count():
        for (model, name, question, turn), temperature, method in itertools.product(
            _turns(), TEMPERATURES, METHODS
        ):
            if made == count:
                return
            made += 1
            place = [model, name, question, turn, temperature]
            ids = answers.setdefault(tuple(place[:4]), _ids(draw))
            if temperature or draw.random() < 0.02:
                ids = ids[: draw.randrange(TOKENS)] + _ids(draw)
            shared = {
                "run": run,
                "cell": canonical_sha256([place, method.name, method.params, repeat])[:16],
                "key": canonical_sha256([run, place, method.name, method.params, repeat]),
                "model": model,
                "dataset": name,
                "prompt_id": str(question + 81),
                "category": CATEGORIES[question * len(CATEGORIES) // SETS[name][0]],
                "turn": turn,
                "prompt_sha256": _sha256(str(place[:4])),
                "temperature": temperature,
                "repeat": repeat,
            }
            yield _common(method) | shared | _figures(draw, method, ids[:TOKENS], repeat)


def write(folder: Path, count: int, runs: int = RUNS) -> list[Path]:
    """Folders of `count` records in all."""
    found = []
    for at in range(runs):
        place = folder / f"bulk-{at + 1}"
        place.mkdir(parents=True, exist_ok=True)
        share = count * (at + 1) // runs - count * at // runs
        with open(place / records.RECORDS, "w", encoding="utf-8") as file:
            for record in bulk(place.name, share):
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
        (place / "run.yaml").write_text(
            f"models: [{', '.join(MODELS)}]\ndatasets: [{', '.join(SETS)}]\n", encoding="utf-8"
        )
        found.append(place)
    return found


def _turns() -> Iterator[tuple[str, str, int, int]]:
    for model in MODELS:
        for name, (questions, turns) in SETS.items():
            for question in range(questions):
                for turn in range(1, turns + 1):
                    yield model, name, question, turn


def _common(method: Method) -> Record:
    stock = method.name == "transformers_generate"
    return {
        "schema": records.SCHEMA,
        "package_version": "0.1.0",
        "revision": _sha256("revision"),
        "dtype": "bfloat16",
        "device": "NVIDIA H200",
        "engine": records.STOCK_ENGINE if stock else "compile",
        "method": method.name,
        "params": method.params,
        "lossless": True,
        "checkpoint_sha256": _sha256(method.name) if method.nodes else None,
        "tree_sha256": None,
        "dataset_sha256": _sha256("set"),
        "history": None,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "max_new_tokens": TOKENS,
        "status": "ok",
        "error": None,
        "prompt_tokens": 60,
        "draft_prefill_s": None if stock else 0.0008,
        "draft_parameters": None if stock else 11951424 if method.nodes else 0,
        "peak_memory_bytes": 941694976,
        "startup_s": 6.385132134999992,
        "warnings": [],
    }


def _figures(draw: random.Random, method: Method, ids: list[int], repeat: int) -> Record:
    text = " ".join(WORDS[token % len(WORDS)] for token in ids)
    figures: Record = {
        "new_tokens": len(ids),
        "output_ids": ids,
        "text": text,
        "finish": "length" if len(ids) == TOKENS else "eos",
        "prefill_s": draw.gauss(0.0022, 0.0001),
        "accept_lengths": None,
        "phase_s": None,
        "drafted": None,
        "decode_s": 0.003 * (len(ids) - 1) * draw.gauss(1, 0.02),
    }
    if method.name == "transformers_generate":
        return figures
    lengths = _lengths(draw, len(ids) - 1, method.longest)
    times = [[round(900 * method.draft), round(draw.gauss(900, 9)), 60, 5] for _ in lengths]
    phases = [sum(column) / 1e6 for column in zip(*times, strict=True)]
    figures |= {
        "accept_lengths": lengths,
        "drafted": method.nodes * len(lengths),
        "phase_s": dict(zip(records.PHASES, phases, strict=True)),
        "decode_s": sum(phases),
    }
    if repeat:
        return figures
    counts = itertools.accumulate(lengths, initial=1)
    first, *ends = (len(text) * count // len(ids) for count in counts)
    depth = None if method.name == "medusa" else method.longest - 1
    steps = [
        {"drafted": method.nodes, "depth": depth, "end": end, "us": us}
        for end, us in zip(ends, times, strict=True)
    ]
    return figures | {"steps": steps, "prefill_end": first}


def _ids(draw: random.Random) -> list[int]:
    return [draw.randrange(49152) for _ in range(TOKENS)]


def _lengths(draw: random.Random, total: int, longest: int) -> list[int]:
    """Lengths of steps that emit `total` tokens."""
    found = []
    while total:
        found.append(min(draw.randint(1, longest), total))
        total -= found[-1]
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(arguments: Sequence[str]) -> None:
    folder, count = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 100_000
    print(*write(folder, count))


if __name__ == "__main__":
    main(sys.argv[1:])
