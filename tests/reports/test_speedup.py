"""Speedup, with numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.records import runs as records
from reports.measures import acceptance, shares, speedup
from reports.read.preparation import prepare
from tests.reports.fabricate import Record, duel, record, stock, write_run
from tests.reports.frames import frame, row


def test_speedup_is_a_ratio_of_sums_over_pairs() -> None:
    lines = [
        record(prompt_id=1, prompt_sha256="a", decode_s=4.0),  # 4 tokens, 1 s a token
        record(prompt_id=2, prompt_sha256="b", accept_lengths=[1, 1], decode_s=4.0),  # 2 s a token
        record("fast", prompt_id=1, prompt_sha256="a", accept_lengths=[4], decode_s=1.0),
        record("fast", prompt_id=2, prompt_sha256="b", accept_lengths=[2], decode_s=2.0),
    ]
    found = row(speedup.speedup(frame(lines)), "fast")
    assert found["speedup"] == pytest.approx((8 / 6) / (3 / 6))
    assert found["median"] == pytest.approx((4 + 2) / 2)
    assert found["end_to_end"] == pytest.approx((10 / 8) / (5 / 8))  # prefill's second and token
    assert found["tokens_per_s"] == pytest.approx(6 / 3)
    assert (found["pairs"], found["prompts"], found["repeats"]) == (2, 2, 1)


def test_speedup_weighs_tokens_where_answers_differ_in_length() -> None:
    """A sampled answer may be longer than the reference's: seconds per token are compared."""
    sampled: Record = {"temperature": 0.7}
    lines = [
        record(accept_lengths=[1, 1], decode_s=2.0, **sampled),
        record("fast", accept_lengths=[3, 3], decode_s=3.0, **sampled),
    ]
    assert row(speedup.speedup(frame(lines)), "fast")["speedup"] == pytest.approx(2.0)


def test_answers_of_one_token_are_left_out_and_counted() -> None:
    """An answer that ends with prefill's token has no decode seconds per token."""
    end: Record = {"prompt_id": 2, "prompt_sha256": "b", "accept_lengths": [], "decode_s": 0.0}
    lines = [*duel(questions=1, repeats=1), record(**end), record("fast", **end, params={"n": 3})]
    found = row(speedup.speedup(frame(lines)), "fast(n=3)")
    assert found["speedup"] == pytest.approx(2.0)
    assert (found["pairs"], found["prompts"], found["one_token"]) == (1, 1, 1)
    assert found["end_to_end"] == pytest.approx((6 / 6) / (4 / 6))  # its prefill counts here


@pytest.mark.parametrize("short", ["autoregressive", "fast"])
def test_one_side_of_one_token_leaves_the_pair_out(short: str) -> None:
    """Sampled answers may end at once on one side only."""
    lines = duel(temperature=0.7)
    for line in lines:
        if line["prompt_id"] == 0 and line["method"] == short:
            line |= {"accept_lengths": [], "new_tokens": 1, "decode_s": 0.5}
    found = row(speedup.speedup(frame(lines)), "fast(n=3)")
    assert found["speedup"] == pytest.approx(2.0)
    assert (found["pairs"], found["one_token"]) == (6, 2)


def test_records_without_a_reference_are_left_out_and_counted() -> None:
    lines = duel(questions=2, repeats=1)
    lone = record("fast", prompt_id=9, prompt_sha256="zz", params={"n": 3}, decode_s=1000.0)
    found = row(speedup.speedup(frame([*lines, lone])), "fast(n=3)")
    assert found["speedup"] == pytest.approx(2.0)
    assert (found["pairs"], found["unpaired"]) == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "other"},
        {"turn": 2},
        {"repeat": 1},
        {"prompt_sha256": "bb"},
        {"prompt_id": 2},
        {"dataset": "other"},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"engine": "graph"},
        {"temperature": 0.7},
        {"max_new_tokens": 16},
        {"model": "other"},
        {"package_version": "0.2.0"},
    ],
)
def test_nothing_is_paired_across(change: Record) -> None:
    lines = [record(), record("fast", **change)]
    found = row(speedup.speedup(frame(lines)), "fast")
    assert np.isnan(found["speedup"])
    assert np.isnan(found["end_to_end"])
    assert (found["pairs"], found["unpaired"]) == (0, 1)


def test_each_run_is_compared_with_its_own_reference() -> None:
    slow = [line | {"run": "b", "decode_s": 3 * line["decode_s"]} for line in duel()]
    quick = [line | {"run": "a"} for line in duel()]
    table = speedup.speedup(frame([*quick, *slow]))
    assert row(table, "fast(n=3)", run="a")["speedup"] == pytest.approx(2.0)
    assert row(table, "fast(n=3)", run="b")["speedup"] == pytest.approx(2.0)


def test_stock_generate_is_held_against_the_eager_reference() -> None:
    lines = [
        record(engine="graph", decode_s=1.0),
        record(engine="eager", decode_s=4.0),
        stock(decode_s=8.0),
    ]
    found = row(speedup.speedup(frame(lines)), "transformers_generate")
    assert found["speedup"] == pytest.approx(0.5)
    only = row(speedup.speedup(frame([lines[0], lines[2]])), "transformers_generate")
    assert only["speedup"] == pytest.approx(1 / 8)
    assert np.isnan(row(acceptance.accepted(frame(lines)), "transformers_generate")["accepted"])
    assert np.isnan(row(shares.shares(frame(lines)), "transformers_generate")["verify"])


