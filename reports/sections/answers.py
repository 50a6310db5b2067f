"""Answers, step by step: turns of the page as HTML, each answer as the blocks of its steps."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import pandas as pd
from markupsafe import Markup

from bench.records.runs import PHASES
from reports.measures import Definitions
from reports.page import rendering
from reports.page.figures.style import PHASE_COLOURS
from reports.page.filters import FILTERED
from reports.page.model import Page, Section, TableRow, Tag
from reports.page.settings import ALWAYS, IF_AMBIGUOUS, IF_SEVERAL, TITLES, setting
from reports.page.step_texts import NAMED, Block, blocks, direction, step_of, visible
from reports.page.turns import SEED, Turns
from reports.read.repetition import REPEATING
from reports.read.words import counted

PROMPTS = 40
ANSWERS = 6  # of a turn: the reference, the fastest lossless method, others by speedup
BUDGET = 2_000_000  # bytes of all answers, about
LIMITS = (20_000, 10_000, 6_000, 4_000, 3_000, 2_000, 1_500, 1_000, 700, 500, 350, 250, 150, 80)
OVERHEAD = 76  # bytes of a block beside its text, about
STRIP = 300  # steps shown of an answer whose text they are not known of
COMMAND = "python -m reports.view"

ID, TITLE = "answers", "Answers, step by step"
DEFINITIONS: Definitions = (
    (
        "Block",
        "what one verify step emitted: accepted drafted tokens and one token of the target's own. "
        "Its colour and its number say how many tokens these are. The framed block at the start "
        "is prefill's token. A character whose bytes two steps emitted is in the second's block; "
        "a dot stands for a block without text of its own, such as an end mark.",
    ),
    ("Nodes", "drafted for the step, the root not counted."),
    ("Depth", "levels drafted below the tree's root."),
    (
        "Times",
        "of the step, from the end of the accept phase before it to the end of its own, in "
        "microseconds: draft + verify + accept + other.",
    ),
    (
        "First difference",
        "the first position at which token ids are not the reference's, 0 being prefill's token. "
        "What follows it answers another text.",
    ),
    (
        "Marks in the text",
        "controls, invisible characters and marks of direction are named in small frames, as ↵ "
        "at the end of a line; ◌ carries a mark whose letter is in the block before. Each block "
        "keeps its direction to itself.",
    ),
)


# ---------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answer:
    """A record as it is shown.

    Attributes:
        record: as `Turns.records` has it.
        name: of the method, short.
        blocks: of its steps; None where it is not known where they end.
        slowest: decode seconds of the slowest answer beside it.
        expected: how many ids the reference's answer has.
        limit: characters shown; None for all.
    """

    record: TableRow
    name: str
    blocks: Sequence[Block] | None
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
        """How its ids stand to the reference's, where they are held against it."""
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
        """What is not known of its steps."""
        if self.record["stock"]:
            return "Run whole: its steps are not seen."
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
    def pieces(self) -> Iterator[tuple[Block, Markup]]:
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
        """Decode time beside the slowest answer's, by phase."""
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
class Shown:
    """A turn with its answers, the reference's first.

    Attributes:
        reason: why it was chosen.
        left_out: answers that are not among them.
        facts: settings that the page's filters go by.
    """

    reason: str
    answers: Sequence[Answer]
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


FASTEST = "fastest lossless"


def turn(turns: Turns, at: int, reason: str = "", most: int | None = None) -> Shown:
    """The turn at `at` with its answers, or the first `most` of them."""
    found = turns.answers(at)
    rows = found[:most].to_dict("records")
    slowest = max(row["decode_s"] for row in rows)
    expected = int(rows[0]["new_tokens"])
    answers = [
        Answer(
            row,
            turns.names[row["label"]],
            blocks(row, _place(row)),
            _tags(row),
            slowest,
            expected,
        )
        for row in rows
    ]
    facts = {name: setting(name, rows[0][name]) for name in FILTERED if name != "label"}
    return Shown(reason, answers, len(found) - len(rows), facts)


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


def fitted(shown: Sequence[Shown]) -> list[Shown]:
    """With answers cut, all at the same length, where they would be more than BUDGET."""
    answers = [answer for one in shown for answer in one.answers]
    fits = (n for n in (None, *LIMITS) if sum(a.weight(n) for a in answers) <= BUDGET)
    limit = next(fits, LIMITS[-1])
    return [
        replace(one, answers=[replace(answer, limit=limit) for answer in one.answers])
        for one in shown
    ]


# ---------------------------------------------------------------------------------- the section


def section(page: Page) -> Section:
    """At most PROMPTS turns, chosen by the rule that the lead states."""
    turns = Turns(page)
    every = [(at, "") for at in range(len(turns))]
    chosen = every if len(turns) <= PROMPTS else turns.choose(PROMPTS)
    shown = [turn(turns, at, reason, ANSWERS) for at, reason in chosen]
    if not shown:
        return Section(ID, TITLE, "", empty="No reference answered anything.")
    shown = fitted(shown)
    return made(page, shown, _lead(shown, len(turns)))


def made(page: Page, shown: Sequence[Shown], lead: str) -> Section:
    """The section of these turns."""
    template = rendering.environment().get_template("answers.html.j2")
    body = template.render(
        panels=_panels(page, shown), phases=PHASE_COLOURS, strip=STRIP, named=NAMED
    )
    records = sum(len(one.answers) for one in shown)
    return Section(ID, TITLE, lead, definitions=DEFINITIONS, body=Markup(body), records=records)


def _panels(page: Page, shown: Sequence[Shown]) -> list[tuple[str, list[Shown]]]:
    """Turns by their settings in words: the usual ones, those that vary, and those without which
    two panels would be named alike."""
    varied = {n for n in (*IF_SEVERAL, *IF_AMBIGUOUS) if page.records[n].nunique(dropna=False) > 1}
    usual = {*ALWAYS, *varied.intersection(IF_SEVERAL)}
    panels = {one.record["panel"]: one for one in shown}

    def title(one: Shown, names: set[str]) -> str:
        return " · ".join(
            f"{TITLES[name]} {setting(name, one.record[name])}" for name in TITLES if name in names
        )

    clear = len({title(one, usual) for one in panels.values()}) == len(panels)
    names = usual if clear else usual | (varied - {"checkpoint_sha256", "tree_sha256"})
    return [
        (title(panels[panel], names), list(group))
        for panel, group in groupby(shown, lambda one: one.record["panel"])
    ]


def _lead(shown: Sequence[Shown], total: int) -> str:
    """The rule by which turns were chosen, and what is shown of them."""
    if len(shown) == total:
        which = f"All {counted(total, 'turn')}"
    else:
        which = (
            f"{len(shown)} of {counted(total, 'turn')}: each set of one model, question set, "
            "engine and temperature names, by the speedup of its fastest lossless method, the "
            "largest gain, the largest loss (or smallest gain) and the one nearest to the median; "
            "then the earliest first difference of a lossless method, and one drawn at random "
            f"(seed {SEED}); and so on, in turn, until there are {PROMPTS}"
        )
    most = f", {ANSWERS} answers at most" if any(one.left_out for one in shown) else ""
    cut = [a.limit for one in shown for a in one.answers if a.cut]
    shortened = f" Answers are cut after {cut[0]:,} characters." if cut else ""
    return (
        f"{which}. Each is shown in the first repeat that the reference answered: the reference, "
        f"the fastest lossless method, then the others by speedup{most}.{shortened} "
        f"Any turn, whole and with every method: {COMMAND} results/RUN PROMPT_ID"
    )
