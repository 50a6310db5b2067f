"""The final: the best settings of every method on new questions, and the fastest of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench import statistics
from bench.errors import UsageError
from bench.questions.history import Prompt
from bench.records.tuned import Point
from bench.tune.measuring import Answer, Candidate, Measurer, total


def measured(
    measure: Measurer, finalists: Sequence[Candidate], prompts: Sequence[Prompt], tokens: int
) -> dict[str, list[Answer]]:
    """The finalists' answers, by label."""
    measure.bar.title("final")
    measure.ready(finalists, prompts, tokens)
    found: dict[str, list[Answer]] = {c.method.label: [] for c in finalists}
    for number, prompt in enumerate(prompts):
        answers = measure.ask(finalists, prompt, tokens, number)
        for candidate, answer in zip(finalists, answers, strict=True):
            found[candidate.method.label].append(answer)
    return found


def point(params: Mapping[str, Any], stage: str, answers: Sequence[Answer]) -> Point:
    """The figures of the answers. UsageError where nothing was decoded."""
    sums = total(answers)
    if not (sums.steps and sums.reference_tokens):
        raise UsageError("the target ends every answer at once; nothing can be tuned on it")
    low, high = statistics.interval(np.array(answers, dtype=float), _speedups)
    known = np.isfinite([low, high]).all()
    return Point(
        params=dict(params),
        stage=stage,
        questions=len(answers),
        steps=sums.steps,
        width=sums.drafted / sums.steps + 1,
        accepted=sums.tokens / sums.steps,
        step_s=sums.seconds / sums.steps,
        reference_s=sums.reference_s / sums.reference_tokens,
        speedup=sums.speedup,
        low=low if known else None,
        high=high if known else None,
    )


def _speedups(sums: statistics.Floats) -> statistics.Floats:
    """[..., 6], each the fields of an `Answer`, to [...]; nan where nothing was decoded."""
    tokens, _, _, seconds, reference_tokens, reference_s = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: statistics.Floats = tokens * reference_s / (seconds * reference_tokens)
    return found
