"""What holds for every measure."""

import pandas as pd
import pytest

from reports.measures import (
    acceptance,
    categories,
    contexts,
    depths,
    factors,
    loops,
    matches,
    positions,
    questions,
    shares,
    speedup,
)
from tests.reports.fabricate import duel, failure
from tests.reports.frames import frame, row


def test_synthetic_models_have_costs_and_no_speedup() -> None:
    table = frame(duel(model="synthetic:llama-7b"))
    found = speedup.speedup(table)
    assert found[["speedup", "low", "median", "end_to_end", "tokens_per_s"]].isna().all(axis=None)
    assert acceptance.accepted(table)["accepted"].isna().all()
    assert row(shares.shares(table), "fast(n=3)")["verify"] == pytest.approx(0.5)


def test_no_good_record_gives_empty_tables() -> None:
    table = frame([failure("fast", "boom")])
    empty = pd.DataFrame()
    for found in (
        speedup.speedup(table),
        acceptance.accepted(table),
        shares.shares(table),
        categories.by_category(table),
        matches.matches(table, empty),
    ):
        assert found.empty


def test_no_good_record_gives_empty_tables_by_part() -> None:
    table = frame([failure("fast", "boom")])
    for measure in (
        factors.factors,
        questions.questions,
        positions.by_position,
        contexts.by_context,
    ):
        assert measure(table).empty
    assert contexts.by_prompt(table).empty
    assert questions.spread(questions.questions(table)).empty
    assert depths.by_depth(acceptance.accepted(table)).empty
    assert loops.loops(table, speedup.speedup(table)).empty
