"""Acceptance by depth, with numbers worked out by hand."""

import pytest

from reports.measures import acceptance
from reports.measures.depths import DEEPEST, by_depth, by_tokens
from tests.reports.fabricate import record
from tests.reports.frames import frame


def test_depths_are_shares_of_steps() -> None:
    """Of 8 steps 4 accept one drafted token or more, 2 two, 1 three."""
    lengths = [1, 1, 1, 1, 2, 2, 3, 4]
    table = acceptance.accepted(frame([record("fast", accept_lengths=lengths, max_new_tokens=64)]))
    found = by_depth(table)
    assert found["depth"].tolist() == [1, 2, 3]
    assert found["reached"].tolist() == [0.5, 0.25, 0.125]
    assert found["onward"].tolist() == [0.5, 0.5, 0.5]
    shares = by_tokens(table)
    assert shares.set_index("tokens")["share"].to_dict() == {1: 0.5, 2: 0.25, 3: 0.125, 4: 0.125}


def test_long_steps_share_the_last_bins() -> None:
    lengths = [1, 9, 20]
    table = acceptance.accepted(frame([record("fast", accept_lengths=lengths, max_new_tokens=64)]))
    assert by_tokens(table)["share"].tolist() == pytest.approx([1 / 3, *[0] * 6, 2 / 3])
    depths = by_depth(table)
    assert depths["depth"].max() == DEEPEST
    assert depths["reached"].tolist() == pytest.approx([2 / 3] * 8)
