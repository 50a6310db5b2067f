"""The settings of a run.

Precedence: flag > file (`--config`) > preset > default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from bench import environment
from bench.cli import (
    chat_template_option,
    check_choices,
    device_option,
    did_you_mean,
    dtype_option,
    flag,
    option,
    read_file,
)
from bench.decoding.engines.registry import ENGINES, check_engines
from bench.errors import UsageError


@dataclass(frozen=True)
class RunConfig:
    """What `python -m bench.run` is asked to do; every field is a flag and a key of the file."""

    models: list[str] = option(
        ["smollm2-135m"], "target models: registered names, hub ids or paths", metavar="MODEL"
    )
    methods: list[str] = option(
        [
            "transformers_generate",
            "lookahead",
            "prompt_lookup",
            "medusa",
            "chimera",
            "chimera_plus",
        ],
        "decoding methods, with parameters as 'lookahead(n=5,w=7,g=7)'; the reference always runs",
        metavar="METHOD",
    )
    datasets: list[str] = option(
        ["mini"], "question sets: registered names or JSONL paths", metavar="SET"
    )
    limit: int | None = option(
        None, "questions of each set, spread over its categories; all by default"
    )
    turns: int | None = option(None, "first turns of each question; all by default")
    max_new_tokens: int = option(128, "token budget of an answer")
    temperature: list[float] = option([0.0], "0 is greedy; several may be given", metavar="T")
    top_k: int = option(0, "sample from the k most likely tokens; 0 is off")
    top_p: float = option(1.0, "sample from the nucleus of this mass; 1 is off")
    repeats: int = option(3, "timed runs of each turn, interleaved by method")
    seed: int = option(0, "seed of sampling and of the order of methods")
    engine: list[str] = option(["eager"], "engines; several may be given", choices=ENGINES)
    parallel: str = option(
        "none",
        "a model over several cards, on engine eager: layers puts its layers over all cards of one "
        "process; tp splits its matrices over the processes of a launch",
        choices=("none", "tp", "layers"),
    )
    device: str = device_option()
    dtype: str = dtype_option()
    checkpoint: list[str] = option(
        [], "draft weights for a method: a path, a hub id or random", metavar="METHOD=WEIGHTS"
    )
    tree: str | None = option(
        None,
        "token tree: paper or a file; by default the one with the weights; tuned uses what "
        "python -m bench.tune chose for every parameter that --methods does not set",
    )
    chat_template: str | None = chat_template_option()
    history: str | None = option(
        None,
        "use earlier turns' answers from another run's history.jsonl",
        metavar="FILE",
        local=True,
    )
    data_dir: str | None = option(
        None, "folder with <set>.jsonl files, instead of fetching them", metavar="DIR", local=True
    )
    out: str | None = option(
        None,
        "run folder; by default results/<model>-<hash of the settings>",
        metavar="DIR",
        local=True,
    )
    resume: bool = option(True, "continue the run in the folder", local=True)
    report: bool = option(
        True, "when done, print the overview and build index.html in the run folder", local=True
    )
    preset: str | None = option(None, "settings to start from", metavar="NAME")

    def __post_init__(self) -> None:
        """UsageError for a value that no run can have."""
        least = {"limit": 1, "turns": 1, "max_new_tokens": 1, "repeats": 1, "top_k": 0, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"{flag(name)} must be at least {bound}, not {value}")
        for value in self.temperature:
            if not math.isfinite(value) or value < 0:
                raise UsageError(f"--temperature must be a number of at least 0, not {value}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        for name in ("models", "methods", "datasets", "temperature", "engine"):
            values = getattr(self, name)
            if not values and name != "methods":
                raise UsageError(f"{flag(name)} needs at least one value")
            if len(set(values)) != len(values):
                raise UsageError(f"{flag(name)} names something twice")
        check_choices(self)
        check_engines(self.parallel, self.engine)


def presets() -> list[str]:
    """Names of the presets that ship."""
    folder = resources.files("bench.run.presets")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name[-5:] == ".yaml")


def resolve(
    flags: Mapping[str, Any], config_file: Path | None = None
) -> tuple[RunConfig, Mapping[str, Any]]:
    """The settings from flags, file and preset, and the file's provenance to check against."""
    from_file, provenance = ({}, {}) if config_file is None else read_file(config_file, RunConfig)
    given = {**from_file, **flags}
    from_preset: Mapping[str, Any] = {}
    if (preset := given.get("preset")) is not None:
        if preset not in presets():
            raise UsageError(f"unknown preset {preset!r}{did_you_mean(str(preset), presets())}")
        from_preset = _preset(preset, given)
    return replace(RunConfig(), **{**from_preset, **given}), provenance


def _preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's settings: those for every machine, and its own for the kind of device and the
    dtype of this run, where it has some."""
    folder = resources.files("bench.run.presets")
    with resources.as_file(folder / f"{name}.yaml") as path:
        common, _ = read_file(path, RunConfig)
    asked = replace(RunConfig(), **{**common, **given})
    device, dtype = environment.settled(asked.device, asked.dtype)
    own = folder / name / f"{device.partition(':')[0]}-{dtype}.yaml"
    if not own.is_file():
        return common
    with resources.as_file(own) as path:
        return common | read_file(path, RunConfig)[0]
