"""The section on speedup and acceptance by context length."""

from __future__ import annotations

from reports.measures.bins import named
from reports.measures.contexts import CONTEXTS, DEFINITIONS, by_context, by_prompt
from reports.page.model import Page, Section
from reports.page.tables import faster, longer, pivot


def section(page: Page) -> Section:
    rows, prompts = by_context(page.records), by_prompt(page.records)
    names, lengths = named(rows, CONTEXTS), named(prompts, CONTEXTS)
    captions = ("Speedup by tokens of the prompt", "Accepted length by tokens known")
    return Section(
        "contexts",
        "By context length",
        "Speedup by the length of the prompt, accepted length by all that was known to a step.",
        tables=[
            *pivot(page, captions[0], prompts, "bin", lengths, faster, "Prompt length"),
            *pivot(page, captions[1], rows, "bin", names, longer, "Context"),
        ],
        definitions=DEFINITIONS,
        records=page.good,
    )
