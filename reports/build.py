"""Renders runs and cost studies to one self-contained page: the same records give the same bytes.

python -m reports.build results/<run> [...] [--out reports/index.html]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bench import cost_records, records, tuned
from bench.errors import UsageError
from reports import cost, metrics, sections
from reports.tables import Page, Run

OUT = Path("reports/index.html")
RUN_SETTINGS = "run.yaml"


def build(folders: Sequence[Path], out: Path) -> None:
    """Writes the page of the runs in `folders` to `out`, whole or not at all.

    UsageError where a folder holds no records or damaged files, or `out` cannot be written.
    """
    _write(out, render(load(folders)))


def load(folders: Sequence[Path]) -> Page:
    """The records and companions of runs and studies, which are named after their folders."""
    names = [Path(folder).resolve().name for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two runs are named {twice}; give each folder once, or rename one")
    frames: list[pd.DataFrame] = []
    costs: list[records.Record] = []
    runs = []
    for folder, name in zip(map(Path, folders), names, strict=True):
        study = (folder / cost_records.COSTS).is_file()
        if study:
            found = cost_records.latest(cost_records.read(folder))
            costs += [{**record, "run": name} for record in found]
        else:
            frames.append(records.frame([folder]).assign(run=name))
        if not len(found if study else frames[-1]):
            raise UsageError(f"{folder} holds no records; run the benchmark first")
        runs.append(_run(folder, name, cost_records.SETTINGS if study else RUN_SETTINGS))
    table = pd.concat(frames or [records.frame([])], ignore_index=True)
    shown = table[table["dataset"] != metrics.TUNING]
    return Page(runs, metrics.prepare(shown), len(table) - len(shown), costs)


def render(page: Page) -> str:
    """The page as one HTML text."""
    environment = templates()
    style = files("reports.templates").joinpath("style.css").read_text(encoding="utf-8")
    table = page.records
    models = dict.fromkeys([*table["model"], *(record["model"] for record in page.costs)])
    versions = [*table["package_version"], *(record["package_version"] for record in page.costs)]
    good = [*table["ok"], *(record["status"] == "ok" for record in page.costs)]
    study = bool(page.costs) and table.empty
    shown = sections.OF_STUDIES if study else sections.SECTIONS
    return environment.get_template("report.html.j2").render(
        title=": ".join(filter(None, ("Decoding benchmark", ", ".join(models)))),
        runs=page.runs,
        style=Markup(style),
        smoke=sections.smoke(page),
        notes=sections.notes(page),
        cards=cost.cards(page) if study else sections.cards(page),
        sections=[s for s in (make(page) for make in shown) if s.tables or s.empty],
        count=len(good),
        good=sum(good),
        versions=list(dict.fromkeys(versions)),
    )


def templates() -> Environment:
    """The page's templates: a name that is not given is an error, and all text is escaped."""
    return Environment(
        loader=PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _run(folder: Path, name: str, settings_name: str) -> Run:
    settings_text = _text(folder / settings_name)
    try:
        settings = yaml.safe_load(settings_text or "") or {}
        environment = json.loads(_text(folder / "environment.json") or "null")
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{settings_name} or environment.json in {folder} is damaged ({reason}); restore it"
        ) from None
    if not isinstance(settings, Mapping) or not isinstance(environment, Mapping | None):
        raise UsageError(
            f"{settings_name} or environment.json in {folder} holds no mapping; restore it"
        )
    state, audited = _audit(folder)
    found = tuned.read(folder / tuned.FILE)
    return Run(
        name, settings, settings_text or "", environment, state, audited, found, settings_name
    )


def _audit(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Whether the outputs were audited, in words, and the audit's rows if they were."""
    found = _text(folder / records.AUDIT)
    if found is None:
        return "not audited", []
    written = hashlib.sha256((folder / records.RECORDS).read_bytes()).hexdigest()
    try:
        audit = json.loads(found)
        rows = [
            {name: row[name] for name in (*metrics.NAME[1:], *metrics.AUDIT, "examples")}
            for row in audit["rows"]
            if row["dataset"] != metrics.TUNING
        ]
        fresh = audit["records_sha256"] == written
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder / records.AUDIT} is damaged ({error!r}); run the audit again"
        ) from None
    return ("audited", rows) if fresh else ("audit is of older records", [])


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} ({error}); restore it") from None


def _write(out: Path, text: str) -> None:
    if out.is_dir():
        raise UsageError(f"cannot write {out}: it is a folder; choose another --out")
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        draft.replace(out)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise UsageError(f"cannot write {out} ({error.strerror}); choose another --out") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m reports.build", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="results/<run>")
    parser.add_argument("--out", type=Path, default=OUT, help="page to write (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        build(arguments.folders, arguments.out)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
