"""The text of an answer, step by step, made safe to show."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from reports.page.model import TableRow

NAMED = 24  # tokens up to which a class names the number, for style sheets

# What has no shape of its own, or would change that of the text around it: controls, marks of
# direction, invisible spaces and tags, halves of surrogate pairs, code points that mean nothing.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_PICTURES = {"\n": "<b>↵</b>\n", "\t": "<b>→</b>\t", "\x7f": "<b>␡</b>"}
_STRONG = {"L": "ltr", "R": "rtl", "AL": "rtl"}


@dataclass(frozen=True)
class StepText:
    """The characters [begin, end) of a text that one step emitted.

    Attributes:
        number: of the step; 0 is prefill.
        tokens: how many the characters are.
        us: microseconds, by phase; of prefill in one.
        differs: whether the first id that the reference has otherwise is in it.
    """

    begin: int
    end: int
    number: int
    tokens: int
    us: Sequence[int]
    drafted: int = 0
    depth: int | None = None
    differs: bool = False

    @property
    def name(self) -> str:
        """Its classes, which choose colour and number."""
        kind = f"a{min(self.tokens, NAMED)}" if self.number else "a0"
        return f"{kind} differs" if self.differs else kind

    @property
    def words(self) -> str:
        """The step in words; scripts read them too."""
        if not self.number:
            return f"prefill: 1 token, {self.us[0] / 1e3:.1f} ms"
        parts = [f"step {self.number}: {self.tokens} token{'s' * (self.tokens != 1)}"]
        parts.append(f"{self.drafted} node{'s' * (self.drafted != 1)}")
        if self.depth is not None:
            parts.append(f"depth {self.depth}")
        return ", ".join((*parts, " + ".join(map(str, self.us)) + " µs"))


def visible(text: str) -> Markup:
    """The text as HTML: what cannot be seen, or turns other text around, is named instead, and a
    mark without its letter stands on a circle."""
    alone = "\u25cc" if text and unicodedata.category(text[0]).startswith("M") else ""
    return Markup(alone + _HIDDEN.sub(_picture, str(escape(text))))


def _picture(found: re.Match[str]) -> str:
    char = found[0]
    if char in _PICTURES:
        return _PICTURES[char]
    if ord(char) < 0x20:
        return f"<b>{chr(0x2400 + ord(char))}</b>"
    return f"<b>U+{ord(char):04X}</b>"


def direction(text: str) -> str:
    """ "rtl" where the first letter of the text is of a script that runs so, else "ltr"."""
    kinds = map(unicodedata.bidirectional, text)
    return next((_STRONG[kind] for kind in kinds if kind in _STRONG), "ltr")


def step_texts(record: TableRow, position: int | None = None) -> list[StepText] | None:
    """Those of prefill and of every step; None where the record does not say where they end.

    position: of the first id that the reference has otherwise.
    """
    steps, first, lengths = record["steps"], record["prefill_end"], record["accept_lengths"]
    if not _known(steps) or not _known(lengths) or not _known(first):
        return None
    steps, lengths = list(steps), list(lengths)
    if len(steps) != len(lengths):
        return None
    place = None if position is None else step_of(lengths, position)
    prefill = {"end": first, "us": [round(1e6 * record["prefill_s"])], "drafted": 0, "depth": None}
    found, end, last = [], 0, len(record["text"])
    for number, (step, tokens) in enumerate(zip([prefill, *steps], [1, *lengths], strict=True)):
        begin, end = end, max(end, min(int(step["end"]), last))
        facts = step["us"], step["drafted"], step["depth"], number == place
        found.append(StepText(begin, end, number, tokens, *facts))
    return found


def step_of(lengths: Sequence[int], position: int) -> int:
    """The step that emitted the id at `position`, from 1; 0 is prefill, one more than there are
    steps the end of the answer."""
    return int(np.searchsorted(1 + np.cumsum([0, *lengths]), position, side="right"))


def difference(ids: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first position at which ids are not those expected, where one ends too; None if equal."""
    a, b = np.asarray(ids), np.asarray(expected)
    shared = min(len(a), len(b))
    unequal = np.flatnonzero(a[:shared] != b[:shared])
    if len(unequal):
        return int(unequal[0])
    return None if len(a) == len(b) else shared


def _known(value: Any) -> bool:
    """Whether a record's value is none of the ways in which a table writes null."""
    return value is not None and not (isinstance(value, float) and np.isnan(value))
