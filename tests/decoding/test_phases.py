from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import pytest
import torch

from bench.decoding.phases import PHASES, Phase, PhaseClock


@pytest.fixture
def clock() -> PhaseClock:
    return PhaseClock(torch.device("cpu"))


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each reading of the host's clock is one second after the one before."""
    seconds = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr("bench.decoding.phases.time.perf_counter", lambda: float(next(seconds)))
        yield


@pytest.mark.usefixtures("ticking")
def test_time_goes_to_the_phase_it_passed_in_and_the_rest_to_other(clock: PhaseClock) -> None:
    clock.start()
    for _ in range(3):
        with clock.phase("draft"):
            pass
        with clock.phase("verify"):
            pass
        with clock.phase("accept"):
            pass
    # Between any two of ten phases and the ends lies one interval of `other`.
    assert clock.stop() == {"draft": 3.0, "verify": 3.0, "accept": 3.0, "other": 10.0}


@pytest.mark.usefixtures("ticking")
def test_a_run_without_phases_is_all_other(clock: PhaseClock) -> None:
    clock.start()
    assert clock.stop() == {"draft": 0.0, "verify": 0.0, "accept": 0.0, "other": 1.0}


@pytest.mark.usefixtures("ticking")
def test_a_phase_ends_with_an_error_too(clock: PhaseClock) -> None:
    clock.start()
    with pytest.raises(RuntimeError, match="broken"), clock.phase("verify"):
        raise RuntimeError("broken")
    assert clock.stop() == {"draft": 0.0, "verify": 1.0, "accept": 0.0, "other": 2.0}


@pytest.mark.usefixtures("ticking")
def test_start_forgets_the_run_before(clock: PhaseClock) -> None:
    clock.start()
    with clock.phase("draft"):
        pass
    clock.start()
    with clock.phase("accept"):
        pass
    assert clock.stop() == {"draft": 0.0, "verify": 0.0, "accept": 1.0, "other": 2.0}


def test_phases_add_up_to_the_time_that_passed(clock: PhaseClock) -> None:
    naps = dict(zip(PHASES, (0.01, 0.03, 0.02, 0.015), strict=True))
    before = time.perf_counter()
    clock.start()
    started = time.perf_counter()
    for phase, seconds in naps.items():
        with clock.phase(phase):
            time.sleep(seconds)
    ended = time.perf_counter()
    measured = clock.stop()
    after = time.perf_counter()
    assert set(measured) == set(PHASES)
    assert all(measured[phase] >= seconds for phase, seconds in naps.items())
    assert ended - started <= sum(measured.values()) <= after - before


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("comes", [False, True])
def test_work_ahead_counts_only_where_its_step_comes(clock: PhaseClock, comes: bool) -> None:
    clock.start()
    with clock.phase("verify"):
        pass
    clock.ahead()
    with clock.phase("draft"):
        pass
    clock.step()
    if comes:
        with clock.phase("verify"):
            pass
        assert clock.stop() == {"draft": 1.0, "verify": 2.0, "accept": 0.0, "other": 5.0}
    else:
        assert clock.stop() == {"draft": 0.0, "verify": 1.0, "accept": 0.0, "other": 2.0}


def take(clock: PhaseClock, *phases: Phase) -> None:
    for phase in phases:
        with clock.phase(phase):
            pass
    clock.step()


@pytest.mark.usefixtures("ticking")
def test_a_step_ends_with_its_accept_phase(clock: PhaseClock) -> None:
    clock.start()
    take(clock, "draft", "verify", "accept")
    take(clock, "draft", "draft", "verify", "accept")
    total = clock.stop()
    assert clock.steps() == [
        {"draft": 1.0, "verify": 1.0, "accept": 1.0, "other": 3.0},
        {"draft": 2.0, "verify": 1.0, "accept": 1.0, "other": 5.0},  # one after the last accept
    ]
    assert total == {"draft": 3.0, "verify": 2.0, "accept": 2.0, "other": 8.0}


@pytest.mark.usefixtures("ticking")
def test_a_draft_launched_ahead_is_of_the_step_that_it_is_for(clock: PhaseClock) -> None:
    clock.start()
    with clock.phase("draft"):
        pass
    for _ in range(3):
        with clock.phase("verify"):
            pass
        with clock.phase("accept"):
            pass
        clock.ahead()
        with clock.phase("draft"):
            pass
        take(clock, "accept")  # the host reads the step
    total = clock.stop()
    steps = clock.steps()
    assert [step["draft"] for step in steps] == [1.0, 1.0, 1.0]
    assert [step["verify"] for step in steps] == [1.0, 1.0, 1.0]
    assert [step["accept"] for step in steps] == [2.0, 2.0, 1.0]  # the last read is after the end
    assert total == {phase: sum(step[phase] for step in steps) for phase in PHASES}
    assert total["draft"] == 3.0  # the fourth was for a step that never came


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_steps_add_up_to_the_phases(clock: PhaseClock, seed: int, ahead: bool) -> None:
    draw = random.Random(seed)
    for count in (draw.randint(1, 20), draw.randint(1, 20)):  # the second forgets the first
        clock.start()
        for _ in range(count):
            for phase in draw.sample(PHASES, draw.randint(0, 4)):
                with clock.phase(phase):
                    pass
            if ahead and draw.random() < 0.7:
                clock.ahead()
                with clock.phase("draft"):
                    pass
            clock.step()
        total = clock.stop()
        steps = clock.steps()
        assert len(steps) == count
        for phase in PHASES:
            assert sum(step[phase] for step in steps) == pytest.approx(total[phase])


@pytest.mark.usefixtures("ticking")
def test_without_steps_there_are_none(clock: PhaseClock) -> None:
    clock.start()
    clock.stop()
    assert clock.steps() == []


@pytest.mark.usefixtures("ticking")
def test_a_quiet_clock_reads_nothing(clock: PhaseClock) -> None:
    clock.quiet = True
    clock.start()
    with clock.phase("verify"):
        pass
    clock.step()
    clock.ahead()
    clock.step()
    assert clock.stop() == dict.fromkeys(PHASES, 0.0)
    assert clock.steps() == [dict.fromkeys(PHASES, 0.0)] * 2
    assert time.perf_counter() == 0.0  # the first reading
