"""Greedy outputs compared with the reference's: a difference is a tie that rounding decided, or a
defect.

float32: where the two tokens' logits are less than 1e-3 apart, both are decoded again in float64
and must agree there. Half precision: the gap is compared with the noise at that position, the
largest change of a logit between forwards of different widths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.records.runs import PAIRED, REFERENCE, STOCK_ENGINE, Record, label

FLOAT32_GAP = 1e-3
WIDTHS = (1, 2, 16, 64)  # of the forwards whose logits give the half-precision noise
TIE, DEFECT = "tie", "defect"

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
        gap: between the two tokens' logits, the smallest of several forwards.
        top2_gap: between the reference's two best logits.
        noise: what the gap is compared with.
        verdict: TIE or DEFECT.
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
    target: TargetModel,
    prompt: Sequence[int],
    ids: Sequence[int],
    expected: Sequence[int],
    agree: Callable[[], bool],
) -> Divergence:
    """Explains why a method's `ids` differ from the reference's `expected`.

    Args:
        target: on the row's engine and in its precision.
        prompt: the prompt's ids.
        ids: the method's answer.
        expected: the reference's.
        agree: whether both give the same ids in float64; called for a small float32 gap.
    """
    position = first(ids, expected)
    if position is None:
        return Divergence(None, None, None, None, None, None, DEFECT)
    logits = logits_by_width(target, [*prompt, *expected[:position]])  # [m, V]
    chosen = [expected[position], ids[position]]
    gap = float((logits[:, chosen[0]] - logits[:, chosen[1]]).abs().min())
    best = logits[0].topk(2).values  # the reference's own width
    if target.dtype == torch.float32:
        noise = FLOAT32_GAP
        tie = gap < noise and agree()
    else:
        spread = float((logits.max(dim=0).values - logits.min(dim=0).values).max())
        spacing = torch.finfo(target.dtype).eps * float(logits[:, chosen].abs().max())
        noise = max(spread, spacing)
        tie = gap <= noise
    top2 = float(best[0] - best[1])
    verdict = TIE if tie else DEFECT
    return Divergence(position, ids[position], expected[position], gap, top2, noise, verdict)


def logits_by_width(target: TargetModel, ids: Sequence[int]) -> Tensor:
    """float32 [m, V]: the logits after `ids`, from forwards of different widths, 1 first."""
    rows = []
    target.reserve(len(ids) + max(WIDTHS))
    with torch.inference_mode():
        for width in WIDTHS:
            if width < len(ids):
                target.prefill(ids[:-width])
                chain = Topology.of(range(-1, width - 1), target.device, lasting=False)
                tree = target.pad(TokenTree(target.tensor(ids[-width:]), chain))
                logits = target.forward(tree).logits[width - 1]
                rows.append(logits.to(torch.float32, copy=True))
        rows.append(target.prefill(ids).logits[-1].float())
    return torch.stack(rows)


def _turn(record: Record) -> tuple[Any, ...]:
    return (*(record[name] for name in PAIRED), record["temperature"])
