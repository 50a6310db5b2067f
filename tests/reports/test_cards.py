"""The reference on several cards."""

from pathlib import Path

import numpy as np
import pytest

from reports import build
from reports.measures.cards import cards
from tests.reports.fabricate import Record, record, write_run
from tests.reports.frames import frame

NAMES = ("GPU-00000001", "GPU-00000002", "GPU-00000003")
WARNING = "The reference&#39;s speed differs between cards by more than its noise"


def measured(slower: float, names: tuple[str | None, ...] = NAMES) -> list[Record]:
    """The reference and a method over 36 questions; the last card is slower by a factor."""
    noise, lines = np.random.default_rng(0), []
    for question in range(36):
        card = names[question % len(names)]
        factor = slower if card == names[-1] else 1.0
        for repeat in range(2):
            same = {"prompt_id": question, "prompt_sha256": f"{question:x}", "repeat": repeat}
            same |= {"schema": "1.3", "card": card, "rank": 0}
            for name, seconds in (("autoregressive", 4.0), ("fast", 2.0)):
                spent = seconds * factor * noise.uniform(0.99, 1.01)
                lines.append(record(name, decode_s=spent, **same))
    return lines


def test_a_slow_card_is_told_from_the_others() -> None:
    table = cards(frame(measured(1.1))).set_index("card")
    assert list(table.index) == list(NAMES)
    assert table.loc[NAMES[2], "others"] == pytest.approx(1.1, rel=0.01)
    assert table.loc[NAMES[2], "ms"] == pytest.approx(1100, rel=0.01)  # 4 tokens in 4.4 s
    assert table["prompts"].to_list() == [12, 12, 12]
    assert table["differs"][NAMES[2]]
    assert table["p"][NAMES[2]] < 1e-6


def test_equal_cards_are_within_the_noise() -> None:
    assert not cards(frame(measured(1.0)))["differs"].any()


@pytest.mark.parametrize("names", [("GPU-00000001",), (None,)])
def test_one_card_has_nothing_beside_it(names: tuple[str | None, ...]) -> None:
    assert cards(frame(measured(1.0, names))).empty


def test_the_page_warns_of_cards_that_differ(tmp_path: Path) -> None:
    for slower in (1.0, 1.1):
        page = build.render(build.load([write_run(tmp_path / str(slower), measured(slower))]))
        assert (WARNING in page) == (slower > 1)
        assert "The reference on each card" in page
        assert NAMES[1] in page
