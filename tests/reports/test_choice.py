"""Which method when: a choice for each model and category, with numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.records.runs import Record
from reports.measures.choice import ALL, choices
from reports.page.model import Cell, Page, Table
from reports.sections import choice
from tests.reports.fabricate import duel, record
from tests.reports.test_sections import page_of

# Milliseconds a token (the reference takes 1,000) by model, method and category.
SPEEDS = {
    ("small", "chain"): {"writing": 500, "math": 900},
    ("small", "tree"): {"writing": 800, "math": 400},
    ("large", "chain"): {"writing": 250, "math": 1_250},
    ("large", "tree"): {"writing": 1_000, "math": 2_000},
}


def lines(**changes: Any) -> list[Record]:
    """Eight questions of each category, two repeats; the times scatter by a hundredth."""
    found = []
    for (model, method), speeds in SPEEDS.items():
        for question in range(16):
            category = ("writing", "math")[question % 2]
            for repeat in range(2):
                shared = {
                    "model": model,
                    "prompt_id": question,
                    "category": category,
                    "prompt_sha256": f"{question:02x}",
                    "repeat": repeat,
                    **changes,
                }
                noise = 1 + 0.01 * ((question + repeat) % 3)
                if method == "chain":
                    found.append(record(**shared, decode_s=4.0 * noise))
                seconds = 4e-3 * speeds[category] * (1 + 0.01 * (question % 2 + repeat))
                found.append(record(method, decode_s=seconds, **shared))
    return found


def cells(table: Table) -> dict[tuple[str, str], Cell]:
    """By category and model."""
    models = [head.text for head in table.heads[2:]]
    return {
        (row[1].text, model): cell
        for row in table.rows
        for model, cell in zip(models, row[2:], strict=True)
    }


def choosing(page: Page) -> list[Table]:
    return [table for table in choice.section(page).tables if table.caption.startswith("Fastest")]


def only(page: Page) -> dict[tuple[str, str], Cell]:
    (table,) = choosing(page)
    return cells(table)


def test_each_model_and_category_has_its_fastest_method() -> None:
    found = only(page_of(lines()))
    assert found["writing", "small"].text == "chain"
    assert found["writing", "small"].detail.startswith("2.0")
    assert found["math", "small"].text == "tree"
    assert found["math", "small"].detail.startswith("2.")
    assert found["writing", "large"].text == "chain"


def test_none_where_nothing_is_faster() -> None:
    cell = only(page_of(lines()))["math", "large"]
    assert cell.text == "none"
    assert cell.detail.startswith("chain 0.8")


def test_a_whole_set_comes_first() -> None:
    (table,) = choosing(page_of(lines()))
    assert [row[1].text for row in table.rows] == [ALL, "writing", "math"]
    assert [row[1].detail for row in table.rows] == ["16 questions", "8 questions", "8 questions"]


def test_what_chance_cannot_tell_apart_is_named() -> None:
    alike = [
        line | {"decode_s": 2.0 + 0.1 * ((line["prompt_id"] * 7 + line["repeat"]) % 5)}
        if line["method"] != "autoregressive" and line["category"] == "writing"
        else line
        for line in lines()
        if line["model"] == "small"
    ]
    cell = only(page_of(alike))["writing", "small"]
    assert cell.text == "chain"
    assert cell.detail.endswith(" · or tree")


def test_the_engine_with_the_most_tokens_a_second_counts() -> None:
    slow = lines(engine="eager")
    fast = [
        line | {"decode_s": line["decode_s"] / (20 if line["method"] == "tree" else 10)}
        for line in lines(engine="compile")
    ]
    page = page_of([*slow, *fast])
    assert only(page)["writing", "small"].text == "tree"
    table = choices(page.records, page.speedup)
    assert set(table["engine"]) == {"compile"}


@pytest.mark.parametrize("change", [{"lossless": False}, {"status": "error"}])
def test_lossy_and_failed_methods_are_not_chosen(change: dict[str, Any]) -> None:
    changed = [line | change if line["method"] == "chain" else line for line in lines()]
    tables = choosing(page_of(changed))
    assert all("chain" not in c.text + c.detail for t in tables for c in cells(t).values())


def test_temperatures_have_tables_of_their_own() -> None:
    tables = choosing(page_of([*lines(temperature=0.0), *lines(temperature=1.0)]))
    assert [table.caption.rpartition(": ")[2] for table in tables] == ["T 0", "T 1"]


def test_one_method_is_no_choice() -> None:
    alone = [line for line in lines() if line["method"] != "tree"]
    assert not choosing(page_of(alone))


def test_draft_cost_is_in_tokens_of_the_reference() -> None:
    """The reference takes a second a token; `fast` drafts for 0.5 s in two steps."""
    page = page_of(duel())
    section = choice.section(page)
    (table,) = section.tables
    heads = [head.text for head in table.heads]
    (row,) = table.rows
    assert row[heads.index("Draft cost")].text == "0.25"
    assert row[heads.index("Accepted length")].text == "2.00"
    assert "draft cost, in tokens of the reference" in str(section.figure)
