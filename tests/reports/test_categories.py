"""Speedup by category, with numbers worked out by hand."""

import pytest

from reports.measures import categories
from tests.reports.fabricate import duel
from tests.reports.frames import frame, row


def test_categories_have_their_own_sums() -> None:
    lines = duel()
    for line in lines:
        if line["category"] == "math" and line["method"] == "fast":
            line |= {"decode_s": 1.0, "accept_lengths": [4]}
    table = categories.by_category(frame(lines))
    assert row(table, "fast(n=3)", category="writing")["speedup"] == pytest.approx(2.0)
    found = row(table, "fast(n=3)", category="math")
    assert (found["speedup"], found["accepted"]) == (pytest.approx(4.0), 4.0)
    assert row(table, "autoregressive", category="math")["accepted"] == 1.0
