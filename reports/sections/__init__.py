"""The sections of the page: one module each, whose `section(page)` makes it.

A new section is one module here, added to SECTIONS.
"""

from __future__ import annotations

from collections.abc import Callable

from reports.page.model import Page, Section
from reports.sections import (
    acceptance,
    answers,
    categories,
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

SECTIONS: tuple[Callable[[Page], Section], ...] = (  # in the order of the page
    overview.section,
    comparability.section,
    speedup.section,
    significance.section,
    acceptance.section,
    shares.section,
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
    outputs.section,
    published.section,
    failures.section,
    environment.section,
)
OF_STUDIES = (cost.section, environment.section)  # on a page without a run
