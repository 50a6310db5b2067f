"""Greedy outputs compared with the reference's: a difference is a tie that rounding decided, or a
defect.

The gap is that of the two tokens' logits in float32. Float32 rows: where it is less than 1e-3, both
are decoded again in float64 and must agree there. Half precision: it is compared with the noise of
these two logits, how far their gap moves between the row's precision and float32 over the tokens
before. The noise is measured by plain forwards: an engine that is wrong must not explain itself.
Engine `exact` promises equal ids, so that every difference is a defect there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.audit import forced
from bench.records.runs import PAIRED, REFERENCE, STOCK_ENGINE, Record, label

FLOAT32_GAP = 1e-3
NOISE_TOKENS = 64  # before the difference, over which the noise of two logits is measured
# A tie's gap in half precision is at most so many times the noise. Of 180 first differences of
# correct methods (SmolLM2, H200) the median was 0.95, the largest 3.8.
NOISES = 6
TIE, DEFECT = "tie", "defect"
UNEXPLAINED = "unexplained"  # half precision without float32 forwards, as at a run's end

RowKey = tuple[str, str, str, str, str, float]
ROW_FIELDS = ("model", "engine", "dtype", "dataset", "label", "temperature")


@dataclass(frozen=True)
class Difference:
    """The first position at which a method's ids differ from the reference's."""

    record: Record
    reference: Record
    position: int | None  # None: one output is the start of the other


@dataclass(frozen=True)
class Divergence:
    """A difference explained; names are those of `audit.json`.

    Attributes:
        position: index in the answer; this and the next five are None where one answer is the start
            of the other.
        token, reference_token: what the method and the reference emitted there.
        gap: between the two tokens' logits in float32; this and the next two are None where no
            float32 forward was made.
        top2_gap: between the two best logits in float32.
        noise: the largest gap that rounding explains.
        verdict: TIE, DEFECT or UNEXPLAINED.
    """

    position: int | None
    token: int | None
    reference_token: int | None
    gap: float | None
    top2_gap: float | None
    noise: float | None
    verdict: str


def row_key(record: Record) -> RowKey:
    """The row of the audit that a record belongs to."""
    return (
        record["model"],
        record["engine"],
        record["dtype"],
        record["dataset"],
        label(record["method"], record["params"]),
        record["temperature"],
    )


def with_references(records: Sequence[Record]) -> Iterator[tuple[Record, list[Record]]]:
    """Every ok record of a method with the reference's records of the same turn, repeat,
    temperature and engine (any engine for the stock row); records without any are left out."""
    references: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    good = [record for record in records if record["status"] == "ok"]
    for record in good:
        if record["method"] == REFERENCE:
            references[_turn(record)].append(record)
    for record in good:
        paired = [
            reference
            for reference in references.get(_turn(record), ())
            if record["engine"] in (STOCK_ENGINE, reference["engine"])
        ]
        if paired and record["method"] != REFERENCE:
            yield record, paired


def differences(records: Sequence[Record]) -> Iterator[tuple[Record, Difference | None]]:
    """Every greedy record of a lossless method; None where it equals the reference's."""
    for record, references in with_references(records):
        if not record["lossless"] or record["temperature"] != 0:
            continue
        ids, expected = record["output_ids"], references[0]["output_ids"]
        equal = any(ids == reference["output_ids"] for reference in references)
        found = None if equal else Difference(record, references[0], first(ids, expected))
        yield record, found


def first(ids: Sequence[int], expected: Sequence[int]) -> int | None:
    """Index of the first unequal pair; None where there is none."""
    pairs = zip(ids, expected, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), None)


def classify(
    model: Any,
    exact: Any,
    prompt: Sequence[int],
    ids: Sequence[int],
    expected: Sequence[int],
    agree: Callable[[], bool],
) -> Divergence:
    """Explains why a method's `ids` differ from the reference's `expected`.

    Args:
        model: the plain model in the row's precision.
        exact: the same in float32.
        prompt: the prompt's ids.
        ids: the method's answer.
        expected: the reference's.
        agree: whether both give the same ids in float64; called for a small float32 gap.
    """
    position = first(ids, expected)
    if position is None:
        return without_logits(ids, expected, DEFECT)
    token, other = ids[position], expected[position]
    context = [*prompt, *expected[:position]]
    tokens = min(len(context), NOISE_TOKENS)
    found, logits = forced.gaps(exact, context, tokens, other, token)
    gap = abs(float(found[-1]))
    if model.dtype == torch.float32:
        noise = FLOAT32_GAP
        tie = gap < noise and agree()
    else:
        half, _ = forced.gaps(model, context, tokens, other, token)
        moved = float((half - found).square().mean().sqrt())
        spacing = torch.finfo(model.dtype).eps * float(logits[[token, other]].abs().max())
        noise = max(NOISES * moved, spacing)
        tie = gap <= noise
    best = logits.topk(2).values
    top2 = float(best[0] - best[1])
    verdict = TIE if tie else DEFECT
    return Divergence(position, token, other, gap, top2, noise, verdict)


def without_logits(ids: Sequence[int], expected: Sequence[int], verdict: str) -> Divergence:
    """A difference with the verdict alone."""
    position = first(ids, expected)
    if position is None:
        return Divergence(None, None, None, None, None, None, verdict)
    return Divergence(position, ids[position], expected[position], None, None, None, verdict)


def _turn(record: Record) -> tuple[Any, ...]:
    return (*(record[name] for name in PAIRED), record["temperature"])
