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


def _zeros() -> dict[Phase, float]:
    return dict.fromkeys(PHASES, 0.0)


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
        self._between = False  # after `step`, before the next mark
        self._ends: list[tuple[int, int | None]] = []  # of each step: its last mark, `_ahead`
        self._seconds: list[float] = []  # between marks, once stopped

    def phase(self, phase: Phase) -> _Span:
        """`with clock.phase("draft"): ...`; phases do not nest."""
        return self._spans[phase]

    def ahead(self) -> None:
        """What follows, up to the host's read, is for a step that may never come: it counts once
        something is marked after `step`."""
        self._resume()
        self._ahead = len(self._phases)
        self._mark("other")

    def step(self) -> None:
        """A step has been taken: it ended with the phase that ended last. Marks nothing."""
        self._ends.append((len(self._phases) - 1, self._ahead))
        self._between = True

    def start(self) -> None:
        """Forget what was measured and start in `other`."""
        self._ahead, self._between = None, False
        self._ends.clear()
        self._phases.clear()
        self._times.clear()
        self._mark("other")

    def stop(self) -> dict[Phase, float]:
        """End the last interval and return seconds by phase; waits for the GPU."""
        self._between = False  # no further step comes
        self._mark("other")
        end = len(self._phases) if self._ahead is None else self._ahead + 1
        if self._cuda:
            torch.cuda.synchronize()
            marks = itertools.pairwise(self._events[:end])
            self._seconds = [a.elapsed_time(b) / 1e3 for a, b in marks]
        else:
            self._seconds = [b - a for a, b in itertools.pairwise(self._times[:end])]
        total = _zeros()
        for phase, seconds in zip(self._phases, self._seconds, strict=False):
            total[phase] += seconds
        return total

    def steps(self) -> list[dict[Phase, float]]:
        """What `stop` returned, by the steps between `start` and it, read from the same marks.

        A step lies between the end of one accept phase and the end of the next. Work that was
        launched ahead is of the step that it is for; what follows the last step is a part of it.
        """
        total = [_zeros() for _ in self._ends]
        if not total:
            return []
        last, begin = len(total) - 1, 0
        for step, (end, ahead) in enumerate(self._ends):
            for mark in range(begin, len(self._seconds) if step == last else end):
                phase = self._phases[mark]
                early = ahead is not None and mark >= ahead and phase != "accept"
                total[min(step + early, last)][phase] += self._seconds[mark]
            begin = max(end, 0)
        return total

    def _resume(self) -> None:
        """The first mark after a step: what was launched ahead is used."""
        if self._between:
            self._ahead, self._between = None, False

    def _mark(self, phase: Phase) -> None:
        if self.quiet:
            return
        self._resume()
        if self._cuda:
            if len(self._events) == len(self._phases):
                self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self._events[len(self._phases)].record()
        else:
            self._times.append(time.perf_counter())
        self._phases.append(phase)
