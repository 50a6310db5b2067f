"""Decodes recorded prompts again: the run's methods on its target, in its precision or another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from bench.decoding.decoder import Decoder, TargetInfo
from bench.decoding.drafts.checkpoint import RANDOM
from bench.decoding.engines import trial as engines
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.errors import UsageError
from bench.records.runs import Record, label
from bench.run.methods import STOCK, Method
from bench.run.runner import Turn, run_stock, run_turn
from bench.targets.registry import Loaded

GREEDY = Sampling()
SHA256 = ("checkpoint_sha256", "tree_sha256")


class Redecoder:
    """Builds targets and decoders when they are first needed, and caches greedy answers.

    Args:
        loaded: the target in the run's precision.
        methods: of the run.
        on_engine: the target on an engine, or on eager where that cannot run here.
    """

    def __init__(
        self, loaded: Loaded, methods: Sequence[Method], on_engine: Callable[[str], TargetModel]
    ) -> None:
        self.loaded = loaded
        self._methods = {method.label: method for method in methods}
        self._on_engine = on_engine
        self._weights: dict[str, set[tuple[str | None, ...]]] = {}  # SHA256 of each row's records
        self._models: dict[torch.dtype, Any] = {}
        self._targets: dict[tuple[str, torch.dtype], TargetModel] = {}
        self._decoders: dict[tuple[str, str, torch.dtype], Decoder] = {}
        self._answers: dict[tuple[Any, ...], list[int]] = {}

    def expect(self, records: Iterable[Record]) -> None:
        """The records whose weights the methods must have."""
        for record in records:
            found = tuple(record[kind] for kind in SHA256)
            self._weights.setdefault(_name(record), set()).add(found)

    def check(self) -> None:
        """UsageError for weights that are missing here, before an hour of decoding."""
        info = TargetInfo(self.loaded.target.name)
        for name, known in self._weights.items():
            method = self._method(name)
            if method.decoder is None or method.settings.checkpoint == RANDOM:
                continue
            try:
                found = method.decoder.weights_sha256(info, method.settings)
            except ValueError as error:
                raise UsageError(f"{name}: {error}; give its weights by --checkpoint") from error
            if found is not None and found not in {checkpoint for checkpoint, *_ in known}:
                raise _other_weights(name)

    def model(self, dtype: torch.dtype) -> Any:
        """The run's own model, or a copy of its weights in `dtype`."""
        if dtype == self.loaded.model.dtype:
            return self.loaded.model
        if dtype not in self._models:
            self._models[dtype] = in_precision(self.loaded.model, dtype)
        return self._models[dtype]

    def target(self, engine: str, dtype: torch.dtype) -> TargetModel:
        """The run's own target, or one of a copy of its weights in `dtype`."""
        if dtype == self.loaded.model.dtype:
            return self._on_engine(engine)
        if (engine, dtype) not in self._targets:
            made, _ = engines.make(self.model(dtype), self.loaded.target.name, engine)
            self._targets[engine, dtype] = made
        return self._targets[engine, dtype]

    def turn(
        self,
        name: str,
        target: TargetModel,
        prompt: Sequence[int],
        budget: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        eos_ids: Collection[int] = (),
    ) -> Turn:
        """An answer of the row `name`. `seed` is that of `sampling`, for the stock row.

        UsageError where the method's weights are not those of the records.
        """
        if name == STOCK:
            return run_stock(target.model, prompt, sampling, seed, budget, eos_ids)
        return run_turn(self._decoder(name, target), prompt, sampling, budget, eos_ids)

    def answer(
        self, name: str, engine: str, dtype: torch.dtype, prompt: Sequence[int], budget: int
    ) -> list[int]:
        """The ids of the row's greedy answer, decoded once."""
        key = (name, engine, dtype, tuple(prompt), budget)
        if key not in self._answers:
            target = self.target(engine, dtype)
            turn = self.turn(name, target, prompt, budget, eos_ids=self.loaded.eos_ids)
            self._answers[key] = turn.output_ids
        return self._answers[key]

    def _decoder(self, name: str, target: TargetModel) -> Decoder:
        key = (name, target.engine, target.dtype)
        if key not in self._decoders:
            method = self._method(name)
            if method.decoder is None:
                raise ValueError(f"{name} is not a decoder")
            decoder = method.decoder(target, method.settings)
            found = tuple(getattr(decoder, kind) for kind in SHA256)
            if found not in self._weights.get(name, {found}):
                raise _other_weights(name)
            self._decoders[key] = decoder
        return self._decoders[key]

    def _method(self, name: str) -> Method:
        if name not in self._methods:
            raise UsageError(f"the records are of {name}, run.yaml is not; restore run.yaml")
        return self._methods[name]


def in_precision(model: Any, dtype: torch.dtype) -> Any:
    """A separate model with `model`'s weights in `dtype`."""
    made = type(model)(copy.deepcopy(model.config)).to(model.device, dtype)
    made.load_state_dict(model.state_dict())  # a copy of `model` would copy its hooks too
    return made.requires_grad_(False).eval()


def _name(record: Record) -> str:
    return label(record["method"], record["params"])


def _other_weights(name: str) -> UsageError:
    return UsageError(
        f"{name} has other weights or another tree here than in the records; give the run's by "
        "--checkpoint and --tree, or skip decoding with --reruns 0 --draws 0"
    )
