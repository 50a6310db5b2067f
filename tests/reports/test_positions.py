"""Acceptance by position and context, with numbers worked out by hand."""

import pytest

from reports.measures import bins, contexts, positions
from tests.reports.fabricate import duel, record
from tests.reports.frames import frame, row


def test_positions_are_those_of_a_step_s_first_token() -> None:
    """Prefill gives token 0; steps start at 1, 3 and 33."""
    line = record("fast", accept_lengths=[2, 30, 4], max_new_tokens=64)
    found = positions.by_position(frame([line, record(prompt_id=2)]))
    assert found["label"].unique().tolist() == ["fast"]
    assert found["bin"].tolist() == [0, 1]
    assert found["accepted"].tolist() == [16.0, 4.0]
    assert found["steps"].tolist() == [2, 1]
    assert [bins.name_of(positions.POSITIONS, at) for at in (0, 1, 7)] == [
        "1–32",
        "33–64",
        "2,049 and more",
    ]


def test_contexts_count_the_prompt_too() -> None:
    """A prompt of 60 tokens: the steps know 61 and 65."""
    line = record("fast", accept_lengths=[4, 2], prompt_tokens=60, max_new_tokens=64)
    found = contexts.by_context(frame([line]))
    assert found[["bin", "accepted", "steps"]].values.tolist() == [[0, 4.0, 1], [1, 2.0, 1]]


def test_speedup_by_the_length_of_the_prompt() -> None:
    lines = duel(repeats=1)
    for line in lines:
        line["prompt_tokens"] = 100 if line["prompt_id"] else 10
        if line["method"] == "fast" and not line["prompt_id"]:
            line["decode_s"] = 1.0
    table = contexts.by_prompt(frame(lines))
    assert row(table, "fast(n=3)", bin=0)["speedup"] == pytest.approx(4.0)
    assert row(table, "fast(n=3)", bin=1)["speedup"] == pytest.approx(2.0)
    assert row(table, "fast(n=3)", bin=1)["prompts"] == 3
