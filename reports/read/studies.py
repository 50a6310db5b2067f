"""Reads cost studies for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.records import costs as cost_records
from bench.records import runs as records
from bench.records.runs import Record
from reports.read.left_out import LeftOut
from reports.read.lines import nothing_usable, one_of_each, parsed
from reports.read.safe_text import is_plain, make_inert
from reports.read.sorting import natural, positions


def read_study(
    folder: Path, name: str, settings: Mapping[str, Any]
) -> tuple[list[Record], list[str]]:
    """(the newest record of each measurement, with the study's name as `run`; notices).

    UsageError where nothing can be used.
    """
    left = LeftOut(name, cost_records.COSTS)
    found = []
    for number, line, record in parsed(folder, cost_records.COSTS, cost_records.SCHEMA, left):
        broken = cost_records.violations(record)
        if broken:
            left.add("invalid record", number, broken[0])
            continue
        if not is_plain(line):
            make_inert(record)
        found.append((number, record))
    kept = [record for _, record in one_of_each(found, left, "key", "status")]
    notices = left.notices()
    if not kept:
        raise nothing_usable(folder, notices)
    models = positions(settings.get("models"))
    provenance = settings.get("provenance")
    methods = positions(provenance.get("methods") if isinstance(provenance, Mapping) else None)

    def place(record: Record) -> tuple[Any, ...]:
        names = ("dtype", "device", "engine", "kind", "context", "width")
        label = records.label(record.get("method", ""), record.get("params", {}))
        return (
            models.get(record["model"], len(models)),
            natural(record["model"]),
            *(natural(record.get(name)) for name in names),
            methods.get(label, len(methods)),
            natural(label),
            record["key"],
        )

    newest = sorted(cost_records.latest(kept), key=place)
    return [{**record, "run": name} for record in newest], notices
