"""The grid of a run, and the keys by which finished turns are recognised."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from bench.files import canonical_sha256
from bench.questions.history import Prompt
from bench.run.methods import Method

PACKAGE = "chimera-bench"


@dataclass(frozen=True)
class Cell:
    """Every resolved setting that can change a turn's ids or times, except the prompt.

    Fields are named as in records. `repeat` is None for a method that cannot run at all; `clock`
    is None there and in the stock row.
    """

    model: str
    revision: str | None
    dtype: str
    device: str
    engine: str
    method: str
    params: dict[str, Any]
    lossless: bool
    checkpoint_sha256: str | None
    tree_sha256: str | None
    dataset: str
    dataset_sha256: str
    temperature: float
    top_k: int
    top_p: float
    seed: int
    repeat: int | None
    clock: bool | None
    max_new_tokens: int
    code_sha256: str

    @property
    def id(self) -> str:
        return canonical_sha256(asdict(self))

    def key(self, prompt: Prompt | None) -> str:
        """The resume key of one turn, or of the whole cell where it cannot run (`prompt` None)."""
        turn = prompt and [prompt.prompt_id, prompt.turn, prompt.sha256, prompt.history]
        return canonical_sha256([asdict(self), turn, version(PACKAGE)])


@dataclass(frozen=True)
class GridPoint:
    """One repeat of one turn by one method at one temperature.

    Attributes:
        clock: whether the phase clock runs; None for the stock row, which has no phases.
    """

    prompt: Prompt
    repeat: int
    clock: bool | None
    temperature: float
    method: Method


def grid(
    prompts: Sequence[Prompt],
    repeats: int,
    temperatures: Sequence[float],
    methods: Sequence[Method],
    seed: int,
) -> Iterator[GridPoint]:
    """All turns of a run: repeats interleaved method by method within a turn, the methods in an
    order shuffled by `seed`, so that drift affects every method equally.

    The phase clock costs time, and some methods more than others: it runs in one more repeat, the
    last, which the stock row has not.
    """
    for prompt in prompts:
        for repeat in range(repeats + 1):
            clock = repeat == repeats
            for temperature in temperatures:
                key = [seed, prompt.dataset, prompt.prompt_id, prompt.turn, repeat, temperature]
                order = list(methods)
                random.Random(canonical_sha256(key)).shuffle(order)
                for method in order:
                    if method.decoder is not None:
                        yield GridPoint(prompt, repeat, clock, temperature, method)
                    elif not clock:
                        yield GridPoint(prompt, repeat, None, temperature, method)


def size(prompts: int, repeats: int, temperatures: int, methods: Sequence[Method]) -> int:
    """How many points `grid` has."""
    turns = sum(repeats + (method.decoder is not None) for method in methods)
    return prompts * temperatures * turns


def generator_seed(seed: int, prompt: Prompt, repeat: int) -> int:
    """Seed of one turn's sampling: the same for every method, different for every repeat."""
    key = [seed, prompt.dataset, prompt.prompt_id, prompt.turn, repeat]
    return int(canonical_sha256(key)[:12], 16)
