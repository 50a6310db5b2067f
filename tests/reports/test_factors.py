"""The factors of a speedup, with numbers worked out by hand."""

import numpy as np
import pytest

from reports.measures import (
    factors,
)
from tests.reports.fabricate import duel, failure, record, stock
from tests.reports.frames import frame


def test_speedup_is_accepted_length_by_what_a_step_costs() -> None:
    """The reference's loop takes 1 s a token; the method's two steps of 2 tokens 1.6 s each, by
    its phases; by the host's clock 4 s and 4 s."""
    lines = [
        record(decode_s=4.0, phase_s={"draft": 0, "verify": 3.5, "accept": 0, "other": 0.5}),
        record(
            "fast",
            accept_lengths=[2, 2],
            decode_s=4.0,
            phase_s={"draft": 1, "verify": 2, "accept": 0.1, "other": 0.1},
        ),
    ]
    (found,) = factors.factors(frame(lines)).to_dict("records")
    assert found["speedup"] == pytest.approx(1.0)
    assert found["accepted"] == pytest.approx(2.0)
    assert (found["ref_ms"], found["step_ms"]) == (pytest.approx(1000), pytest.approx(1600))
    assert found["cheaper"] == pytest.approx(1 / 1.6)
    assert found["product"] == pytest.approx(1.25)
    assert found["remainder"] == pytest.approx(1 / 1.25 - 1)
    assert np.isnan(found["accepted_low"])  # one question


def test_factors_are_of_methods_with_times_by_phase() -> None:
    lines = [*duel(), stock(prompt_id=1, prompt_sha256="01"), failure("slow", "boom")]
    table = factors.factors(frame(lines))
    assert table["label"].tolist() == ["fast(n=3)"]
    assert table["cheaper_low"].item() == pytest.approx(table["cheaper"].item())
    assert factors.factors(frame(duel(model="synthetic:llama-7b"))).empty
