"""Agreement and perplexity of lossy methods."""

import math
from typing import Any

import pytest
import torch

from bench.audit import quality as audit_quality
from bench.targets import synthetic


def answer(*ids: int, **changes: Any) -> dict[str, Any]:
    base = {"prompt_id": "1", "turn": 1, "repeat": 0, "prompt_sha256": "p"}
    return {**base, "output_ids": list(ids), **changes}


def quality(*pairs: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """With a surprise of 1 nat for each id 1, and 3 for any other."""
    return audit_quality.quality(
        pairs, lambda record: sum(1.0 if one == 1 else 3.0 for one in record["output_ids"])
    )


@pytest.mark.parametrize(
    ("ids", "expected", "share"),
    [
        ([1, 2], [1, 2], 1),
        ([1, 2], [1, 3], 0.5),
        ([4, 2], [1, 2], 0),
        ([1, 2], [1, 2, 3, 4], 0.5),
        ([1, 2, 3, 4, 5], [1, 2, 9], 0.4),
    ],
)
def test_agreement_is_the_common_start_of_the_longer_answer(
    ids: list[int], expected: list[int], share: float
) -> None:
    assert audit_quality.share(ids, expected) == audit_quality.share(expected, ids) == share


def test_the_figures_of_a_row() -> None:
    found = quality(
        (answer(1, 1), answer(1, 1)),
        (answer(1, 2), answer(1, 1, repeat=1)),
        (answer(2, 2, 2, 2, turn=2), answer(1, 2, turn=2)),
    )
    assert found["answers"] == 3
    assert found["agreement"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["equal_answers"] == pytest.approx(1 / 3)
    assert found["reference_agreement"] == 1  # the repeats of turn 1 are equal, turn 2 has one
    assert found["perplexity"] == pytest.approx(math.exp((2 + 4 + 12) / 8))
    assert found["reference_perplexity"] == pytest.approx(math.exp((2 + 2 + 4) / 6))


def test_what_chance_leaves_needs_a_second_repeat() -> None:
    one = (answer(1, 2, 3, 4), answer(1, 2, 3, 4))
    assert quality(one)["reference_agreement"] is None
    other = (answer(1, 2, 3, 4), answer(1, 9, 3, 4, repeat=1))
    assert quality(one, other)["reference_agreement"] == 0.25


def test_surprise_is_that_of_the_models_own_distribution() -> None:
    model, _ = synthetic.build("synthetic:predictable", "cpu", torch.float32)
    prompt, ids = [1, 2, 3], [7, 7, 8, 9]
    total = 0.0
    for at, token in enumerate(ids):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + ids[:at]])).logits[0, -1]
        total -= float(logits.double().log_softmax(dim=-1)[token])
    assert audit_quality.surprise(model, prompt, ids) == pytest.approx(total, rel=1e-5)
    assert audit_quality.forced_logits(model, prompt, ids).shape == (4, logits.shape[0])
