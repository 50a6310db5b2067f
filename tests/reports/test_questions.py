"""Speedup by question, with numbers worked out by hand."""

import numpy as np
import pytest

from reports.measures import (
    questions,
)
from tests.reports.fabricate import duel
from tests.reports.frames import frame


def test_questions_one_by_one_and_how_they_spread() -> None:
    lines = duel(repeats=1)
    for line in lines:
        if line["method"] == "fast":
            question = line["prompt_id"]
            line["accept_lengths"] = [[1, 1, 1, 1], [2, 2], [3, 1], [4]][question]
            line["decode_s"] = [8.0, 4.0, 4.0, 2.0][question]
    single = questions.questions(frame(lines))
    assert single["speedup"].tolist() == [0.5, 1.0, 1.0, 2.0]
    assert single["accepted"].tolist() == [1.0, 2.0, 2.0, 4.0]
    (found,) = questions.spread(single).to_dict("records")
    assert (found["slowest"], found["slowest_id"]) == (0.5, 0)
    assert (found["fastest"], found["fastest_id"]) == (2.0, 3)
    assert (found["median"], found["slower"], found["count"]) == (1.0, 1, 4)
    assert found["correlation"] == pytest.approx(1.0)


def test_a_question_alone_has_no_correlation() -> None:
    (found,) = questions.spread(questions.questions(frame(duel(questions=1)))).to_dict("records")
    assert (found["slowest"], found["fastest"]) == (2.0, 2.0)
    assert np.isnan(found["correlation"])
