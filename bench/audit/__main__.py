"""Checks that lossless methods are lossless: compares a run's outputs with the reference's, decodes
what differs again, tests what samplers draw, and writes `audit.json` (see `results`).

python -m bench.audit results/<run> [...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import cli as settings
from bench.audit.config import AuditConfig
from bench.audit.recorded import RUN_SETTINGS, RecordedRun
from bench.audit.results import correct_for_many, has_defect, has_failed, summary, write
from bench.errors import UsageError
from bench.records import journal
from bench.records.runs import AUDIT, RECORDS
from bench.run.grid import PACKAGE


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.audit") -> int:
    """Exit code 0 without a defect, 1 with one or where a part of the audit failed, 2 on invalid
    input, 130 when interrupted."""
    parser = settings.Parser(
        prog=prog,
        description="Compare a run's outputs with the reference's and explain the differences; "
        "draw from the samplers and test the draws; write audit.json into the run's folder.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="results/<run>")
    settings.add_arguments(parser, AuditConfig)
    stopped = "stopped; audit.json is unchanged"
    return settings.run_command(parser, command, argv, stopped)


def command(flags: dict[str, Any]) -> int:
    folders = flags.pop("folders")
    wanted = AuditConfig(**flags)
    sound = [audit(folder, wanted) for folder in folders]  # all of them, defects or not
    return 0 if all(sound) else 1


def audit(path: Path, wanted: AuditConfig) -> bool:
    """Audits the run in `path` and prints a summary; True without a defect or a failure.

    UsageError where the run cannot be read, its models or methods are not available here, or its
    records change meanwhile; its audit.json is then unchanged.
    """
    before = journal.sha256(path, RECORDS)
    if not (path / RUN_SETTINGS).is_file():
        raise UsageError(f"{path} holds no {RUN_SETTINGS}, the settings of the run; restore it")
    run = RecordedRun(path, wanted)
    rows = [row for target in run.targets() for row in run.audit(target)]
    correct_for_many(rows)
    if journal.sha256(path, RECORDS) != before:
        raise UsageError(f"the records in {path} changed during the audit; run it again")
    facts = {
        "package_version": version(PACKAGE),
        "device": run.device_name,
        "answers": wanted.answers,
        "reruns": wanted.reruns,
        "draws": wanted.draws,
        "seed": wanted.seed,
        "prompts_missing": run.missing,
        "notes": run.notes,
    }
    write(run.folder, facts, rows)
    for line in summary(rows, run.missing):
        print(f"{path}: {line}")
    print(f"wrote {path / AUDIT}")
    return not any(has_defect(row) or has_failed(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
