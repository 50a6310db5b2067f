"""The phase clock: where the time of a decode loop goes.

Marks form one sequence: each ends the interval before it and starts the next, so two adjacent
phases share an event and the time between phases is itself measured, as `other`. On a GPU the
marks are CUDA events that are read after the loop; nothing synchronises inside it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Literal

import torch

Phase = Literal["draft", "verify", "accept", "other"]
PHASES: tuple[Phase, ...] = ("draft", "verify", "accept", "other")


class _Span:
    """Context manager of one phase; made once, entered once a step."""

    __slots__ = ("_mark", "_phase")

    def __init__(self, mark: Callable[[Phase], None], phase: Phase) -> None:
        self._mark = mark
        self._phase = phase

    def __enter__(self) -> None:
        self._mark(self._phase)

    def __exit__(self, *exc: object) -> None:
        self._mark("other")


class PhaseClock:
    """Seconds spent in each phase between `start` and `stop`.

    Attributes:
        quiet: marks nothing and reports zeros, to measure what the marks themselves cost.
    """

    def __init__(self, device: torch.device) -> None:
        self.quiet = False
        self._cuda = device.type == "cuda"
        self._spans = {phase: _Span(self._mark, phase) for phase in PHASES}
        self._phases: list[Phase] = []
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []  # kept from run to run
        self._ahead: int | None = None  # the first mark of work that may never be used

    def phase(self, phase: Phase) -> _Span:
        """`with clock.phase("draft"): ...`; phases do not nest."""
        return self._spans[phase]

    def ahead(self) -> None:
        """What follows is for a step that may never come: it counts once `verify` is entered."""
        self._ahead = len(self._phases)
        self._mark("other")

    def start(self) -> None:
        """Forget what was measured and start in `other`."""
        self._ahead = None
        self._phases.clear()
        self._times.clear()
        self._mark("other")

    def stop(self) -> dict[Phase, float]:
        """End the last interval and return seconds by phase; waits for the GPU."""
        self._mark("other")
        end = len(self._phases) if self._ahead is None else self._ahead + 1
        if self._cuda:
            torch.cuda.synchronize()
            spans = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(self._events[:end])]
        else:
            spans = [b - a for a, b in itertools.pairwise(self._times[:end])]
        total: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        for phase, seconds in zip(self._phases, spans, strict=False):
            total[phase] += seconds
        return total

    def _mark(self, phase: Phase) -> None:
        if self.quiet:
            return
        if phase == "verify":
            self._ahead = None
        if self._cuda:
            if len(self._events) == len(self._phases):
                self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self._events[len(self._phases)].record()
        else:
            self._times.append(time.perf_counter())
        self._phases.append(phase)
