"""What engine exact costs: plain decoding on both engines, turn by turn."""

import pytest

from reports.measures.price import price
from reports.sections import outputs
from tests.reports.fabricate import Record, duel
from tests.reports.frames import frame
from tests.reports.test_sections import page_of, words


def slower(lines: list[Record], times: float) -> list[Record]:
    return [line | {"decode_s": times * line["decode_s"]} for line in lines]


def test_the_price_is_of_the_reference_on_the_turns_that_both_have() -> None:
    exact = slower(duel(questions=4, engine="exact", run="other"), 1.5)
    (row,) = price(frame([*duel(questions=9, engine="compile"), *exact])).to_dict("records")
    assert (row["model"], row["dataset"], row["questions"]) == ("tiny", "mini", 4)
    assert row["price"] == pytest.approx(1.5)
    assert (row["exact_ms"], row["compile_ms"]) == pytest.approx((1500, 1000))
    assert row["low"] <= 1.5 <= row["high"]


@pytest.mark.parametrize(
    "lines",
    [
        duel(engine="exact"),
        [*duel(engine="exact"), *duel(engine="eager")],
        [*duel(engine="exact"), *duel(engine="compile", prompt_sha256="ff")],
        [*duel(engine="exact"), *duel(engine="compile", dtype="bfloat16")],
    ],
    ids=["alone", "another engine", "other prompts", "another precision"],
)
def test_there_is_no_price_without_the_same_turns_on_both(lines: list[Record]) -> None:
    assert price(frame(lines)).empty


def test_the_price_stands_beside_the_match_rates() -> None:
    lines = [*duel(engine="compile"), *slower(duel(engine="exact"), 1.25)]
    section = outputs.section(page_of(lines))
    said = "plain decoding takes 1.25× on mini (tiny, 1250.000 ms a token against 1000.000)"
    assert said in section.lead
    assert section.tables[0].caption.startswith("Price of exact")
    assert "1.25×" in words(section)
    assert "Price of exact" in [term for term, _ in section.definitions]
    assert "price" not in outputs.section(page_of(duel(engine="exact"))).lead
