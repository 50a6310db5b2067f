"""Methods made ready to run on one engine: loaded, or with the reason why they cannot run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.decoding.decoder import Decoder, TargetInfo
from bench.decoding.sampling import Sampling
from bench.errors import one_line
from bench.records.runs import REFERENCE, STOCK_ENGINE
from bench.run.engine_targets import EngineTarget
from bench.run.methods import Method
from bench.run.runner import Turn, run_stock, run_turn

WARM_UP_TOKENS = 24  # enough steps to run, capture and replay


@dataclass
class PreparedMethod:
    """A method on one engine.

    Attributes:
        engine: the one it runs on.
        model: the transformers model; the stock row generates with it.
        decoder: None for the stock row and for a method that cannot run.
        failure: (status, reason) where it cannot run.
        startup_s: loading, compiling, capturing and warming up; the reference's includes making
            the engine.
        warnings: repeated in each of its records.
    """

    method: Method
    engine: str
    model: Any
    decoder: Decoder | None = None
    failure: tuple[str, str] | None = None
    startup_s: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def turn(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        seed: int,
        max_new_tokens: int,
        eos_ids: frozenset[int],
        clocked: bool,
    ) -> Turn:
        """One timed answer, with the phase clock where it is `clocked`; the stock row has none.
        `seed` is that of `sampling`, for the stock row."""
        if self.decoder is None:
            return run_stock(self.model, prompt_ids, sampling, seed, max_new_tokens, eos_ids)
        return run_turn(self.decoder, prompt_ids, sampling, max_new_tokens, eos_ids, clocked)

    def warm_up(self, prompt_ids: Sequence[int]) -> None:
        """Runs kernels, allocator and lazy initialisation once; counts as start-up only."""
        started = time.perf_counter()
        try:
            self.turn(prompt_ids, Sampling(), 0, WARM_UP_TOKENS, frozenset(), clocked=True)
        except Exception:  # the timed turns will fail in the same way and record the error
            return
        finally:
            self.startup_s += time.perf_counter() - started


def prepare(method: Method, made: EngineTarget, info: TargetInfo) -> PreparedMethod:
    """The method with its decoder loaded on the target, which `info` describes."""
    target = made.target
    if method.decoder is None:
        return PreparedMethod(method, STOCK_ENGINE, target.model)
    warnings = [made.warning] if made.warning else []
    prepared = PreparedMethod(method, target.engine, target.model, warnings=warnings)
    reason = method.decoder.unavailable(info, method.settings)
    if reason is not None:
        prepared.failure = ("skipped", reason)
        return prepared
    started = time.perf_counter()
    try:
        prepared.decoder = method.decoder(target, method.settings)
    except Exception as error:
        prepared.failure = ("error", one_line(error))
    prepared.startup_s = time.perf_counter() - started
    if method.label == REFERENCE:
        prepared.startup_s += made.made_s
    return prepared
