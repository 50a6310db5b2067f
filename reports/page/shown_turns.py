"""Turns as the page shows them: their answers, each in the pieces that its steps emitted."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from markupsafe import Markup

from bench.records.runs import PHASES
from reports.page.figures.style import PHASE_COLOURS
from reports.page.filters import FILTERED
from reports.page.model import TableRow, Tag
from reports.page.settings import setting
from reports.page.step_texts import StepText, direction, step_of, step_texts, visible
from reports.page.turns import Turns
from reports.read.repetition import REPEATING
from reports.read.words import counted

OVERHEAD = 76  # bytes of markup of a block, roughly
STRIP = 300  # steps shown of an answer whose steps have no known text
COMMAND = "python -m reports.view"
FASTEST = "fastest lossless"


@dataclass(frozen=True)
class ShownAnswer:
    """A record as it is shown.

    Attributes:
        record: as `Turns.records` has it.
        name: of the method, short.
        blocks: of its steps; None where it is not known where they end.
        slowest: decode seconds of the turn's slowest answer.
        expected: how many ids the reference's answer has.
        limit: characters shown; None for all.
    """

    record: TableRow
    name: str
    blocks: Sequence[StepText] | None
    tags: Sequence[Tag]
    slowest: float
    expected: int
    limit: int | None = None

    @cached_property
    def text(self) -> str:
        return str(self.record["text"])

    @property
    def place(self) -> int | None:
        return _place(self.record)

    @property
    def direction(self) -> str:
        return direction(self.text)

    @property
    def cut(self) -> bool:
        return self.limit is not None and len(self.text) > self.limit

    @property
    def facts(self) -> str:
        record = self.record
        parts = [f"{record['ratio']:.2f}×"] * (not math.isnan(record["ratio"]))
        tokens = counted(int(record["new_tokens"]), "token")
        if record["verify_steps"] > 0:
            each = record["tokens"] / record["verify_steps"]
            tokens += f" in {counted(int(record['verify_steps']), 'step')}, {each:.2f} a step"
        return " · ".join([*parts, tokens, spent(record["decode_s"])])

    @property
    def held(self) -> str:
        """How its ids differ from the reference's, where they are compared."""
        record, place = self.record, self.place
        if record["reference"] or record["temperature"] or not record["paired"]:
            return ""
        if place is None:
            return "same ids as the reference"
        if place >= self.expected:
            return f"the reference ends at token {place}, this goes on"
        if place >= record["new_tokens"]:
            return f"ends at token {place}, the reference goes on"
        return f"first differs at token {place}" + self._step(place)

    def _step(self, place: int) -> str:
        if self.record["stock"]:
            return ""
        step = step_of(self.record["accept_lengths"], place)
        return f" (step {step})" if step else " (prefill)"

    @property
    def note(self) -> str:
        """What the record does not say of its steps."""
        if self.record["stock"]:
            return "Timed as a whole: its steps are unknown."
        if self.blocks is not None:
            return ""
        return (
            "This record does not say where in the text its steps end: "
            "their numbers of tokens are shown in order, without the words."
        )

    @property
    def strip(self) -> list[int]:
        """Tokens of each step, where their words are not known and the numbers say anything."""
        if self.record["stock"] or self.record["reference"] or self.blocks is not None:
            return []
        return [int(length) for length in self.record["accept_lengths"]]

    @property
    def pieces(self) -> Iterator[tuple[StepText, Markup]]:
        """Blocks and their text, up to the limit."""
        limit = len(self.text) + 1 if self.limit is None else self.limit
        for block in self.blocks or ():
            if block.begin >= limit:
                return
            yield block, visible(self.text[block.begin : min(block.end, limit)])

    @property
    def plain(self) -> Markup:
        return visible(self.text[: self.limit])

    def weight(self, limit: int | None) -> float:
        """About how many bytes it is, cut at `limit`."""
        shown = self.text[:limit]
        dense = len(visible(shown[:2000]).encode()) / max(len(shown[:2000]), 1)
        found = self.blocks or []
        count = len(found) if limit is None else bisect_left(found, limit, key=lambda b: b.begin)
        return len(shown) * dense + (count + min(len(self.strip), STRIP) / 3) * OVERHEAD

    @property
    def bar(self) -> Markup:
        """Decode time by phase, on the scale of the slowest answer's."""
        record = self.record
        width = 100 * record["decode_s"] / self.slowest if self.slowest else 0.0
        said = f"decode {spent(record['decode_s'])}"
        loop = record["loop_s"]  # nan where phases are not seen, 0 of an answer of one token
        shares = {phase: record[f"{phase}_s"] / loop for phase in PHASES} if loop > 0 else {}
        rect = Markup('<rect x="{:.2f}%" width="{:.2f}%" height="100%" fill="{}"/>')
        parts, left = [], 0.0
        for phase, colour in PHASE_COLOURS.items() if shares else ():
            parts.append(rect.format(left, width * shares[phase], colour))
            left += width * shares[phase]
        if shares:
            said += ": " + ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
        else:
            parts.append(rect.format(0, width, "currentColor"))
        drawn = Markup('<svg class="time" role="img" aria-label="{0}"><title>{0}</title>{1}</svg>')
        return drawn.format(said, Markup("").join(parts))


