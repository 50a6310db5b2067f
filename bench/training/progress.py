"""Progress bars: on a terminal as tqdm draws them, elsewhere a line a minute."""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO

from tqdm import tqdm

MINUTE = 60.0
LINE = (
    "{desc}: {percentage:.0f}% of {total_fmt} {unit}, {elapsed} so far, {remaining} left, "
    "{rate_fmt}{postfix}"
)


class _Lines(io.TextIOBase):
    """What tqdm draws, as lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if line := text.strip():
            self._stream.write(line + "\n")
            self._stream.flush()
        return len(text)


def bar(total: int, done: int, desc: str, unit: str) -> tqdm[Any]:
    """A bar with the rate and the time left, on standard error; `done` of `total` are not new."""
    settings: dict[str, Any] = {}
    if not sys.stderr.isatty():
        settings = {
            "file": _Lines(sys.stderr),
            "mininterval": MINUTE,
            "maxinterval": MINUTE,
            "bar_format": LINE,
        }
    return tqdm(
        total=total, initial=done, desc=desc, unit=unit, unit_scale=True, smoothing=0.1, **settings
    )


def note(text: str) -> None:
    """A line on standard error that leaves bars as they are."""
    tqdm.write(text, file=sys.stderr)
