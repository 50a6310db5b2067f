"""What may be said of differences, on records made by hand."""

from typing import Any

import numpy as np
import pytest

from reports.measures import acceptance, shares, significance, speedup
from tests.reports.fabricate import Record, duel, record, stock
from tests.reports.frames import frame, row

METHODS = {"a": 1.0, "b": 2.0, "c": 2.01}  # seconds, before the noise


def raced(methods: dict[str, float], questions: int = 12, **changes: Any) -> list[Record]:
    """The reference at 4 s an answer and methods at others, with noise of a tenth by question."""
    noise = np.random.default_rng(0)
    lines = []
    for question in range(questions):
        for repeat in range(3):
            same: Record = {"prompt_id": question, "prompt_sha256": f"{question:x}"}
            same |= {"repeat": repeat, **changes}
            lines.append(record(**same))
            lines += [
                record(name, decode_s=seconds * noise.uniform(0.9, 1.1), **same)
                for name, seconds in methods.items()
            ]
    return lines


def test_each_method_stands_beside_the_fastest() -> None:
    table = speedup.speedup(frame(raced(METHODS)))
    assert row(table, "a")["fastest"]
    assert row(table, "b")["beside"] == pytest.approx(0.5, rel=0.05)
    assert not row(table, "b")["peer"]
    assert not row(table, "autoregressive")["peer"]
    assert np.isnan(row(table, "a")["beside"])


def test_methods_that_cannot_be_told_apart_say_so() -> None:
    table = speedup.speedup(frame(raced({"b": 2.0, "c": 2.01})))
    fastest, other = (row(table, name) for name in ("b", "c"))
    if other["fastest"]:
        fastest, other = other, fastest
    assert fastest["fastest"]
    assert other["peer"]
    assert other["beside_low"] < 1 < other["beside_high"]
    assert "not distinguishable from the fastest" in significance.marks(other.to_dict())
    assert significance.marks(fastest.to_dict()) == []


def test_panels_have_fastest_methods_of_their_own() -> None:
    lines = [*raced({"a": 1.0, "b": 2.0}), *raced({"a": 2.0, "b": 1.0}, temperature=0.7)]
    table = speedup.speedup(frame(lines))
    assert row(table, "a", temperature=0.0)["fastest"]
    assert row(table, "b", temperature=0.7)["fastest"]


@pytest.mark.parametrize("kind", ["lossy", "stock", "defective"])
def test_some_are_never_the_fastest(kind: str) -> None:
    lines = raced({"a": 1.0, "b": 2.0})
    if kind == "lossy":
        lines = [line | {"lossless": line["method"] != "a"} for line in lines]
    if kind == "stock":
        lines = [line for line in lines if line["method"] != "a"] + [
            stock(**{name: line[name] for name in ("prompt_id", "prompt_sha256", "repeat")})
            | {"decode_s": 1.0}
            for line in lines
            if line["method"] == "a"
        ]
    name = ("run", "tiny", "eager", "float32", "mini", 0.0, "a")
    table = speedup.speedup(frame(lines), {name} if kind == "defective" else ())
    assert table.loc[table["fastest"], "label"].tolist() == ["b"]
    compared = set(table.loc[table["beside"].notna(), "label"])
    assert (
        compared == {"lossy": set(), "stock": {"transformers_generate"}, "defective": {"a"}}[kind]
    )


def test_a_method_as_fast_as_the_reference_says_so() -> None:
    table = speedup.speedup(frame(raced({"even": 4.0, "fast": 2.0})))
    even, fast, reference = (row(table, name) for name in ("even", "fast", "autoregressive"))
    assert not even["distinct"]
    assert "not distinguishable from the reference" in significance.marks(even.to_dict())
    assert fast["distinct"]
    assert fast["p"] < 0.001
    assert np.isnan(reference["p"])
    assert significance.marks(reference.to_dict()) == []


def test_more_rows_make_a_difference_harder_to_find() -> None:
    """Holm: the smallest of k values of p counts k times."""
    one = speedup.speedup(frame(raced({"m": 3.9})))
    many = speedup.speedup(frame(raced({"m": 3.9, **{f"even{i}": 4.0 for i in range(4)}})))
    assert row(one, "m")["p"] < row(many, "m")["p"] <= 1


def test_few_measurements_are_marked() -> None:
    found = row(speedup.speedup(frame(duel())), "fast(n=3)").to_dict()
    assert significance.few(found) == ["2 repeats", "4 questions"]
    assert "only 2 repeats and 4 questions" in significance.marks(found)
    enough = row(speedup.speedup(frame(duel(questions=8, repeats=3))), "fast(n=3)").to_dict()
    assert significance.marks(enough) == []
    single = row(speedup.speedup(frame(duel(questions=1, repeats=1))), "fast(n=3)").to_dict()
    assert significance.marks(single) == ["only 1 repeat and 1 question"]


def test_rows_of_other_tables_have_no_marks() -> None:
    for measure in (acceptance.accepted, shares.shares):
        for line in measure(frame(duel())).to_dict("records"):
            assert significance.marks(line) == []


def drifting(by: float) -> list[Record]:
    lines = raced({}, questions=10)
    noise = np.random.default_rng(1)
    for line in lines:
        line["decode_s"] *= noise.uniform(0.99, 1.01) * (by if line["repeat"] == 2 else 1)
    return lines


def test_drift_is_the_reference_s_last_repeat_over_its_first() -> None:
    (found,) = significance.drift(frame(drifting(1.1))).to_dict("records")
    assert found["drift"] == pytest.approx(1.1, rel=0.01)
    assert found["last_ms"] / found["first_ms"] == pytest.approx(found["drift"])
    assert (found["first"], found["last"], found["prompts"]) == (0, 2, 10)
    assert 1 < found["low"] < found["high"]
    assert found["drifted"]
    reference = row(speedup.speedup(frame(drifting(1.1))), "autoregressive")
    assert reference["drift"] == found["drift"]
    (mark,) = significance.marks(reference.to_dict())
    assert mark.startswith("drifted by +")


def test_noise_is_no_drift() -> None:
    (found,) = significance.drift(frame(drifting(1.0))).to_dict("records")
    assert not found["drifted"]
    assert found["low"] < 1 < found["high"]


def test_drift_needs_two_repeats_of_one_turn() -> None:
    assert significance.drift(frame(duel(repeats=1))).empty
    apart = [record(prompt_id=1), record(prompt_id=2, repeat=1)]
    assert significance.drift(frame(apart)).empty
    (alone,) = significance.drift(frame(duel(questions=1))).to_dict("records")
    assert np.isnan(alone["low"])
    assert not alone["drifted"]
