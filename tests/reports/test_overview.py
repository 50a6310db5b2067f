"""The overview: which method is fastest, and whether that may be said."""

import re
from pathlib import Path
from typing import Any

import pytest

from reports import build
from reports.page.model import Page, Section, Table
from reports.sections import overview
from tests.reports.fabricate import Record, audit, crowd, duel, record, write_run


def page_of(tmp_path: Path, lines: list[Record]) -> Page:
    return build.load([write_run(tmp_path / "run", lines)])


def said(table: Table) -> str:
    return re.sub(r"<[^>]+>", "", str(table.lead))


def methods(table: Table) -> list[str]:
    return [cell.text for row in table.rows for cell in row if cell.names_row]


def marks(table: Table, method: str) -> list[str]:
    cells = [cell for row in table.rows for cell in row if cell.names_row]
    return [tag.text for cell in cells if cell.text == method for tag in cell.tags]


def fastest(section: Section) -> list[str]:
    """The methods of a section's last table that it calls the fastest."""
    table = section.tables[-1]
    return [name for name in methods(table) if "fastest lossless" in marks(table, name)]


def rival(lines: list[Record], method: str, **changes: Any) -> list[Record]:
    """The records of `fast` again, as of another method."""
    return [
        line | {"method": method, "key": line["key"][::-1]} | changes
        for line in lines
        if line["method"] == "fast"
    ]


def test_a_panel_ranks_and_says_who_leads_by_how_much(tmp_path: Path) -> None:
    lines = duel(questions=8, repeats=3)
    slow = rival(lines, "slow", decode_s=3.2)
    (table,) = overview.section(page_of(tmp_path, [*lines, *slow])).tables
    assert methods(table) == ["fast(n=3)", "slow(n=3)", "autoregressive"]
    words = said(table)
    assert "fast(n=3) is fastest at 2.00× [2.00, 2.00] the speed of plain autoregressive" in words
    assert "60.0 % ahead of slow(n=3) (1.25×)" in words
    assert "It gets 2.00 tokens a step and spends 50 % verifying, 25 % drafting" in words


def test_methods_that_cannot_be_told_apart_are_named(tmp_path: Path) -> None:
    lines = duel(questions=6)
    near = [
        line | {"decode_s": 2.0 + (0.4 if line["prompt_id"] % 2 else -0.3)}
        for line in rival(lines, "near")
    ]
    section = overview.section(page_of(tmp_path, [*lines, *near]))
    words = said(section.tables[0])
    assert "leads at" in words
    assert "is not distinguishable from it" in words
    (first,) = fastest(section)
    (other,) = {"fast(n=3)", "near(n=3)"} - {first}
    assert "not distinguishable from the fastest" in marks(section.tables[-1], other)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (lambda _: 5.0, "No lossless method is faster than plain autoregressive decoding"),
        (lambda n: 2.0 + 3.0 * (n % 2), "not distinguishable from plain autoregressive decoding"),
    ],
)
def test_what_is_not_faster_is_not_called_so(tmp_path: Path, seconds: Any, words: str) -> None:
    lines = [
        line | ({"decode_s": seconds(line["prompt_id"])} if line["method"] == "fast" else {})
        for line in duel(questions=6)
    ]
    (table,) = overview.section(page_of(tmp_path, lines)).tables
    assert words in said(table)
    assert "is fastest" not in said(table)


def test_one_question_gives_no_interval(tmp_path: Path) -> None:
    (table,) = overview.section(page_of(tmp_path, duel(questions=1))).tables
    assert "One question gives no interval." in said(table)


def test_lossy_and_wrong_methods_are_never_the_fastest(tmp_path: Path) -> None:
    lines = duel(questions=8)
    lossy = rival(lines, "loose", decode_s=0.5, lossless=False)
    folder = write_run(tmp_path / "run", [*lines, *lossy])
    (table,) = overview.section(build.load([folder])).tables
    assert methods(table)[0] == "loose(n=3)"
    assert marks(table, "loose(n=3)")[0] == "lossy"
    assert "fast(n=3) is fastest" in said(table)
    assert "Faster, but lossy: loose(n=3) (8.00×)." in said(table)
    wrong = {
        **{name: lines[0][name] for name in ("model", "engine", "dtype", "dataset", "temperature")},
        "label": "fast(n=3)",
        "compared": 16,
        "equal": 15,
        "ties": 0,
        "defects": 1,
        "examples": [],
    }
    audit(folder, [wrong])
    section = overview.section(build.load([folder]))
    assert "No lossless method was compared" in said(section.tables[0])
    assert not fastest(section)
    assert "defects" in marks(section.tables[0], "fast(n=3)")


def test_several_settings_get_a_table_of_leaders_and_fold(tmp_path: Path) -> None:
    section = overview.section(page_of(tmp_path, crowd()))
    leaders, speeds, *panels = section.tables
    assert len(leaders.rows) == len(panels) == 4
    assert {(panel.facts["model"], panel.facts["dataset"]) for panel in panels} == {
        (model, dataset) for model in ("small", "large") for dataset in ("mini", "mt")
    }
    assert [panel.folded for panel in panels] == [False, False, True, True]
    assert "Tokens/s" in speeds.caption
    many = [line for n in range(9) for line in duel(dataset=f"set {n}")]
    folded = [table.folded for table in overview.section(page_of(tmp_path, many)).tables]
    assert folded == [False] * 3 + [True] * 7  # the leaders, two panels, the rest


def test_synthetic_models_and_lone_references_get_no_verdict(tmp_path: Path) -> None:
    (table,) = overview.section(page_of(tmp_path, duel(model="synthetic:tiny"))).tables
    assert said(table) == "Random weights: no speedup is reported, only where the time goes."
    (table,) = overview.section(page_of(tmp_path, [record()])).tables
    assert said(table) == "No lossless method was compared with the reference."