def test_the_reference_is_one_by_definition() -> None:
    table = frame(duel())
    found = row(speedup.speedup(table), "autoregressive")
    assert found[["speedup", "median", "end_to_end"]].tolist() == [1.0, 1.0, 1.0]
    assert np.isnan(found["low"])
    assert row(acceptance.accepted(table), "autoregressive")["accepted"] == 1.0
    assert speedup.speedup(table)["label"].tolist() == ["autoregressive", "fast(n=3)"]


def test_temperatures_and_parameters_make_rows_of_their_own() -> None:
    lines = [*duel(), *duel(temperature=0.7), record("fast", params={"n": 4})]
    table = speedup.speedup(frame(lines))
    assert len(table) == 5
    assert row(table, "fast(n=3)", temperature=0.7)["pairs"] == 8


def test_a_turn_kept_twice_counts_with_its_newest_record() -> None:
    older = record("fast", decode_s=100.0, seed=0, checkpoint_sha256="aa")
    newer = record("fast", decode_s=1.0, seed=1, checkpoint_sha256="aa")
    other = record("fast", decode_s=2.0, checkpoint_sha256="bb")
    table = speedup.speedup(frame([record(), older, newer, other]))
    fast = table[table["label"] == "fast"].set_index("checkpoint_sha256")
    assert fast["speedup"].to_dict() == {"aa": pytest.approx(4.0), "bb": pytest.approx(2.0)}
    assert fast["pairs"].tolist() == [1, 1]


def test_interval_draws_questions_and_is_the_same_every_time() -> None:
    generator = np.random.default_rng(0)
    lines = []
    for question in range(12):
        same: Record = {"prompt_id": question, "prompt_sha256": str(question)}
        lines += [record(**same), record("fast", decode_s=generator.uniform(1, 3), **same)]
    found, again = (row(speedup.speedup(frame(lines)), "fast") for _ in range(2))
    assert found["low"] < found["speedup"] < found["high"]
    assert (found["low"], found["high"]) == (again["low"], again["high"])
    copies = [line | {"repeat": repeat} for line in lines for repeat in range(5)]
    repeated = row(speedup.speedup(frame(copies)), "fast")
    assert repeated["low"] == pytest.approx(found["low"])  # five times the records, not the facts
    assert repeated["high"] == pytest.approx(found["high"])


def test_a_single_question_has_no_interval() -> None:
    found = row(speedup.speedup(frame(duel(questions=1, repeats=6))), "fast(n=3)")
    assert found["speedup"] == pytest.approx(2.0)
    assert np.isnan(found["low"])
    assert np.isnan(found["high"])


def test_end_to_end_and_shares_have_intervals_too() -> None:
    lines = duel(questions=6)
    for line in lines:
        line["prefill_s"] += 0.1 * line["prompt_id"]
        line["phase_s"] = line["phase_s"] | {"draft": 0.1 * line["prompt_id"]}
    found = row(speedup.speedup(frame(lines)), "fast(n=3)")
    assert found["end_to_end_low"] < found["end_to_end"] < found["end_to_end_high"]
    share = row(shares.shares(frame(lines)), "fast(n=3)")
    assert 0 < share["low"] < share["verify"] < share["high"] < 1


def test_speedup_on_answers_that_do_not_repeat_themselves() -> None:
    """Question 0 loops for both, question 1 for the method alone; 2 and 3 are left."""
    lines = duel(repeats=1)
    for line in lines:
        fast, question = line["method"] == "fast", line["prompt_id"]
        loops = question == 0 or (question == 1 and fast)
        line["output_ids"] = [7] * 5 if loops else [1, 2, 3, 4, question]
        if fast:
            line["decode_s"] = 1.0 if question < 2 else 4.0
    found = row(speedup.speedup(frame(lines)), "fast(n=3)")
    assert found["speedup"] == pytest.approx(16 / 10)
    assert (found["non_repeating"], found["non_repeating_pairs"]) == (pytest.approx(1.0), 2)


def test_a_draft_s_size_stands_beside_its_speedup() -> None:
    lines = [record(), record("fast", draft_parameters=9)]
    found = row(speedup.speedup(frame(lines)), "fast")
    assert found["draft_parameters"] == 9


def test_records_of_another_minor_version_and_mixed_question_names(tmp_path: Path) -> None:
    lines = [line | {"schema": "1.7", "novelty": {"deep": [1]}} for line in duel()]
    for line in lines:
        line["prompt_id"] = "one" if line["prompt_id"] == 1 else line["prompt_id"]
        line["key"] += json.dumps(line["prompt_id"])
    folder = write_run(tmp_path / "run", lines)
    found = row(speedup.speedup(prepare(records.frame([folder]))), "fast(n=3)")
    assert found["speedup"] == pytest.approx(2.0)
    assert found["prompts"] == 4
