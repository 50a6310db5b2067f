"""One loaded model on each engine that a run or an audit asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.decoding.engines import trial as engines
from bench.decoding.target import TargetModel


class EngineTarget(NamedTuple):
    """A target on an engine.

    Attributes:
        target: on the engine asked for, or on a simpler one where that cannot run here.
        warning: why it is not on the engine asked for; None where it is.
        made_s: seconds to make it, the engine's trial included.
    """

    target: TargetModel
    warning: str | None
    made_s: float


class EngineTargets:
    """Makes the targets when they are first asked for; `warn` is told of each fallback once."""

    def __init__(self, model: Any, name: str, warn: Callable[[str], None]) -> None:
        self._model = model
        self._name = name
        self._warn = warn
        self._made: dict[str, EngineTarget] = {}

    def get(self, engine: str) -> EngineTarget:
        if engine not in self._made:
            started = time.perf_counter()
            target, warning = engines.make(self._model, self._name, engine)
            self._made[engine] = EngineTarget(target, warning, time.perf_counter() - started)
            if warning is not None:
                self._warn(f"{self._name}: {warning}; {target.engine} instead")
        return self._made[engine]

    def target(self, engine: str) -> TargetModel:
        return self.get(engine).target
