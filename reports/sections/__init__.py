"""The sections of the page: one module each, whose `section(page)` makes it.

A new section is one module here, added to OPEN or to FOLDED.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from reports.page.model import Page, Section
from reports.sections import (
    acceptance,
    answers,
    categories,
    choice,
    comparability,
    contexts,
    cost,
    depths,
    environment,
    factors,
    failures,
    loops,
    outputs,
    overview,
    positions,
    published,
    questions,
    shares,
    significance,
    speedup,
    temperatures,
    tuning,
)

Maker: TypeAlias = Callable[[Page], Section]

OPEN: tuple[Maker, ...] = (  # in the order of the page
    overview.section,
    speedup.section,
    acceptance.section,
    shares.section,
)
FOLDED: tuple[Maker, ...] = (  # below them, each opened by a click or by a link into it
    choice.section,
    outputs.section,
    significance.section,
    factors.section,
    questions.section,
    depths.section,
    categories.section,
    temperatures.section,
    positions.section,
    contexts.section,
    loops.section,
    answers.section,
    tuning.section,
    cost.section,
    published.section,
    comparability.section,
    failures.section,
    environment.section,
)
SECTIONS = (*OPEN, *FOLDED)
OF_STUDIES = (cost.section, environment.section)  # on a page without a run
OF_SMOKE_RUNS = (  # a few answers are not worth more
    *OPEN,
    *(outputs.section, tuning.section, cost.section),
    *(comparability.section, failures.section, environment.section),
)
