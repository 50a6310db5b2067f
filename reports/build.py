"""Renders runs and cost studies to one self-contained page: the same records give the same bytes.

python -m reports.build results/<run> [...] [--out FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from bench import files
from bench.cli import Parser, run_command
from bench.errors import UsageError
from bench.records import costs as cost_records
from bench.records import journal
from bench.records import runs as records
from reports import sections
from reports.page import csv, filters, glossary, rendering
from reports.page.model import Page, Section
from reports.read import companions, runs, studies
from reports.read.companions import RunInfo
from reports.read.lines import collecting_later
from reports.read.parallel import side_by_side
from reports.read.preparation import TUNING, prepare
from reports.read.safe_text import inert
from reports.read.unfinished import in_common, unfinished
from reports.sections import comparability, cost, header

FILE = "index.html"
LARGE = 20_000  # records whose page two processes make


def build(folders: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Writes the page of the runs in `folders` to `out`, by default where `places` says, and what
    was left out of them to stderr. Returns what it wrote.

    UsageError where nothing of a folder can be used, or a page cannot be written.
    """
    page = load(folders)
    tell(page)
    return publish(page, [out] if out else places(folders))


def places(folders: Sequence[Path]) -> list[Path]:
    """Where a page goes by default: into the folder of its run, or beside the first of several; in
    a checkout also to reports/index.html, the newest page.

    Nowhere else is a folder `reports` made: it could hide the package of that name.
    """
    first = folders[0]
    found = [(first if len(folders) == 1 else first.parent) / FILE]
    newest = Path("reports")
    if newest.is_dir() and newest.samefile(Path(__file__).parent):
        found.append(newest / FILE)
    return found


def tell(page: Page) -> None:
    """Says on stderr what was left out of the page."""
    for notice in page.notices:
        print(f"note: {notice}", file=sys.stderr)


@collecting_later()
def publish(page: Page, paths: Sequence[Path]) -> list[Path]:
    """Writes the page, whole or not at all, to each of the paths, which it returns. UsageError
    where one cannot be written."""
    text = render(page)
    for path in paths:
        write(path, text)
    return list(paths)


@collecting_later()
def load(folders: Sequence[Path]) -> Page:
    """The records and companions of runs and studies, which are named after their folders."""
    names = [inert(Path(folder).resolve().name) for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two runs are named {twice}; give each folder once, or rename one")
    frames = [runs.empty()]
    costs: list[records.Record] = []
    found: list[RunInfo] = []
    notices: list[str] = []
    for folder, name in zip(map(Path, folders), names, strict=True):
        study = journal.holds(folder, cost_records.COSTS)
        run = companions.read(
            folder, name, cost_records.SETTINGS if study else companions.RUN_SETTINGS
        )
        if study:
            measured, said = studies.read_study(folder, name, run.settings)
            costs += measured
        else:
            frame, said = runs.read_run(folder, name, run.settings)
            frames.append(frame)
        found.append(run)
        notices += said
    table = pd.concat(frames[1:] or frames, ignore_index=True)
    shown = table[table["dataset"] != TUNING]
    prepared = prepare(shown)
    missing = unfinished(found, prepared)
    notices += [
        f"{name}, {line}; compared on the turns that all methods have"
        for name, lines in missing.items()
        for line in lines
    ]
    if missing:
        prepared = in_common(prepared, missing)
    return Page(found, prepared, len(table) - len(shown), costs, notices)


def render(page: Page, makers: Sequence[Callable[[Page], Section]] = ()) -> str:
    """The page as one HTML text, with the sections of `makers` or, where it is empty, with all."""
    environment = rendering.environment()
    environment.filters |= {
        "csv": csv.download,
        "anchor": glossary.anchor,
        "facts": filters.facts,
    }
    table = page.records
    models = dict.fromkeys([*table["model"], *(record["model"] for record in page.costs)])
    versions = [*table["package_version"], *(record["package_version"] for record in page.costs)]
    good = [*table["ok"], *(record["status"] == "ok" for record in page.costs)]
    study = bool(page.costs) and table.empty
    makers = makers or _usual(page, study)
    weighing = comparability.weighing(page)
    shown = [s for s in _made(page, makers) if s.tables or s.body or s.empty]
    return environment.get_template("report.html.j2").render(
        title=": ".join(filter(None, ("Decoding benchmark", ", ".join(models)))),
        runs=page.runs,
        style=rendering.assets("style.css", "answers.css"),
        script=rendering.assets("script.js", "answers.js"),
        smoke=header.smoke(page),
        notes=[*header.notes(page), *page.notices],
        warnings=weighing,
        warned=comparability.summary(weighing) if weighing else "",
        compared=next((s.id for s in shown if s.id == "comparability"), None),
        cards=cost.cards(page) if study else header.cards(page),
        sections=shown,
        glossary=glossary.Glossary(shown),
        filters=filters.filters(page),
        filtered=filters.HEADS,
        count=len(good),
        good=sum(good),
        versions=list(dict.fromkeys(versions)),
    )


def _usual(page: Page, study: bool) -> Sequence[Callable[[Page], Section]]:
    if study:
        return sections.OF_STUDIES
    return sections.OF_SMOKE_RUNS if page.smoke else sections.SECTIONS


def _made(page: Page, makers: Sequence[Callable[[Page], Section]]) -> list[Section]:
    """The sections, every other one made by a second process where there are many records."""
    large = len(page.records) > LARGE
    if large:
        _ = page.speedup, page.accepted, page.shares  # which most sections show
    first, second = side_by_side(
        lambda: [make(page) for make in makers[::2]],
        lambda: [make(page) for make in makers[1::2]],
        worth_it=large,
    )
    made = [*chain.from_iterable(zip(first, second, strict=False)), *first[len(second) :]]
    return [
        replace(section, folded=make in sections.FOLDED and make is not makers[0])
        for section, make in zip(made, makers, strict=True)
    ]


def write(out: Path, text: str, flag: str = "--out") -> None:
    """Writes the file whole or not at all. UsageError, which names the `flag` that it came by,
    where it cannot be written."""
    if out.is_dir():
        raise UsageError(f"cannot write {out}: it is a folder; choose another {flag}")
    try:
        files.write_text(out, text, errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"cannot write {out} ({error.strerror}); choose another {flag}") from None


def main(argv: Sequence[str] | None = None, prog: str = "python -m reports.build") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = Parser(
        prog=prog,
        description="Render runs and cost studies to one self-contained page.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="results/<run>")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="page to write; by default index.html in the run's folder, or beside the first of "
        "several",
    )
    return run_command(parser, _command, argv)


def _command(flags: dict[str, Any]) -> int:
    print(f"wrote {listed(build(flags['folders'], flags['out']))}")
    return 0


def listed(paths: Sequence[Path]) -> str:
    """`results/run/index.html and reports/index.html`."""
    return " and ".join(map(str, paths))


if __name__ == "__main__":
    sys.exit(main())
