"""How far a command is, on standard error: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

MANY = 100_000  # steps, from which on a bar counts in thousands
INTERVAL = 60.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts steps.

    A line is written with the first step that ends a minute after the last line. No thread writes
    it: none may run beside the clock of a measurement.

    Args:
        title: what is being worked on.
        total: steps; None where nobody knows. With 0, nothing is shown.
        unit: the name of one step.
        shown: False shows nothing, for all processes but one.

    Attributes:
        done: steps so far.
    """

    def __init__(self, title: str, total: int | None, unit: str, shown: bool = True) -> None:
        self._title, self._total, self._unit = title, total, unit
        self.done = self._skipped = 0
        shown = shown and total != 0
        terminal = sys.stderr.isatty()
        self._lines = shown and not terminal
        bar = shown and terminal
        many = total is not None and total > MANY
        self._bar: tqdm[Any] = tqdm(
            total=total, desc=title, unit=unit, unit_scale=many, disable=not bar
        )
        self._beside = ""
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def title(self, text: str) -> None:
        """Renames what is being worked on."""
        self._title = text
        self._bar.set_description(text)

    def skip(self, steps: int = 1) -> None:
        """Counts steps that an earlier session did, which say nothing of the time left."""
        self.done += steps
        self._skipped += steps
        if not self._bar.disable:  # a bar that is not has no count
            self._bar.initial += steps
            self._bar.update(steps)

    def back_to(self, done: int) -> None:
        """Steps after `done` are lost and are done again."""
        lost = self.done - done
        self.done = done
        self._bar.update(-lost)

    def beside(self, text: str) -> None:
        """What stands beside the count from now on."""
        self._beside = f", {text}"
        self._bar.set_postfix_str(text, refresh=False)

    def update(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self.done += steps
        self._bar.update(steps)
        now = time.monotonic()
        if self._lines and now - self._told >= INTERVAL:
            self._told = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        if self._total is None:
            return f"{self._title}: {counted(self.done, self._unit)}, {duration(seconds)} so far"
        line = f"{self._title}: {self.done:,} of {counted(self._total, self._unit)}"
        rate = (self.done - self._skipped) / seconds
        if self._total > MANY:
            line += f", {rate:,.0f} {self._unit}s/s"
        left = (self._total - self.done) / rate
        return f"{line}{self._beside}, about {duration(left)} left"


def note(text: str) -> None:
    """A line on standard error, above the bars."""
    tqdm.write(text, file=sys.stderr)


def counted(count: int, noun: str) -> str:
    """1 turn, 1,200 turns."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 5 min."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
