"""The results of an audit: `audit.json`, the summary that is printed, and the verdict.

The file names the sha256 of the audited records. Its rows are those of the report: model, engine,
dtype, dataset, label and temperature. Each has compared, equal, ties and defects of its greedy
answers, with an example for each that differs (`outputs.Divergence`), the largest gaps first, and
where it applies

- devices: of its records;
- unexplained: differences in half precision that no float32 forward explained;
- argmax: the share of its tokens that are not the float32 argmax (`argmax.compare`);
- reruns: diverging prompts of a half-precision row decoded again in float32 (at most `limit` of
  `prompts`): how many are equal, ties that float64 decided, defects, or failed, and the engine
  and device that decoded;
- sampling: the test of its draws (`sampling.Fit`), with p_holm, level and passed, or an error, and
  the engine and device that drew;
- answers, agreement, equal_answers, reference_agreement, perplexity and reference_perplexity of a
  lossy method (`quality.quality`);
- left_out: records whose prompts could not be found again, which no figure counts.

A run writes the file at its end with none of argmax, reruns and sampling.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np

from bench.audit.sampling import LEVEL
from bench.records import journal
from bench.records.runs import AUDIT, RECORDS, RunFolder
from bench.run.grid import PACKAGE
from bench.statistics import holm

AuditRow: TypeAlias = dict[str, Any]


def write(folder: RunFolder, facts: Mapping[str, Any], rows: Iterable[AuditRow]) -> None:
    """Writes the file; `facts` say how the audit was made."""
    content = {
        "records_sha256": journal.sha256(folder.path, RECORDS),
        **facts,
        "rows": list(rows),
    }
    folder.write_once(AUDIT, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_shallow(folder: RunFolder, rows: Iterable[AuditRow]) -> None:
    """The file as a run writes it. A deeper audit of the same records by the command is kept."""
    facts = {"package_version": version(PACKAGE), "answers": 0, "reruns": 0, "draws": 0}
    try:
        known = json.loads(folder.read(AUDIT) or "{}")
        deeper = any(known.get(name, 0) != 0 for name in ("answers", "reruns", "draws"))
        same = known.get("records_sha256") == journal.sha256(folder.path, RECORDS)
    except (ValueError, AttributeError):  # damaged: replaced
        deeper = same = False
    if not (deeper and same and known.get("package_version") == facts["package_version"]):
        write(folder, facts, rows)


def correct_for_many(rows: Iterable[AuditRow]) -> None:
    """Corrects the distribution tests of all rows together (Holm), and adds which passed."""
    found = (row["sampling"] for row in rows if "sampling" in row)
    tests = list({id(test): test for test in found if test["p"] is not None}.values())
    for test, corrected in zip(tests, holm(np.array([t["p"] for t in tests])), strict=True):
        test["p_holm"] = float(corrected)
        test["level"] = LEVEL
        test["passed"] = test["p_holm"] >= LEVEL


def has_defect(row: AuditRow) -> bool:
    """Whether a row has a defect: in its outputs, in their reruns, or in its draws."""
    reruns, tests = row.get("reruns", {}), (row.get("sampling", {}), row.get("argmax", {}))
    refused = any(test.get("passed") is False for test in tests)
    return bool(row["defects"] or reruns.get("defects") or refused)


def has_failed(row: AuditRow) -> bool:
    """Whether a part of the row's audit failed, so that it shows nothing."""
    return bool(row.get("reruns", {}).get("failed") or row.get("sampling", {}).get("error"))


def summary(rows: Sequence[AuditRow], missing: int) -> Iterator[str]:
    """The lines to print; `missing` prompts could not be found again."""
    compared, equal, ties, defects = (
        sum(row[name] for row in rows) for name in ("compared", "equal", "ties", "defects")
    )
    unexplained = sum(row.get("unexplained", 0) for row in rows)
    more = f", {unexplained} unexplained" if unexplained else ""
    yield f"{compared} outputs compared: {equal} equal, {ties} ties, {defects} defects{more}"
    for row in (row for row in rows if "argmax" in row):
        share, reference = (row["argmax"][name] for name in ("share", "reference_share"))
        yield (
            f"{_name(row)}: {share:.1%} of its tokens are not the float32 argmax "
            f"(reference {reference:.1%})"
        )
    reruns = [row["reruns"] for row in rows if "reruns" in row]
    if reruns:
        done, prompts, same = (
            sum(r[name] for r in reruns) for name in ("rerun", "prompts", "equal")
        )
        yield f"{done} of {prompts} diverging prompts decoded again in float32, {same} equal"
    tests = list({id(r["sampling"]): r["sampling"] for r in rows if "sampling" in r}.values())
    if tests:
        passed = sum(test.get("passed") is True for test in tests)
        yield f"{len(tests)} samplers tested, {passed} follow the target"
    for row in rows:
        if "perplexity" in row:
            yield (
                f"{_name(row)}: lossy, agreement {row['agreement']:.2f}, perplexity "
                f"{row['perplexity']:.3g} (reference {row['reference_perplexity']:.3g})"
            )
    for row in filter(has_defect, rows):
        yield f"{_name(row)}: DEFECTS"
    for row in filter(has_failed, rows):
        yield f"{_name(row)}: AUDIT FAILED"
    if missing:
        yield f"{missing} prompts not found: their records are not audited"


def _name(row: AuditRow) -> str:
    where = (row[name] for name in ("model", "engine", "dataset"))
    return f"{row['label']} on {', '.join(where)}, T = {row['temperature']:g}"
