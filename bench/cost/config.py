"""Settings of a cost study."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cli import check_choices, device_option, dtype_option, flag, option
from bench.decoding.engines.registry import ENGINES, check_engines
from bench.errors import UsageError


@dataclass(frozen=True)
class CostConfig:
    """What `python -m bench.cost` is asked to measure; every field is a flag."""

    models: list[str] = option(
        ["smollm2-135m"], "target models: registered names, hub ids or paths", metavar="MODEL"
    )
    methods: list[str] = option(
        ["medusa", "chimera", "chimera_plus", "lookahead", "prompt_lookup"],
        "decoding methods whose steps are measured, with the reference's; drafts that have no "
        "weights for a model get random ones of the published shape",
        metavar="METHOD",
    )
    engine: list[str] = option(["eager"], "engines; several may be given", choices=ENGINES)
    widths: list[int] = option([1, 16, 64], "tokens of a forward", metavar="W")
    contexts: list[int] = option([512, 4096], "cached tokens before it", metavar="C")
    repeats: int = option(20, "timed forwards at each width and context, interleaved by width")
    turns: int = option(3, "timed turns of each method at each context, interleaved by method")
    max_new_tokens: int = option(32, "tokens of a turn, the first of them prefill's")
    seed: int = option(0, "seed of prompts, trees and orders")
    parallel: str = option(
        "none",
        "layers puts a model's layers over all cards, on engine eager",
        choices=("none", "layers"),
    )
    device: str = device_option()
    dtype: str = dtype_option()
    checkpoint: list[str] = option(
        [], "draft weights for a method: a path, a hub id or random", metavar="METHOD=WEIGHTS"
    )
    tree: str | None = option(None, "token tree: paper or a file; the weights' own if left out")
    out: str | None = option(
        None,
        "folder; default results/cost-<model>-<hash of settings>",
        metavar="DIR",
        local=True,
    )
    split: bool = option(
        False,
        "deal models and engines to the processes of a launch, a card each; without it the main "
        "process measures alone",
        local=True,
    )
    report: bool = option(True, "build index.html in the folder when done", local=True)

    def __post_init__(self) -> None:
        """UsageError for an invalid value."""
        least = {"repeats": 1, "turns": 1, "max_new_tokens": 2, "seed": 0}
        values = {name: [getattr(self, name)] for name in least}
        values |= {"widths": self.widths, "contexts": self.contexts}
        for name, given in values.items():
            bound = least.get(name, 1)
            if min(given, default=bound) < bound:
                raise UsageError(f"{flag(name)} must be at least {bound}, not {min(given)}")
        for name in ("models", "methods", "engine", "widths", "contexts"):
            given = getattr(self, name)
            if not given and name != "methods":
                raise UsageError(f"{flag(name)} needs at least one value")
            if len(set(given)) != len(given):
                raise UsageError(f"{flag(name)} names something twice")
        check_choices(self)
        check_engines(self.parallel, self.engine)
