"""The section on whether methods give the reference's token ids, and the quality of lossy ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from reports.measures import matches, price
from reports.page import badges
from reports.page.columns import INTERVAL, Column, Detailed, defined, figure, words
from reports.page.format import NONE, number, percent, text
from reports.page.model import Cell, Head, Page, Section, Table, TableRow, Tag
from reports.page.tables import plain, tables
from reports.read.words import counted

EXAMPLES = 20  # of unequal outputs on the page


def section(page: Page) -> Section:
    rows, priced = matches.matches(page.records, page.audited), price.price(page.records)
    columns = [
        Badged("Badge", "badge", lambda row: row["badge"].why, numeric=False),
        Detailed("Match rate", "match_rate", lambda row: percent(row["match_rate"]), below=_equal),
        figure("Ties", "ties", "{:,.0f}"),
        figure("Defects", "defects", "{:,.0f}"),
    ]
    terms = [*matches.DEFINITIONS, *badges.DEFINITIONS]
    if len(rows):
        lines = rows.to_dict("records")
        rows["badge"] = pd.Series([badges.badge(page, row) for row in lines], dtype=object)
        shown = [proof for proof in _PROOFS if rows[proof[0].key].notna().any()]
        columns += [one for one, _ in shown]
        terms += [meaning for _, meaning in shown]
        terms += [matches.LOSSY] * bool(rows["lossy"].any())
    differences = _differences(page)
    return Section(
        "matches",
        "Same output",
        "Whether a method gives the reference's token ids, and why not where it does not."
        + _prices(priced),
        tables=[
            *_price(page, priced),
            *tables(page, "Outputs compared with the reference's", rows, columns),
            *differences,
        ],
        definitions=(
            *terms,
            *((matches.POSITION,) if differences else ()),
            *(price.DEFINITIONS if len(priced) else ()),
        ),
        empty="No good records of any method other than the reference.",
        records=page.good,
    )


def _prices(priced: pd.DataFrame) -> str:
    """What engine exact costs beside compile, in a sentence."""
    found = [
        f"{row['price']:.2f}× on {row['dataset']} ({row['model']}, {row['exact_ms']:.3f} ms a "
        f"token against {row['compile_ms']:.3f})"
        for row in priced.to_dict("records")
    ]
    if not found:
        return ""
    return f" The price of equal ids on engine exact: plain decoding takes {'; '.join(found)}."


def _price(page: Page, priced: pd.DataFrame) -> list[Table]:
    columns = [
        defined(figure("Exact / compile", "price", "{:.2f}×"), "Price of exact"),
        INTERVAL,
        figure("Exact, ms/token", "exact_ms", "{:.3f}"),
        figure("Compile, ms/token", "compile_ms", "{:.3f}"),
        figure("Questions", "questions", "{:,.0f}"),
    ]
    names = ("model", "dataset", "temperature")
    return plain(page, "Price of exact: plain decoding on both engines", priced, names, columns)


def _equal(row: TableRow) -> str:
    return f"{row['equal']:,.0f} of {row['compared']:,.0f}" if row["compared"] > 0 else ""


class Badged(Column):
    """A column of badges, those that prove nothing with their reason below."""

    def cell(self, row: TableRow) -> Cell:
        badge = row[self.key]
        mark = Tag(badge.text, badge.kind, why=badge.why)
        return Cell("", badge.text, detail="" if badge.kind == "good" else badge.why, tags=[mark])


def _reruns(row: TableRow) -> str:
    found = row["reruns"]
    if not isinstance(found, Mapping):
        return NONE
    return f"{found.get('equal', 0)} equal of {found.get('rerun', 0)}"


def _missed(row: TableRow) -> str:
    found = row["argmax"]
    return percent(found["share"]) if isinstance(found, Mapping) else NONE


def _missed_below(row: TableRow) -> str:
    found = row["argmax"]
    if not isinstance(found, Mapping):
        return ""
    interval = ""
    if found["low"] is not None:
        interval = f"[{percent(max(found['low'], 0.0))}, {percent(found['high'])}], "
    return f"{interval}reference {percent(found['reference_share'])}"


def _sampled(row: TableRow) -> str:
    found = row["sampling"]
    if not isinstance(found, Mapping) or found.get("p_holm") is None:
        return NONE
    return f"p = {found['p_holm']:.2g}"


_PROOFS = (  # columns that are shown where a row has a value, with their definitions
    (Detailed("Not the argmax", "argmax", _missed, below=_missed_below), matches.NOT_THE_ARGMAX),
    (words("Float32 reruns", _reruns, "reruns"), badges.RERUNS_DEFINED),
    (words("Distribution test", _sampled, "sampling"), badges.TEST_DEFINED),
    (
        Detailed(
            "Agreement",
            "agreement",
            lambda row: percent(row["agreement"]),
            below=lambda row: _beside(percent(row["reference_agreement"])),
        ),
        badges.AGREEMENT_DEFINED,
    ),
    (
        Detailed(
            "Perplexity",
            "perplexity",
            lambda row: number(row["perplexity"], "{:.2f}"),
            below=lambda row: _beside(number(row["reference_perplexity"], "{:.2f}")),
        ),
        badges.PERPLEXITY_DEFINED,
    ),
)


def _beside(figure: str) -> str:
    return "" if figure == NONE else f"reference {figure}"


def _gap(example: TableRow) -> float:
    """Infinite where one answer is the start of the other."""
    return math.inf if example["gap"] is None else float(example["gap"])


def _differences(page: Page) -> list[Table]:
    """Where outputs first differ: defects before ties, the largest gaps first."""
    rows = page.audited.to_dict("records")
    found = [{**row, **example} for row in rows for example in row["examples"] or ()]
    found.sort(key=lambda example: (str(example["verdict"]), -_gap(example)))
    if not found:
        return []
    names = ("model", "dataset", "label", "prompt_id", "verdict")
    numbers = ("turn", "repeat", "position", "gap")
    heads = [Head(name) for name in ("Model", "Question set", "Method", "Question", "Verdict")]
    heads += [Head(name, True) for name in ("Turn", "Repeat", "Position", "Gap of logits")]
    lines = [
        [
            *(Cell(text(example[name]), text(example[name])) for name in names[:2]),
            Cell(page.name(example["label"]), example["label"], names_row=True),
            *(Cell(text(example[name]), text(example[name])) for name in names[3:]),
            *(Cell(number(example[name], "{:.3g}"), example[name]) for name in numbers),
        ]
        for example in found[:EXAMPLES]
    ]
    caption = f"First differences: {len(lines)} of the audit's {counted(len(found), 'example')}"
    return [Table(caption, heads, lines)]
