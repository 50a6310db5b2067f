"""Repetition and the speedup without it, with numbers worked out by hand."""

import pytest

from reports.measures import loops, speedup
from reports.read.repetition import repetition
from tests.reports.fabricate import Record, duel
from tests.reports.frames import frame, row


def test_repetition_is_the_share_of_4_grams_seen_before() -> None:
    assert repetition([1, 2, 3, 4, 5, 6]) == 0.0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert repetition([7] * 10) == pytest.approx(1 - 1 / 7)
    assert repetition([1, 2, 3]) == repetition([]) == 0.0


def test_loops_flatter_a_method() -> None:
    """Of 4 questions 1 loops: there the method gains 4 times, elsewhere nothing."""
    lines: list[Record] = duel(repeats=1)
    for line in lines:
        looping = line["prompt_id"] == 0
        line["output_ids"] = [7] * 5 if looping else [1, 2, 3, 4, 5]
        if line["method"] == "fast":
            line["accept_lengths"] = [4] if looping else [2, 2]
            line["decode_s"] = 1.0 if looping else 4.0
    table = frame(lines)
    found = row(loops.loops(table, speedup.speedup(table)), "fast(n=3)")
    assert found["repetition"] == pytest.approx(0.5 / 4)
    assert (found["repeating"], found["answers"]) == (0.25, 4)
    assert (found["accepted_repeating"], found["accepted_other"]) == (4.0, 2.0)
    assert found["non_repeating"] == pytest.approx(1.0)
    assert found["loops"] == pytest.approx(16 / 13 - 1)
