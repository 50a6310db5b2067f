"""The section on errors, skips and warnings."""

from __future__ import annotations

from reports.measures.failures import DEFINITIONS, failures, warnings
from reports.page.columns import column, figure
from reports.page.format import text
from reports.page.model import Page, Section
from reports.page.tables import tables


def section(page: Page) -> Section:
    failed, warned = failures(page.records), warnings(page.records)
    reasons = [
        column("Status", "status", text, numeric=False),
        column("Reason", "error", text, numeric=False),
        figure("Records", "count", "{:,.0f}"),
    ]
    first = [
        column("First warning", "first", text, numeric=False),
        figure("Records", "count", "{:,.0f}"),
    ]
    return Section(
        "failures",
        "Errors and skips",
        "What did not run and why, and what ran with a warning.",
        tables=[
            *tables(page, "Errors and skips", failed.assign(failed=0, skipped=0), reasons),
            *tables(page, "Good records with warnings", warned.assign(failed=0, skipped=0), first),
        ],
        definitions=DEFINITIONS,
        empty="None: every record is good and without a warning.",
    )
