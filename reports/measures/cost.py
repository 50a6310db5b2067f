"""The figures of cost studies: records of `bench.records.costs` in, tables out.

Every function takes the newest record of each measurement, with the study's name as `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.decoding.engines.registry import ENGINES
from bench.records.costs import ENGINE, FORWARD, QUIET, STEP
from bench.records.runs import PHASES, REFERENCE, Record, label
from reports.measures import Definitions
from reports.measures.acceptance import accepted
from reports.measures.speedup import speedup

# What two measurements must share to be compared.
SETTINGS = ("run", "package_version", "model", "revision", "dtype", "device", "engine", "context")

NARROWEST = 0.9  # of the nodes that a length was accepted with, for a step to be used with it

DEFINITIONS: Definitions = (
    (
        "Forward",
        "median time of one forward of the target over a tree of that width, after that many "
        "cached tokens, on an idle device, with the middle half of the repeats in brackets. "
        "Nothing is committed. Repeats are interleaved by width.",
    ),
    (
        "Bandwidth",
        "of the device's memory: the better of the fastest copy of a large buffer (bytes read and "
        "written) and the fastest sum over one, measured by the process that measured the rest.",
    ),
    (
        "Floor",
        "the bytes that a forward must read, divided by the bandwidth: all parameters but an "
        "embedding table that is no LM head, and the keys and values of the cached tokens.",
    ),
    ("Achieved", "the same bytes divided by the time."),
    ("Over width 1", "time divided by that of the forward of one token at the same context."),
    ("Start-up", "making the engine, its first prefill and its first forwards at every width."),
    (
        "Step",
        "one verify step of a method: drafting, the verify forward, accepting and the rest, each "
        "the median over turns of its seconds per step; the step is the sum of the four. Prompts "
        "are random tokens, so the lengths accepted here are meaningless, and methods that draft "
        "from the text find few drafts in it: nodes/step shows how wide their trees were.",
    ),
    ("Verification share", "the verify forward's part of the step."),
    (
        "Clock",
        "seconds of a decode loop over those of the same loop without the phase clock's marks, the "
        "median over turns. All other times are with them.",
    ),
    (
        "Break-even",
        "the method's step divided by the reference's: it is faster where its accepted length is "
        "larger than that.",
    ),
    (
        "Random drafts",
        "have the published shapes and random weights: Medusa five heads with LM heads of their "
        "own, Chimera its trigram encoder, one decoder layer and five heads over [h; o], EAGLE-3 "
        "one layer of the target's shape and an LM head of 32,000 tokens.",
    ),
    (
        "Draft's floor",
        "the bytes of weights that drafting a step reads, divided by the bandwidth: Medusa's heads "
        "once, Chimera's trigram encoder, layer, head and LM head anew at every level, EAGLE-3's "
        "layer and LM head too. A draft that fits into the processor's caches can be faster than "
        "that.",
    ),
    (
        "Projection",
        "accepted length × reference's step / method's step, for models without a measured "
        "speedup. The accepted length is another model's, as named, of the same method with the "
        "same parameters; the steps are this model's. It is not a measurement. Left out where the "
        f"trees here have less than {100 * NARROWEST:.0f} % of the nodes that the length was "
        "accepted with.",
    ),
)


def forwards(costs: Sequence[Record]) -> pd.DataFrame:
    """One row for each model, engine, context and width: ms, low and high (its quartiles), bytes,
    floor_ms, over_floor, achieved (bytes a second) and over_one.
    """
    rows = []
    for record in _good(costs, FORWARD):
        low, middle, high = (float(x) for x in np.quantile(record["seconds"], (0.25, 0.5, 0.75)))
        read = record["weight_bytes"] + record["context"] * record["row_bytes"]
        floor = read / _bandwidth(record)
        rows.append(
            _facts(record)
            | {"width": record["width"], "bytes": read, "floor_ms": 1e3 * floor}
            | {"ms": 1e3 * middle, "low": 1e3 * low, "high": 1e3 * high}
            | {"over_floor": middle / floor, "achieved": read / middle}
        )
    table = _ordered(rows, costs, ("width",))
    if table.empty:
        return table
    return table.assign(over_one=_beside(table, table["width"] == 1, "ms"))


def steps(costs: Sequence[Record]) -> pd.DataFrame:
    """One row for each model, engine, context and method: draft_ms, verify_ms, accept_ms, other_ms,
    step_ms, overhead_ms (accept and other), verify (share), clock (null where it was not measured),
    break_even, nodes, draft_parameters, draft_bytes, draft_floor_ms and draft_over_floor (both null
    where nothing is read).
    """
    rows = []
    for record in _good(costs, STEP):
        times = {
            f"{phase}_ms": 1e3 * float(np.median([_per_step(turn, phase) for turn in turns]))
            for turns in [record["turns"]]
            for phase in PHASES
        }
        step = sum(times.values())
        verify_steps = sum(len(turn["accept_lengths"]) for turn in record["turns"])
        floor = 1e3 * record["draft_bytes"] / _bandwidth(record) or np.nan
        rows.append(
            _facts(record)
            | times
            | {
                "label": label(record["method"], record["params"]),
                "reference": record["method"] == REFERENCE,
                "random": record["checkpoint"] == "random",
                "step_ms": step,
                "overhead_ms": times["accept_ms"] + times["other_ms"],
                "verify": times["verify_ms"] / step,
                "clock": float(np.median([_clock(turn) for turn in record["turns"]])),
                "nodes": sum(turn["drafted"] for turn in record["turns"]) / verify_steps,
                "draft_parameters": record["draft_parameters"],
                "draft_bytes": record["draft_bytes"],
                "draft_floor_ms": floor,
                "draft_over_floor": times["draft_ms"] / floor,
            }
        )
    table = _ordered(rows, costs, ("not_reference",))
    if table.empty:
        return table
    return table.assign(break_even=_beside(table, table["reference"], "step_ms"))


def projections(costs: Sequence[Record], records: pd.DataFrame) -> pd.DataFrame:
    """One row for each step of a model without a measured speedup and each accepted length that
    another model has in `records` (as `prepare` returns them) with the same method and
    parameters, and trees as wide: source, dataset, temperature, accepted and projected.
    """
    table = steps(costs)
    if table.empty or records.empty:
        return pd.DataFrame()
    speedups, lengths = speedup(records), accepted(records)
    timed = set(speedups.loc[speedups["speedup"].notna(), "model"])
    known = lengths[lengths["accepted"].notna() & ~lengths["reference"]]
    rows = []
    for row in table[~table["reference"] & ~table["model"].isin(timed)].to_dict("records"):
        found = known[(known["label"] == row["label"]) & (known["model"] != row["model"])]
        found = found[NARROWEST * found["nodes_per_step"] <= row["nodes"]]
        # The same engine's accepted length, where there is one: ties may be rounded otherwise.
        found = found.assign(other=found["engine"] != row["engine"]).sort_values(
            "other", kind="stable"
        )
        found = found.drop_duplicates(["model", "dataset", "temperature"])
        rows += [
            {
                **row,
                "source": source["model"],
                "dataset": source["dataset"],
                "temperature": source["temperature"],
                "accepted": source["accepted"],
                "projected": source["accepted"] / row["break_even"],
            }
            for source in found.to_dict("records")
        ]
    return pd.DataFrame(rows)


def bandwidths(costs: Sequence[Record]) -> pd.DataFrame:
    """One row for each study and device: copy, read and best, bytes a second; medians where several
    processes measured them.
    """
    good = [record for record in costs if record["status"] == "ok"]
    table = pd.DataFrame(
        [
            {name: record[name] for name in ("run", "device")}
            | {"copy": record["copy_bytes_per_s"], "read": record["read_bytes_per_s"]}
            | {"best": _bandwidth(record)}
            for record in good
        ]
    )
    if table.empty:
        return table
    return table.groupby(["run", "device"], sort=False).median().reset_index()


def engines(costs: Sequence[Record]) -> pd.DataFrame:
    """One row for each model and engine: parameters, weight_bytes, row_bytes, startup_s and
    peak_memory_bytes.
    """
    names = ("parameters", "weight_bytes", "row_bytes", "startup_s", "peak_memory_bytes")
    rows = [
        _facts(record) | {name: record[name] for name in names} for record in _good(costs, ENGINE)
    ]
    return _ordered(rows, costs, ())


def failures(costs: Sequence[Record]) -> pd.DataFrame:
    """One row for each measurement that was not made: what, status and error."""
    rows = [
        _facts(record)
        | {"what": _what(record), "status": record["status"], "error": record["error"]}
        for record in costs
        if record["status"] != "ok"
    ]
    return _ordered(rows, costs, ())


def _what(record: Record) -> str:
    if record["kind"] == ENGINE:
        return "all"
    if record["kind"] == STEP:
        return label(record["method"], record["params"])
    return f"forward of width {record['width']}"


def _good(costs: Sequence[Record], kind: str) -> Iterator[Record]:
    return (record for record in costs if record["kind"] == kind and record["status"] == "ok")


def _facts(record: Record) -> dict[str, Any]:
    return {name: record.get(name) for name in SETTINGS} | {"parameters": record["parameters"]}


def _bandwidth(record: Record) -> float:
    """Bytes a second: the larger of the two measured."""
    return float(max(record["copy_bytes_per_s"], record["read_bytes_per_s"]))


def _clock(turn: Record) -> float:
    """A turn's seconds over those without the phase clock; nan where they were not measured."""
    quiet = turn.get(QUIET) or np.nan
    return float(turn["decode_s"] / quiet)


