"""The other files of a run folder: settings, environment, audit, tuned parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UsageError, flat
from bench.records import journal, tuned
from bench.records import runs as records
from bench.records.tuned import Tuned
from reports.read.preparation import NAME, TUNING
from reports.read.safe_text import inert, inert_values

RUN_SETTINGS = "run.yaml"
AUDITED = "audited"  # the state of a run whose audit is of its records
AUDIT_COUNTS = ("compared", "equal", "ties", "defects")
# Optional keys of an audit's rows: of lossy methods, and what else was tested.
QUALITY = ("agreement", "reference_agreement", "perplexity", "reference_perplexity")
TESTED = ("reruns", "sampling", "argmax")


@dataclass(frozen=True)
class RunInfo:
    """A run folder without its records. `audit` is "audited" or says why there is no audit."""

    name: str
    settings: Mapping[str, Any]
    settings_text: str
    environment: Mapping[str, Any] | None
    audit: str
    audited: Sequence[Mapping[str, Any]]
    tuned: Tuned | None = None
    settings_name: str = RUN_SETTINGS


def read(folder: Path, name: str, settings_name: str) -> RunInfo:
    settings_text = _text(folder / settings_name)
    try:
        settings = yaml.safe_load(settings_text or "") or {}
        environment = json.loads(_text(folder / "environment.json") or "null")
    except (yaml.YAMLError, ValueError) as error:
        reason = flat(error)
        raise UsageError(
            f"{settings_name} or environment.json in {folder} is damaged ({reason}); restore it"
        ) from None
    if not isinstance(settings, Mapping) or not isinstance(environment, Mapping | None):
        raise UsageError(
            f"{settings_name} or environment.json in {folder} is not a mapping; restore it"
        )
    state, audited = _audit(folder)
    found = tuned.read(folder / tuned.FILE)
    settings, environment = inert_values(settings), inert_values(environment)
    shown = "\n".join(map(inert, (settings_text or "").splitlines()))
    return RunInfo(name, settings, shown, environment, state, audited, found, settings_name)


def _audit(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Whether the outputs were audited, in words, and the audit's rows if they were."""
    found = _text(folder / records.AUDIT)
    if found is None:
        return "not audited", []
    try:
        written = journal.sha256(folder, records.RECORDS)
    except UsageError:  # an archive that is cut off, of which a part can be read
        written = None
    try:
        audit = json.loads(found)
        rows = [
            {**row, **{n: row[n] for n in (*NAME[1:], *AUDIT_COUNTS, "examples")}}
            for row in audit["rows"]
            if row["dataset"] != TUNING
        ]
        fresh = audit["records_sha256"] == written
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder / records.AUDIT} is damaged ({error!r}); run the audit again"
        ) from None
    return (AUDITED, rows) if fresh else ("audit is of older records", [])


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} ({error}); restore it") from None
