"""A run as the preset `quick` makes it: eight questions, six methods, two repeats and one more with
the phase clock, an audit, an environment and settings."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import yaml

from bench.records import runs as records
from tests.reports.fabricate import Record, audit, record, stock, write_run

ASKED = (
    "transformers_generate",
    "lookahead(n=4,w=2,g=3)",
    "prompt_lookup(n=3,k=4)",
    "medusa(nodes=7)",
    "chimera(nodes=7,depth=4,vocab=8192)",
    "chimera_plus(nodes=15,depth=5,vocab=8192)",
)
TREES = {"dynamic": False, "beam": 8}  # parameters that the preset leaves alone
METHODS: tuple[tuple[str, Record, int], ...] = (  # name, parameters, most tokens of a step
    (records.REFERENCE, {}, 1),
    ("lookahead", {"n": 4, "w": 2, "g": 3, "prompt": True}, 2),
    ("prompt_lookup", {"n": 3, "k": 4}, 2),
    ("medusa", {"nodes": 7}, 3),
    ("chimera", {"nodes": 7, "depth": 4, **TREES, "vocab": 8192}, 4),
    ("chimera_plus", {"nodes": 15, "depth": 5, **TREES, "vocab": 8192}, 5),
)
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "essay")
WORDS = ("draft", "token", "tree", "head", "model", "step", "verify", "answer", "and", "the")
TOKENS = 48
SHARED: Record = {
    "schema": records.SCHEMA,
    "model": "smollm2-135m",
    "dtype": "bfloat16",
    "device": "Intel(R) Xeon(R) Processor",
    "max_new_tokens": TOKENS,
    "top_k": 0,
    "top_p": 1.0,
    "run": "quick",
}


def smoke_run(folder: Path) -> Path:
    """The run folder, audited."""
    settings: dict[str, Any] = {
        "models": ["smollm2-135m"],
        "methods": list(ASKED),
        "datasets": ["mini"],
        "limit": 8,
        "turns": 1,
        "max_new_tokens": TOKENS,
        "temperature": [0.0],
        "top_k": 0,
        "top_p": 1.0,
        "repeats": 2,
        "seed": 0,
        "engine": ["eager"],
        "device": "cpu",
        "dtype": "auto",
        "checkpoint": [],
        "tree": None,
        "chat_template": None,
        "preset": "quick",
        "provenance": {
            "package_version": "0.2.0",
            "code": dict.fromkeys(("baselines", "bench", "chimera"), "ab" * 32),
            "models": ["smollm2-135m"],
            "methods": [
                *(records.label(name, params) for name, params, _ in METHODS[:1]),
                "transformers_generate",
                *(records.label(name, params) for name, params, _ in METHODS[1:]),
            ],
            "datasets": {"mini": "cd" * 32},
            "prompts": {"mini": {"questions": 8, "turns": 8}},
            "history_sha256": None,
        },
    }
    packages = ("chimera-bench", "torch", "transformers", "datasets", "accelerate", "tokenizers")
    environment = {
        "git": {"commit": "ef" * 20, "dirty": False},
        "python": "3.12.3",
        "platform": "Linux-6.18-x86_64-with-glibc2.39",
        "packages": dict.fromkeys((*packages, "numpy", "pandas", "matplotlib", "jinja2"), "5.17.0"),
        "cpu": {"model": SHARED["device"], "physical_cores": 2, "torch_threads": 2},
        "memory_bytes": 8_000_000_000,
        "device": SHARED["device"],
        "float32_matmul_precision": "highest",
        "datasets": {"mini": "cd" * 32},
        "dtype": "torch.bfloat16",
        "code": settings["provenance"]["code"],
    }
    write_run(
        folder,
        _lines(),
        run_yaml=yaml.safe_dump(settings, sort_keys=False),
        environment_json=json.dumps(environment),
    )
    audit(folder, [_audited(name, params) for name, params, _ in METHODS[1:]])
    return folder


def _lines() -> list[Record]:
    draw = random.Random(0)
    texts = [" ".join(draw.choice(WORDS) for _ in range(TOKENS)) for _ in CATEGORIES]
    found = []
    for question, repeat in itertools.product(range(8), range(3)):
        shared = {
            **SHARED,
            "prompt_id": f"mini-{question + 1}",
            "category": CATEGORIES[question],
            "prompt_sha256": f"{question:02x}",
            "repeat": repeat,
            "text": texts[question],
            "output_ids": [WORDS.index(word) for word in texts[question].split()],
            "prefill_s": 0.05,
        }
        found += [
            record(
                name, params=params, **shared, **_figures(draw, most, repeat == 2, texts[question])
            )
            for name, params, most in METHODS
        ]
        if repeat < 2:
            whole = {"new_tokens": TOKENS, "decode_s": draw.uniform(2.0, 2.2), "clock": None}
            found.append(stock(**{**shared, **whole}))
    return found


def _figures(draw: random.Random, most: int, clocked: bool, text: str) -> dict[str, Any]:
    lengths: list[int] = []
    while sum(lengths) < TOKENS - 1:
        lengths.append(min(TOKENS - 1 - sum(lengths), draw.randint(1, most)))
    shares = (0.06 * (most - 1), 0.7, 0.03, 0.02)
    times = [[round(40_000 * draw.uniform(0.9, 1.1) * s) for s in shares] for _ in lengths]
    sums = [sum(us) / 1e6 for us in zip(*times, strict=True)]
    ends = [len(" ".join(text.split()[:n])) for n in itertools.accumulate(lengths, initial=1)]
    steps = [
        {"drafted": 2 * most, "depth": most, "end": end, "us": us}
        for end, us in zip(ends[1:], times, strict=True)
    ]
    seen = {
        "phase_s": dict(zip(records.PHASES, sums, strict=True)),
        "steps": steps,
        "prefill_end": ends[0],
    }
    return {
        "accept_lengths": lengths,
        "decode_s": sum(sums),
        "drafted": 2 * most * len(lengths),
        "draft_parameters": 1_000_000 * (most - 1),
        "clock": clocked,
        **(seen if clocked else {"phase_s": None}),
    }


def _audited(name: str, params: Record) -> Record:
    return {
        "model": "smollm2-135m",
        "engine": "eager",
        "dtype": "bfloat16",
        "dataset": "mini",
        "label": records.label(name, params),
        "temperature": 0.0,
        "compared": 24,
        "equal": 18,
        "ties": 6,
        "defects": 0,
        "examples": [],
        "devices": [SHARED["device"]],
        "argmax": {
            "share": 0.012,
            "reference_share": 0.011,
            "low": 0.004,
            "high": 0.02,
            "passed": True,
        },
        "reruns": {
            "rerun": 3,
            "prompts": 3,
            "equal": 3,
            "defects": 0,
            "failed": 0,
            "skipped": 0,
            "engine": "eager",
            "device": SHARED["device"],
        },
    }
