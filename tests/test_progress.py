"""Progress off a terminal and on one, and the estimate of a session."""

import io
import itertools
import sys
import time
from collections.abc import Callable

import pytest

from bench.progress import Progress, duration
from bench.run.estimate import Estimate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def go(seconds: float) -> None:
        now[0] = seconds

    return go


def test_off_a_terminal_a_line_a_minute(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("smollm2-135m", 1200, "turn") as bar:
        for seconds in range(1, 131):
            clock(seconds)
            bar.update(2)
    assert capsys.readouterr().err.splitlines() == [
        "smollm2-135m: 120 of 1,200 turns, about 9 min left",
        "smollm2-135m: 240 of 1,200 turns, about 8 min left",
    ]


def test_what_an_earlier_session_did_takes_no_time(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("train", 1000, "step") as bar:
        bar.skip(900)
        clock(60)
        bar.update(10)
    assert capsys.readouterr().err == "train: 910 of 1,000 steps, about 9 min left\n"


def test_without_a_total_the_time_so_far(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("tuning", None, "answer") as bar:
        bar.title("medusa nodes")
        clock(61)
        bar.update(7)
    assert capsys.readouterr().err == "medusa nodes: 7 answers, 1 min so far\n"


@pytest.mark.parametrize(("total", "shown"), [(0, True), (9, False)])
def test_nothing_is_shown(
    total: int,
    shown: bool,
    clock: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("train", total, "step", shown) as bar:
        clock(100)
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("smollm2-135m", 8, "turn") as bar:
        bar.skip(6)
        bar.update(2)
    assert "smollm2-135m: 100%" in terminal.getvalue()
    assert "8/8" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (60, "1 min"), (3900, "65 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_estimate_comes_once_and_weighs_each_method() -> None:
    turns = [("slow", 3.0), ("fast", 1.0)] * 5
    estimate = Estimate(method for method, _ in turns)
    found = [estimate.took(*turn) for turn in turns]
    assert found == [None, (8, 4 * 3.0 + 4 * 1.0), *itertools.repeat(None, 8)]


def test_an_estimate_takes_the_mean_of_the_first_turns() -> None:
    estimate = Estimate(["a", "a", "a", "b", "b"])
    assert [estimate.took("a", 1.0), estimate.took("a", 3.0)] == [None, None]
    assert estimate.took("b", 5.0) == (2, 2.0 + 5.0)