def spent(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


# ---------------------------------------------------------------------------------- turns


@dataclass(frozen=True)
class ShownTurn:
    """A turn with its answers, the reference's first.

    Attributes:
        reason: why it was chosen.
        left_out: answers that are not among them.
        facts: settings that the page's filters go by.
    """

    reason: str
    answers: Sequence[ShownAnswer]
    left_out: int
    facts: Mapping[str, str]

    @property
    def record(self) -> TableRow:
        """The reference's."""
        return self.answers[0].record

    @property
    def title(self) -> str:
        category, turn = self.record["category"], self.record["turn"]
        name = f"{self.record['prompt_id']}, turn {turn:g}"
        return name if pd.isna(category) else f"{name}, {category}"

    @property
    def best(self) -> str:
        """What the fastest lossless method does here."""
        ratios = [a for a in self.answers if any(tag.text == FASTEST for tag in a.tags)]
        return (
            ""
            if not ratios or math.isnan(ratios[0].record["ratio"])
            else f"{ratios[0].record['ratio']:.2f}×"
        )

    @property
    def cut(self) -> int:
        return sum(answer.cut for answer in self.answers)

    @property
    def command(self) -> str:
        record = self.record
        return f"{COMMAND} results/{record['run']} {record['prompt_id']} --turn {record['turn']:g}"


def shown_turn(turns: Turns, at: int, reason: str = "", most: int | None = None) -> ShownTurn:
    """The turn at `at` with its answers, or the first `most` of them."""
    found = turns.answers(at)
    rows = found[:most].to_dict("records")
    slowest = max(row["decode_s"] for row in rows)
    expected = int(rows[0]["new_tokens"])
    answers = [
        ShownAnswer(
            row,
            turns.style[row["label"]].name,
            step_texts(row, _place(row)),
            _tags(row),
            slowest,
            expected,
        )
        for row in rows
    ]
    facts = {name: setting(name, rows[0][name]) for name in FILTERED if name != "label"}
    return ShownTurn(reason, answers, len(found) - len(rows), facts)


def _place(row: TableRow) -> int | None:
    return None if math.isnan(row["place"]) else int(row["place"])


def _tags(row: TableRow) -> list[Tag]:
    kinds = {
        "reference": Tag("reference"),
        "fastest": Tag(FASTEST, "good"),
        "lossy": Tag("lossy", "warn"),
        "stock": Tag("stock"),
    }
    loops = [Tag("repeats itself", "warn")] * (row["repetition"] > REPEATING)
    return [tag for name, tag in kinds.items() if row[name]] + loops
