"""The settings of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.audit.sampling import LEAST
from bench.cli import option
from bench.errors import UsageError
from bench.run.config import RunConfig


@dataclass(frozen=True)
class Depth:
    """How far an audit goes beyond comparing what was recorded; at a run's end, no further.

    Attributes:
        answers: prompts of each half-precision row whose answers get a float32 forward; None is
            all. With 0, differences in half precision stay unexplained.
        reruns: diverging prompts of each half-precision row to decode again in float32.
        draws: tokens to draw with each sampler.
        seed: of the draws.
    """

    answers: int | None = 0
    reruns: int = 0
    draws: int = 0
    seed: int = 0


SHALLOW = Depth()


@dataclass(frozen=True)
class AuditConfig:
    """What `python -m bench.audit` is asked to do; every field is a flag. Those that a run has too
    replace the settings in run.yaml, for paths and devices that differ on this machine."""

    answers: int | None = option(
        None,
        "prompts of each half-precision row whose answers are compared with the float32 argmax, "
        "one forward an answer; all by default, 0 is off",
    )
    reruns: int = option(
        8, "diverging prompts of each half-precision row to decode again in float32"
    )
    draws: int = option(2048, "tokens to draw with each sampler; 0 is off")
    seed: int = option(0, "seed of the draws")
    device: str | None = option(None, "instead of the run's")
    models: list[str] = option(
        [], "paths of the run's models: run.yaml keeps no folder", metavar="MODEL"
    )
    checkpoint: list[str] = option(
        [], "paths of the run's draft weights, likewise", metavar="METHOD=WEIGHTS"
    )
    tree: str | None = option(None, "the run's tree, likewise")
    data_dir: str | None = option(None, "folder with the question sets' files", metavar="DIR")

    def __post_init__(self) -> None:
        """UsageError for a value that no audit can have."""
        if min(self.reruns, self.seed, self.answers or 0) < 0:
            raise UsageError("--answers, --reruns and --seed must be at least 0")
        if self.draws != 0 and self.draws < LEAST:
            raise UsageError(f"--draws must be 0 (off) or at least {LEAST}")

    @property
    def depth(self) -> Depth:
        return Depth(self.answers, self.reruns, self.draws, self.seed)

    def run_config(self, found: Mapping[str, Any]) -> RunConfig:
        """The run's settings `found` in run.yaml, with those given here in their place."""
        config = replace(RunConfig(), **found)
        for name in ("device", "models", "checkpoint", "tree", "data_dir"):
            value = getattr(self, name)
            if value:
                config = replace(config, **{name: value})
        return config
