"""Accepted length, with numbers worked out by hand."""

import numpy as np
import pytest

from reports.measures import acceptance
from tests.reports.fabricate import record
from tests.reports.frames import frame, row


def test_accepted_length_is_tokens_by_steps() -> None:
    lines = [
        record("fast", prompt_id=1, accept_lengths=[3, 1], drafted=12),
        record("fast", prompt_id=2, accept_lengths=[5, 1, 1], drafted=18),
        record("fast", prompt_id=3, accept_lengths=[], drafted=0, draft_parameters=9),
    ]
    found = row(acceptance.accepted(frame(lines)), "fast")
    assert found["accepted"] == pytest.approx(11 / 5)
    assert found["drafted_only"] == pytest.approx(6 / 5)
    assert found["histogram"] == {1: 3, 3: 1, 5: 1}
    assert found["verify_steps"] == 5
    assert found["nodes_per_step"] == pytest.approx(30 / 5)
    assert found["draft_parameters"] == 9
    assert found["low"] <= found["accepted"] <= found["high"]


def test_nodes_are_of_the_records_that_know_them() -> None:
    lines = [
        record("fast", prompt_id=1, accept_lengths=[4], drafted=None),
        record("fast", prompt_id=2, accept_lengths=[2, 2], drafted=10),
    ]
    assert row(acceptance.accepted(frame(lines)), "fast")["nodes_per_step"] == 5.0
    unknown = acceptance.accepted(frame(lines[:1]))
    assert np.isnan(row(unknown, "fast")["nodes_per_step"])
