"""The verification share, with numbers worked out by hand."""

import pytest

from reports.measures import shares
from tests.reports.fabricate import record
from tests.reports.frames import frame, row


def test_shares_are_of_sums() -> None:
    lines = [
        record(
            "fast",
            prompt_id=1,
            accept_lengths=[2, 2],
            phase_s={"draft": 1, "verify": 6, "accept": 1, "other": 0},
        ),
        record(
            "fast",
            prompt_id=2,
            accept_lengths=[4],
            phase_s={"draft": 1, "verify": 0, "accept": 0, "other": 1},
        ),
    ]
    found = row(shares.shares(frame(lines)), "fast")
    parts = [found[name] for name in ("draft", "verify", "accept", "other")]
    assert parts == pytest.approx([0.2, 0.6, 0.1, 0.1])
    assert found["verify_ms"] == pytest.approx(2000)
    assert found["loop_ms"] == pytest.approx(10000 / 3)
