"""Settings of a tuning, and how much it measures."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cli import chat_template_option, check_choices, device_option, dtype_option, option
from bench.decoding.engines.registry import EAGER, ENGINES
from bench.targets import registry as targets

QUESTIONS = "tuning"  # the question set
BEHIND = 0.25  # a race drops what is slower than the leader by this share / questions asked


@dataclass(frozen=True)
class Effort:
    """How much each setting is measured.

    Attributes:
        search, final: questions of the two stages.
        search_tokens, final_tokens: most new tokens of an answer.
        warm_up_tokens: the same of a new decoder's first answer, which no figure includes.
        finalists: settings of a method that reach the final.
    """

    search: int
    search_tokens: int
    final: int
    final_tokens: int
    warm_up_tokens: int
    finalists: int


SLOW = Effort(2, 32, 6, 40, warm_up_tokens=4, finalists=2)
FAST = Effort(4, 96, 8, 128, warm_up_tokens=48, finalists=3)
# Steps take about 50 ms on eager and 2 ms on the others.
EFFORT = {engine: SLOW if engine == EAGER else FAST for engine in ENGINES}


@dataclass(frozen=True)
class TuneConfig:
    """What `python -m bench.tune` is asked to do; every field is a flag."""

    model: str = option(targets.DEFAULT, "target model: a registered name, a hub id or a path")
    methods: list[str] = option(
        [], "methods to tune; every lossless one that can be tuned if left out", metavar="METHOD"
    )
    engine: str = option("eager", "engine to tune for", choices=ENGINES)
    device: str = device_option()
    dtype: str = dtype_option()
    checkpoint: list[str] = option(
        [], "draft weights for a method: a path or a hub id", metavar="METHOD=WEIGHTS"
    )
    chat_template: str | None = chat_template_option()
    split: bool = option(
        False,
        "deal the methods to the processes of a launch, a card each; without it the main process "
        "measures alone",
        local=True,
    )
    out: str | None = option(
        None, "folder for the file; the user's cache if left out", metavar="DIR", local=True
    )

    def __post_init__(self) -> None:
        """UsageError for an invalid value."""
        check_choices(self)
