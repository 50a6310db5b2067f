"""Answers, step by step: turns of the page as HTML, each answer as the blocks of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from markupsafe import Markup

from reports.measures import Definitions
from reports.page import rendering
from reports.page.figures.style import PHASE_COLOURS
from reports.page.model import Page, Section
from reports.page.settings import ALWAYS, IF_AMBIGUOUS, IF_SEVERAL, TITLES, setting
from reports.page.shown_turns import COMMAND, STRIP, ShownTurn, shown_turn
from reports.page.step_texts import NAMED
from reports.page.turns import SEED, Turns
from reports.read.words import counted

PROMPTS = 40
ANSWERS = 6  # of a turn: the reference, the fastest lossless method, others by speedup
BUDGET = 2_000_000  # bytes of all answers, about
LIMITS = (20_000, 10_000, 6_000, 4_000, 3_000, 2_000, 1_500, 1_000, 700, 500, 350, 250, 150, 80)

ID, TITLE = "answers", "Answers, step by step"
DEFINITIONS: Definitions = (
    (
        "Block",
        "the text that one verify step emitted; its colour and number say how many tokens these "
        "are. The framed block at the start is prefill's token; a dot is a block without text.",
    ),
    ("Nodes", "drafted for the step, the root not counted."),
    ("Depth", "levels drafted below the root."),
    ("Times", "of the step in microseconds: draft + verify + accept + other."),
    (
        "First difference",
        "the first position at which token ids are not the reference's, 0 being prefill's token. "
        "Texts after it are not comparable.",
    ),
    (
        "Marks in the text",
        "controls, invisible characters and marks of direction are named in small frames; ◌ "
        "carries a mark whose letter is in the block before.",
    ),
)


def fitted(shown: Sequence[ShownTurn]) -> list[ShownTurn]:
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
    shown = [shown_turn(turns, at, reason, ANSWERS) for at, reason in chosen]
    if not shown:
        return Section(ID, TITLE, "", empty="No reference answered anything.")
    shown = fitted(shown)
    return made(page, shown, _lead(shown, len(turns)))


def made(page: Page, shown: Sequence[ShownTurn], lead: str) -> Section:
    """The section of these turns."""
    template = rendering.environment().get_template("answers.html.j2")
    body = template.render(
        panels=_panels(page, shown), phases=PHASE_COLOURS, strip=STRIP, named=NAMED
    )
    records = sum(len(one.answers) for one in shown)
    return Section(ID, TITLE, lead, definitions=DEFINITIONS, body=Markup(body), records=records)


def _panels(page: Page, shown: Sequence[ShownTurn]) -> list[tuple[str, list[ShownTurn]]]:
    """Turns by their settings in words: the usual ones, those that vary, and those without which
    two panels would be named alike."""
    varied = {n for n in (*IF_SEVERAL, *IF_AMBIGUOUS) if page.records[n].nunique(dropna=False) > 1}
    usual = {*ALWAYS, *varied.intersection(IF_SEVERAL)}
    panels = {one.record["panel"]: one for one in shown}

    def title(one: ShownTurn, names: set[str]) -> str:
        return " · ".join(
            f"{TITLES[name]} {setting(name, one.record[name])}" for name in TITLES if name in names
        )

    clear = len({title(one, usual) for one in panels.values()}) == len(panels)
    names = usual if clear else usual | (varied - {"checkpoint_sha256", "tree_sha256"})
    return [
        (title(panels[panel], names), list(group))
        for panel, group in groupby(shown, lambda one: one.record["panel"])
    ]


def _lead(shown: Sequence[ShownTurn], total: int) -> str:
    """The rule by which turns were chosen, and what is shown of them."""
    if len(shown) == total:
        which = f"All {counted(total, 'turn')}"
    else:
        which = (
            f"{len(shown)} of {counted(total, 'turn')}: of each setting in turn, the largest gain, "
            "the largest loss (or smallest gain) and the nearest to the median of its fastest "
            "lossless method, the earliest first difference of a lossless method, and one drawn at "
            f"random (seed {SEED})"
        )
    most = f", {ANSWERS} answers at most" if any(one.left_out for one in shown) else ""
    cut = [a.limit for one in shown for a in one.answers if a.cut]
    shortened = f" Answers are cut after {cut[0]:,} characters." if cut else ""
    return (
        f"{which}. Each is of the first repeat that the reference answered, with the phase clock "
        "where one was: the reference, the fastest lossless method, then others by "
        f"speedup{most}.{shortened} Any turn, whole and with every method: {COMMAND} results/RUN "
        "PROMPT_ID"
    )