def _per_step(turn: Record, phase: str) -> float:
    return float(turn["phase_s"][phase]) / len(turn["accept_lengths"])


def _beside(table: pd.DataFrame, base: pd.Series[bool], name: str) -> list[float]:
    """Each row's figure divided by that of the `base` row at the same settings; null without."""
    keys = list(table[list(SETTINGS)].itertuples(index=False, name=None))
    rows = list(zip(keys, table[name], base, strict=True))
    known = {key: value for key, value, is_base in rows if is_base}
    return [value / known.get(key, np.nan) for key, value, _ in rows]


def _ordered(
    rows: Iterable[dict[str, Any]], costs: Sequence[Record], last: Sequence[str]
) -> pd.DataFrame:
    """Rows in the order of the page: studies and models as they were measured, engines from plain
    to compiled, contexts from short to long."""
    table = pd.DataFrame(list(rows))
    if table.empty:
        return table
    places: dict[str, Callable[[Any], int]] = {
        name: list(dict.fromkeys(record[name] for record in costs)).index
        for name in ("run", "model", "dtype", "device")
    }
    order = pd.DataFrame({name: table[name].map(place) for name, place in places.items()})
    order = order.assign(engine=table["engine"].map(ENGINES.index), context=table["context"])
    for name in last:
        order[name] = ~table["reference"] if name == "not_reference" else table[name]
    return table.loc[order.sort_values(list(order.columns), kind="stable").index].reset_index(
        drop=True
    )
