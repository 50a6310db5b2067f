"""Speed comes from repeats without the phase clock, phases and steps from those with it."""

from pathlib import Path
from typing import Any

import pytest

from reports import build
from reports.measures import changes, factors, shares, significance, speedup
from reports.page.turns import Turns
from tests.reports.fabricate import Record, duel, record, stock, write_run
from tests.reports.frames import frame, row

UNCLOCKED: Record = {"schema": "1.2", "clock": False, "phase_s": None}


def clocked_last(questions: int = 4, repeats: int = 2) -> list[Record]:
    """`duel` with one more repeat, in which the phase clock runs and doubles the reference's time:
    the last. The stock row has the other repeats."""
    lines = []
    for line in duel(questions, repeats + 1):
        if line["repeat"] < repeats:
            lines.append(line | UNCLOCKED)
            if line["method"] == "autoregressive":
                same = ("prompt_id", "prompt_sha256", "category", "repeat")
                lines.append(stock(**{name: line[name] for name in same}))
        else:
            slow = 8.0 if line["method"] == "autoregressive" else 2.0
            lines.append(line | {"schema": "1.2", "clock": True, "decode_s": slow})
    return lines


def test_speed_is_of_the_repeats_without_the_clock() -> None:
    found = speedup.speedup(frame(clocked_last()))
    fast = row(found, "fast(n=3)")
    assert fast["speedup"] == fast["median"] == pytest.approx(2.0)  # 4.0 with the phase clock
    assert fast["end_to_end"] == pytest.approx(5 / 3)
    assert fast["tokens_per_s"] == pytest.approx(2.0)
    assert (fast["pairs"], fast["repeats"], fast["one_token"], fast["unpaired"]) == (8, 2, 0, 0)
    assert row(found, "autoregressive")["tokens_per_s"] == pytest.approx(1.0)
    assert row(found, "transformers_generate")["pairs"] == 8


def test_older_records_serve_both() -> None:
    older = duel(4, 2)
    found = row(speedup.speedup(frame(older)), "fast(n=3)")
    assert (found["speedup"], found["pairs"]) == (pytest.approx(2.0), 8)
    assert row(shares.shares(frame(older)), "fast(n=3)")["verify_steps"] == 16


def test_phases_are_of_the_repeat_with_the_clock() -> None:
    found = row(shares.shares(frame(clocked_last())), "fast(n=3)")
    assert found["verify"] == pytest.approx(0.5)
    assert found["verify_steps"] == 4 * 2  # of one repeat
    product = row(factors.factors(frame(clocked_last())), "fast(n=3)")
    assert product["pairs"] == 4
    assert product["speedup"] == pytest.approx(4.0)  # of the same records as the product


def test_drift_is_of_the_repeats_without_the_clock() -> None:
    (found,) = significance.drift(frame(clocked_last())).to_dict("records")
    assert (found["first"], found["last"], found["drift"]) == (0, 1, pytest.approx(1.0))


@pytest.mark.parametrize("absolute", [False, True])
def test_runs_are_compared_without_the_clock(absolute: bool) -> None:
    a, b = frame(clocked_last()), frame(clocked_last())
    found = changes.changes([a], [b], absolute).rows
    assert set(found["pairs"]) == {8}
    assert found["change"].abs().max() < 1e-9


def test_answers_are_shown_from_the_repeat_with_the_clock(tmp_path: Path) -> None:
    page = build.load([write_run(tmp_path / "run", clocked_last())])
    turns = Turns(page)
    shown = turns.answers(0).set_index("label")
    assert dict(shown["repeat"]) == {
        "autoregressive": 2,
        "fast(n=3)": 2,
        "transformers_generate": 0,
    }
    assert shown["ratio"]["transformers_generate"] == pytest.approx(1.0)  # of its own repeat


def html(folder: Path, lines: list[Record], **companions: Any) -> str:
    build.build([write_run(folder / "run", lines, **companions)], folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_the_page_says_which_is_which(tmp_path: Path) -> None:
    note = "The phase clock ran in all repeats of run"
    assert note in html(tmp_path / "old", duel())
    page = html(tmp_path / "new", clocked_last())
    assert note not in page
    assert "Times are of repeats without the phase clock" in page
    assert ">2 repeats,<wbr> up to 8 tokens<" in page
    assert "Peak memory" not in page


def test_a_row_whose_timed_repeats_all_failed_has_its_clocked_one() -> None:
    lines = [
        line for line in clocked_last() if not (line["method"] == "fast" and line["clock"] is False)
    ]
    found = row(speedup.speedup(frame(lines)), "fast(n=3)")
    assert (found["speedup"], found["pairs"]) == (pytest.approx(4.0), 4)  # both with the clock


def test_a_failure_is_no_repeat() -> None:
    lines = [*clocked_last(), record("fast", params={"n": 3}, **UNCLOCKED, prompt_id=99)]
    found = row(speedup.speedup(frame(lines)), "fast(n=3)")
    assert (found["pairs"], found["unpaired"]) == (8, 1)
