"""Whether outputs equal the reference's, from the audits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.measures import Definitions
from reports.read.companions import AUDIT_COUNTS, QUALITY, TESTED
from reports.read.preparation import NAME, good, number
from reports.read.rows import ordered, rows

# README has the same words.
LOSSLESS = (
    "in float32 every output has the reference's token ids. A first difference where the two "
    "tokens' logits are closer than 1e-3 is decoded again in float64 and must agree there; "
    "otherwise it is a defect. In half precision, two things are required. The share of emitted "
    "tokens that are not the float32 argmax, teacher-forced, must not exceed the reference's own "
    "share on the same engine: a row fails where the 95 % interval of the difference, paired by "
    "prompt, lies above 0.01. And each first difference must be a tie: the gap between the two "
    "tokens' logits in float32 is at most 6 times the noise of these two logits, by how much their "
    "gap moves between the row's precision and float32 (root mean square over the 64 tokens "
    "before); otherwise it is a defect. On engine exact, every difference is a defect. Above "
    "temperature 0, where ids differ by chance, a test compares every sampler with the target's "
    "exact distribution."
)

DEFINITIONS: Definitions = (
    (
        "Match rate",
        "outputs with the reference's ids, length included, divided by outputs compared.",
    ),
    ("Lossless", LOSSLESS),
    (
        "Ties and defects",
        "differences that rounding explains, and those that it does not. In half precision the "
        "audit tells them apart.",
    ),
)
NOT_THE_ARGMAX = (
    "Not the argmax",
    "the share of a half-precision row's tokens that are not the float32 argmax, with a 95 % "
    "interval, and the reference's own share. A row fails where the interval of the difference "
    "lies above 0.01 and passes where it ends below 0.05; otherwise its answers are too few.",
)
POSITION = (
    "Position, gap of logits",
    "of an answer's first id that differs, from 0, and the difference of the target's logits of "
    "the two ids there.",
)
LOSSY = ("Lossy", "methods change the output by design; equality is not required of them.")


def matches(records: pd.DataFrame, audited: pd.DataFrame) -> pd.DataFrame:
    """Every row but the reference's with its audit: compared, equal, ties, defects, match_rate.

    audited: the rows of the audits with the columns of NAME and AUDIT_COUNTS; may be empty.
    """
    table = ordered(records, rows(good(records), records).facts)
    if table.empty:
        return table
    known = audited.reindex(columns=[*NAME, *AUDIT_COUNTS, *QUALITY, *TESTED])
    if audited.empty:
        table = table.assign(**dict.fromkeys((*AUDIT_COUNTS, *QUALITY, *TESTED), np.nan))
    else:
        known = known.drop_duplicates(list(NAME), keep="last")
        table = table.merge(known, how="left", on=list(NAME), validate="many_to_one")
    table = table[~table["reference"]].reset_index(drop=True)
    compared = number(table["compared"])
    rate = (number(table["equal"]) / compared).where(compared > 0)
    return table.assign(match_rate=rate, **{name: number(table[name]) for name in QUALITY})


AuditRow = Mapping[str, Any]  # a row of audit.json


def defective(entry: AuditRow) -> bool:
    """Whether an audit's row shows a defect in its answers, their reruns or its samples."""
    tests = (entry.get("sampling") or {}, entry.get("argmax") or {})
    refused = any(test.get("passed") is False for test in tests)
    return bool(entry["defects"] or (entry.get("reruns") or {}).get("defects") or refused)


def elsewhere(entry: AuditRow, evidence: Mapping[str, Any]) -> str | None:
    """Where the evidence of a row (its reruns or sampling test) was made, if not on the row's own
    engine and device. Audits that do not say where count as elsewhere in half precision."""
    engine, device = evidence.get("engine"), evidence.get("device")
    devices = entry.get("devices")
    if device is None or devices is None:
        known = entry["dtype"] == "float32" and engine in (None, entry["engine"])
        return (
            None if known else f"{engine or 'an engine'} on a device that the audit does not name"
        )
    if engine == entry["engine"] and list(devices) == [device]:
        return None
    return f"{engine} on {device}"
