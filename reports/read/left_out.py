"""Lines of a file that are not used, and notices that say so."""

from __future__ import annotations

from collections import defaultdict

from reports.read.safe_text import inert
from reports.read.words import counted, stretches

WORDS = 200  # characters of an example


class LeftOut:
    """Lines of one file that were not used, by reason."""

    def __init__(self, run: str, file: str) -> None:
        self._where = f"{run}: {{}} of {file}"
        self._lines: dict[str, list[int]] = defaultdict(list)
        self._examples: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, number: int, detail: str = "") -> None:
        self._lines[reason].append(number)
        self._examples.setdefault(reason, (number, shown(detail)))

    def join(self, other: LeftOut) -> None:
        """Adds the lines that another reader of the same file left out."""
        for reason, numbers in other._lines.items():
            self._lines[reason] += numbers
            both = [known[reason] for known in (self._examples, other._examples) if reason in known]
            self._examples[reason] = min(both)

    def notices(self) -> list[str]:
        """One line for each reason: how many lines, which, and what the first one says."""
        found = []
        for reason in sorted(self._lines):
            numbers = sorted(self._lines[reason])
            one = len(numbers) == 1
            count = self._where.format(counted(len(numbers), "line"))
            at, detail = self._examples[reason]
            which = f"line {at}" if one else f"lines {stretches(numbers)}"
            example = "" if not detail else f": {detail}" if one else f"; line {at}: {detail}"
            found.append(f"{count} left out, {reason} ({which}{example})")
        return found


def shown(text: str) -> str:
    """A text that may be hostile, in one short line of plain characters."""
    plain = inert(text)
    return plain if len(plain) <= WORDS else plain[:WORDS] + "…"
