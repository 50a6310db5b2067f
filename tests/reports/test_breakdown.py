"""Where speedups come from, against numbers worked out by hand."""

import numpy as np
import pytest

from reports.measures import breakdown as parts
from reports.measures import metrics
from reports.read.repetition import repetition
from tests.reports.fabricate import Record, duel, failure, record, stock
from tests.reports.frames import frame, row


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
    (found,) = parts.factors(frame(lines)).to_dict("records")
    assert found["speedup"] == pytest.approx(1.0)
    assert found["accepted"] == pytest.approx(2.0)
    assert (found["ref_ms"], found["step_ms"]) == (pytest.approx(1000), pytest.approx(1600))
    assert found["cheaper"] == pytest.approx(1 / 1.6)
    assert found["product"] == pytest.approx(1.25)
    assert found["remainder"] == pytest.approx(1 / 1.25 - 1)
    assert np.isnan(found["accepted_low"])  # one question


def test_factors_are_of_methods_with_times_by_phase() -> None:
    lines = [*duel(), stock(prompt_id=1, prompt_sha256="01"), failure("slow", "boom")]
    table = parts.factors(frame(lines))
    assert table["label"].tolist() == ["fast(n=3)"]
    assert table["cheaper_low"].item() == pytest.approx(table["cheaper"].item())
    assert parts.factors(frame(duel(model="synthetic:llama-7b"))).empty


def test_questions_one_by_one_and_how_they_spread() -> None:
    lines = duel(repeats=1)
    for line in lines:
        if line["method"] == "fast":
            question = line["prompt_id"]
            line["accept_lengths"] = [[1, 1, 1, 1], [2, 2], [3, 1], [4]][question]
            line["decode_s"] = [8.0, 4.0, 4.0, 2.0][question]
    single = parts.questions(frame(lines))
    assert single["speedup"].tolist() == [0.5, 1.0, 1.0, 2.0]
    assert single["accepted"].tolist() == [1.0, 2.0, 2.0, 4.0]
    (found,) = parts.spread(single).to_dict("records")
    assert (found["slowest"], found["slowest_id"]) == (0.5, 0)
    assert (found["fastest"], found["fastest_id"]) == (2.0, 3)
    assert (found["median"], found["slower"], found["count"]) == (1.0, 1, 4)
    assert found["correlation"] == pytest.approx(1.0)


def test_a_question_alone_has_no_correlation() -> None:
    (found,) = parts.spread(parts.questions(frame(duel(questions=1)))).to_dict("records")
    assert (found["slowest"], found["fastest"]) == (2.0, 2.0)
    assert np.isnan(found["correlation"])


def test_depths_are_shares_of_steps() -> None:
    """Of 8 steps 4 accept one drafted token or more, 2 two, 1 three."""
    lengths = [1, 1, 1, 1, 2, 2, 3, 4]
    table = metrics.accepted(frame([record("fast", accept_lengths=lengths, max_new_tokens=64)]))
    found = parts.by_depth(table)
    assert found["depth"].tolist() == [1, 2, 3]
    assert found["reached"].tolist() == [0.5, 0.25, 0.125]
    assert found["onward"].tolist() == [0.5, 0.5, 0.5]
    shares = parts.by_tokens(table)
    assert shares.set_index("tokens")["share"].to_dict() == {1: 0.5, 2: 0.25, 3: 0.125, 4: 0.125}


def test_long_steps_share_the_last_bins() -> None:
    lengths = [1, 9, 20]
    table = metrics.accepted(frame([record("fast", accept_lengths=lengths, max_new_tokens=64)]))
    assert parts.by_tokens(table)["share"].tolist() == pytest.approx([1 / 3, *[0] * 6, 2 / 3])
    depths = parts.by_depth(table)
    assert depths["depth"].max() == parts.DEEPEST
    assert depths["reached"].tolist() == pytest.approx([2 / 3] * 8)


def test_positions_are_those_of_a_step_s_first_token() -> None:
    """Prefill gives token 0; steps start at 1, 3 and 33."""
    line = record("fast", accept_lengths=[2, 30, 4], max_new_tokens=64)
    found = parts.by_position(frame([line, record(prompt_id=2)]))
    assert found["label"].unique().tolist() == ["fast"]
    assert found["bin"].tolist() == [0, 1]
    assert found["accepted"].tolist() == [16.0, 4.0]
    assert found["steps"].tolist() == [2, 1]
    assert [parts.name_of(parts.POSITIONS, at) for at in (0, 1, 7)] == [
        "1–32",
        "33–64",
        "2,049 and more",
    ]


def test_contexts_count_the_prompt_too() -> None:
    """A prompt of 60 tokens: the steps know 61 and 65."""
    line = record("fast", accept_lengths=[4, 2], prompt_tokens=60, max_new_tokens=64)
    found = parts.by_context(frame([line]))
    assert found[["bin", "accepted", "steps"]].values.tolist() == [[0, 4.0, 1], [1, 2.0, 1]]


def test_speedup_by_the_length_of_the_prompt() -> None:
    lines = duel(repeats=1)
    for line in lines:
        line["prompt_tokens"] = 100 if line["prompt_id"] else 10
        if line["method"] == "fast" and not line["prompt_id"]:
            line["decode_s"] = 1.0
    table = parts.by_prompt(frame(lines))
    assert row(table, "fast(n=3)", bin=0)["speedup"] == pytest.approx(4.0)
    assert row(table, "fast(n=3)", bin=1)["speedup"] == pytest.approx(2.0)
    assert row(table, "fast(n=3)", bin=1)["prompts"] == 3


def test_repetition_is_the_share_of_4_grams_seen_before() -> None:
    assert repetition([1, 2, 3, 4, 5, 6]) == 0.0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert repetition([7] * 10) == pytest.approx(1 - 1 / 7)
    assert repetition([1, 2, 3]) == repetition([]) == 0.0


def test_loops_flatter_a_method() -> None:
    """Of 4 questions 1 loops: there the method gains 4 times, elsewhere nothing."""
    lines: list[Record] = duel(repeats=1)
    for line in lines:
        loops = line["prompt_id"] == 0
        line["output_ids"] = [7] * 5 if loops else [1, 2, 3, 4, 5]
        if line["method"] == "fast":
            line["accept_lengths"] = [4] if loops else [2, 2]
            line["decode_s"] = 1.0 if loops else 4.0
    table = frame(lines)
    found = row(parts.loops(table, metrics.speedup(table)), "fast(n=3)")
    assert found["repetition"] == pytest.approx(0.5 / 4)
    assert (found["repeating"], found["answers"]) == (0.25, 4)
    assert (found["accepted_repeating"], found["accepted_other"]) == (4.0, 2.0)
    assert found["non_repeating"] == pytest.approx(1.0)
    assert found["loops"] == pytest.approx(16 / 13 - 1)


def test_no_good_record_gives_empty_tables() -> None:
    table = frame([failure("fast", "boom")])
    for measure in (parts.factors, parts.questions, parts.by_position, parts.by_context):
        assert measure(table).empty
    assert parts.by_prompt(table).empty
    assert parts.spread(parts.questions(table)).empty
    assert parts.by_depth(metrics.accepted(table)).empty
    assert parts.loops(table, metrics.speedup(table)).empty
