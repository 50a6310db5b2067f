"""Are lossless methods lossless? Compares greedy outputs with the reference's and explains what
differs: a tie that rounding decided, or a defect.

float32: a difference where the two tokens' logits are less than 1e-3 apart is decoded again in
float64, where both must agree. Half precision: the gap is held against the noise of that very
position, the largest change of a logit between forwards of different widths.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.records import AUDIT, PAIRED, RECORDS, REFERENCE, STOCK_ENGINE, Record, RunFolder, label

FLOAT32_GAP = 1e-3
WIDTHS = (1, 2, 16, 64)  # forwards whose logits are compared for a half-precision noise

Row = tuple[str, str, str, str, str, float]  # model, engine, dtype, dataset, label, temperature
Redo = Callable[[str, Sequence[int], int], list[int]]
"""(label, prompt ids, budget) -> ids that the method decodes in float64."""


@dataclass(frozen=True)
class Difference:
    """The first position at which a method's ids differ from the reference's."""

    record: Record
    reference: Record
    position: int | None  # None: one output is the start of the other


def differences(records: Sequence[Record]) -> Iterator[tuple[Row, Difference | None]]:
    """Every greedy ok record of a lossless method beside its row; None where it equals the
    reference's of the same turn, repeat and engine (any engine for the stock row)."""
    greedy = [r for r in records if r["status"] == "ok" and r["temperature"] == 0]
    references: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in greedy:
        if record["method"] == REFERENCE:
            references[_turn(record)].append(record)
    for record in greedy:
        rivals = [
            reference
            for reference in references[_turn(record)]
            if record["engine"] in (STOCK_ENGINE, reference["engine"])
        ]
        if not record["lossless"] or record["method"] == REFERENCE or not rivals:
            continue
        equal = any(record["output_ids"] == rival["output_ids"] for rival in rivals)
        position = None if equal else _first(record["output_ids"], rivals[0]["output_ids"])
        yield _row(record), None if equal else Difference(record, rivals[0], position)


def rows(
    model: str,
    target: TargetModel,
    prompts: Mapping[str, Sequence[int]],
    redo: Redo,
    records: Sequence[Record],
) -> list[dict[str, Any]]:
    """The audit's rows for one model; `prompts` maps a prompt's sha256 to its ids."""
    found: dict[Row, dict[str, Any]] = {}
    verdicts: dict[tuple[Any, ...], tuple[float | None, str]] = {}
    for row, difference in differences([r for r in records if r["model"] == model]):
        entry = found.setdefault(row, _blank(row))
        entry["compared"] += 1
        if difference is None:
            entry["equal"] += 1
            continue
        record = difference.record
        place = (row, record["prompt_sha256"], difference.position)
        if place not in verdicts:  # repeats of one turn differ alike
            verdicts[place] = classify(target, prompts, difference, redo)
        gap, verdict = verdicts[place]
        entry["ties" if verdict == "tie" else "defects"] += 1
        place_of = {name: record[name] for name in ("prompt_id", "turn", "repeat")}
        example = {**place_of, "position": difference.position, "gap": gap, "verdict": verdict}
        entry["examples"].append(example)
    return list(found.values())


def write(folder: RunFolder, entries: Sequence[Mapping[str, Any]]) -> None:
    """`audit.json`, which names the records that it is of."""
    data = (folder.path / RECORDS).read_bytes()
    content = {"records_sha256": hashlib.sha256(data).hexdigest(), "rows": list(entries)}
    folder.write_once(AUDIT, json.dumps(content, indent=1) + "\n")


def classify(
    target: TargetModel, prompts: Mapping[str, Sequence[int]], difference: Difference, redo: Redo
) -> tuple[float | None, str]:
    """(gap between the two tokens' logits, "tie" or "defect")."""
    record, reference, position = difference.record, difference.reference, difference.position
    prompt = prompts[record["prompt_sha256"]]
    if position is None:
        return None, "defect"
    known = [*prompt, *reference["output_ids"][:position]]
    logits = logits_by_width(target, known)  # [m, V]
    chosen = [r["output_ids"][position] for r in (reference, record)]
    gaps = logits[:, chosen[0]] - logits[:, chosen[1]]
    gap = float(gaps.abs().min())
    if target.dtype == torch.float32:
        near = gap < FLOAT32_GAP
        name = label(record["method"], record["params"])
        budget = record["max_new_tokens"]
        agreed = near and redo(name, prompt, budget) == redo(REFERENCE, prompt, budget)
        return gap, "tie" if agreed else "defect"
    noise = float((logits.max(dim=0).values - logits.min(dim=0).values).max())
    spacing = torch.finfo(target.dtype).eps * float(logits[:, chosen].abs().max())
    return gap, "tie" if gap <= max(noise, spacing) else "defect"


def logits_by_width(target: TargetModel, ids: Sequence[int]) -> Tensor:
    """float32 [m, V]: the logits behind `ids`, from forwards of different widths."""
    rows = []
    target.reserve(len(ids) + max(WIDTHS))
    with torch.inference_mode():
        for width in WIDTHS:
            if width < len(ids):
                target.prefill(ids[:-width])
                chain = Topology.of(range(-1, width - 1), target.device, lasting=False)
                tree = target.place(TokenTree(target.tensor(ids[-width:]), chain))
                logits = target.forward(tree).logits[width - 1]
                rows.append(logits.to(torch.float32, copy=True))
        rows.append(target.prefill(ids).logits[-1].float())
    return torch.stack(rows)


def in_float64(target: TargetModel) -> TargetModel:
    """The target in float64, for deciding float32 ties."""
    model = target.model
    exact = type(model)(copy.deepcopy(model.config)).to(model.device, torch.float64)
    exact.load_state_dict(model.state_dict())  # a copy of `model` would take its hooks along
    return TargetModel(exact.requires_grad_(False).eval(), target.name)


def _blank(row: Row) -> dict[str, Any]:
    names = ("model", "engine", "dtype", "dataset", "label", "temperature")
    counts = dict.fromkeys(("compared", "equal", "ties", "defects"), 0)
    return {**dict(zip(names, row, strict=True)), **counts, "examples": []}


def _row(record: Record) -> Row:
    return (
        record["model"],
        record["engine"],
        record["dtype"],
        record["dataset"],
        label(record["method"], record["params"]),
        record["temperature"],
    )


def _turn(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in PAIRED)


def _first(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
