"""Every section of pages of all kinds: tables fit their heads, and what is no number is no cell."""

import re
from typing import Any

import pytest

from reports.measures import speedup as speedup_measure
from reports.page.model import Page, Section
from reports.read.companions import RunInfo
from reports.sections import (
    SECTIONS,
    acceptance,
    categories,
    depths,
    factors,
    loops,
    outputs,
    questions,
    shares,
    significance,
    speedup,
    temperatures,
)
from tests.reports.fabricate import Record, duel, failure, record, stock
from tests.reports.frames import frame

TURNS = [{"prompt_id": q, "prompt_sha256": f"{q:02x}"} for q in range(9)]
ENDED: Record = {
    "accept_lengths": [],
    "decode_s": 0.0,
    "phase_s": dict.fromkeys(("draft", "verify", "accept", "other"), 0.0),
}
NULL = ("category", "drafted", "draft_parameters", "peak_memory_bytes")
LOSSY: Record = {"agreement": 0.5, "perplexity": 3.0, "reference_perplexity": 2.0}

PAGES: dict[str, list[Record]] = {
    "one question": duel(questions=1, repeats=1),
    "steady": duel(questions=9, repeats=3),
    "temperatures": [*duel(questions=9), *duel(questions=9, temperature=0.7)],
    "stock": [*duel(questions=9), *(stock(**turn) for turn in TURNS)],
    "stock alone": [stock(**turn) for turn in TURNS],
    "synthetic": duel(model="synthetic:llama-7b"),
    "synthetic too": [*duel(), *duel(model="synthetic:llama-7b")],
    "failures": [failure("fast", "boom")],
    "nulls": [line | dict.fromkeys(NULL) for line in duel()],
    "no time": [line | {"decode_s": 0.0} for line in duel(questions=9)],
    "ended at once": [record(**ENDED), record("fast", **ENDED)],
    "several runs": [*duel(), *duel(run="other", dtype="bfloat16")],
    "lossy": [line | {"lossless": line["method"] != "fast"} for line in duel()],
}


def page_of(lines: list[Record], audited: tuple[Record, ...] = ()) -> Page:
    names = dict.fromkeys(line["run"] for line in lines)
    runs = [
        RunInfo(name, {}, "", None, "audited" if audited else "not audited", audited)
        for name in names
    ]
    return Page(runs, frame(lines))


def words(section: Section) -> str:
    """All that its tables say."""
    cells = [cell for table in section.tables for row in table.rows for cell in row]
    tags = [tag.text for cell in cells for tag in cell.tags]
    return " | ".join([*(f"{cell.text} {cell.detail}" for cell in cells), *tags])


@pytest.mark.parametrize("kind", PAGES)
def test_tables_fit_their_heads_and_hold_numbers(kind: str) -> None:
    page = page_of(PAGES[kind])
    for make in SECTIONS:
        section = make(page)
        for table in section.tables:
            assert table.rows
            assert {len(row) for row in table.rows} == {len(table.heads)}
        assert not re.search(r"\b(nan|inf|None)\b", words(section) + str(section.lead))
        if section.figure:
            assert "nan" not in re.sub(r"aria-label=\"[^\"]*\"", "", section.figure)
            assert 'role="img" aria-label="' in section.figure


def test_every_head_of_these_sections_is_defined() -> None:
    page = page_of(PAGES["temperatures"])
    makers = (speedup.section, significance.section, factors.section, questions.section)
    for make in (*makers, depths.section, temperatures.section, loops.section):
        section = make(page)
        assert section.records > 0
        terms = {term.lower() for term, _ in (*section.definitions, *speedup_measure.DEFINITIONS)}
        parts = {part for term in terms for part in re.split(r", | and ", term)} | terms
        parts |= {term.lower() for term, _ in significance.section(page).definitions}
        figures = [head for table in section.tables for head in table.heads if head.numeric]
        known = {(head.term or head.text).lower() for head in figures} - {"t"}
        assert known <= parts | {"accepted length"}, section.id


def test_speedups_by_temperature_stand_side_by_side() -> None:
    (table,) = temperatures.section(page_of(PAGES["temperatures"])).tables
    assert [head.text for head in table.heads][-2:] == ["T = 0", "T = 0.7"]
    assert "T" not in [head.text for head in table.heads]
    assert len(table.rows) == 2
    assert table.rows[0][-1].text == "2.00×"  # the fastest first
    assert not temperatures.section(page_of(PAGES["steady"])).tables


def test_categories_that_a_method_lacks_are_left_empty() -> None:
    lines = [line for line in duel() if line["method"] != "fast" or line["prompt_id"] % 2]
    (table,) = categories.section(page_of(lines)).tables
    cells = {head.text: cell.text for head, cell in zip(table.heads, table.rows[0], strict=True)}
    assert (cells["writing"], cells["math"]) == ("–", "2.00×")


def test_what_is_not_sure_is_said_above_the_table() -> None:
    lead = speedup.section(page_of(PAGES["lossy"])).lead
    assert "1 row with fewer than 3 repeats or 8 questions" in lead
    assert "fewer than" not in speedup.section(page_of(PAGES["steady"])).lead


def test_figures_of_many_settings_show_the_first() -> None:
    lines = [line for t in range(10) for line in duel(temperature=t / 10)]
    page = page_of(lines)
    for make in (speedup.section, acceptance.section, shares.section, categories.section):
        section = make(page)
        assert "the first 8 of 10 settings" in section.lead
        assert "T=0.7" in str(section.figure)
        assert "T=0.8" not in str(section.figure)
    for make in (questions.section, depths.section):
        assert "the first 8 settings" in make(page).lead


def lossy_row(**more: Any) -> Record:
    names = {"model": "tiny", "engine": "eager", "dtype": "float32", "dataset": "mini"}
    counts = {"compared": 0, "equal": 0, "ties": 0, "defects": 0, "examples": []}
    return {**names, "label": "fast(n=3)", "temperature": 0.0, **counts, **more}


def test_what_lossy_methods_are_worth_stands_beside_their_badge() -> None:
    (table,) = outputs.section(page_of(PAGES["lossy"], (lossy_row(**LOSSY),))).tables
    cells = dict(zip((head.text for head in table.heads), table.rows[0], strict=True))
    assert cells["Badge"].tags[0].text == "lossy"
    assert cells["Agreement"].text == "50.0 %"
    assert (cells["Perplexity"].text, cells["Perplexity"].detail) == ("3.00", "reference 2.00")
    older = outputs.section(page_of(PAGES["lossy"], (lossy_row(),))).tables[0]
    assert "Perplexity" not in [head.text for head in older.heads]
