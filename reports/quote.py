"""Keeps the figures of the documents equal to the records: writes them, or checks them.

python -m reports.quote --write
python -m reports.quote --check

docs/figures.yaml lists the documents and the blocks in them. A block stands in a document between
`<!-- figures: NAME -->` and `<!-- end -->`, each on a line of its own; what is between them is
generated from recorded runs. docs/figures.lock holds the sha256 of the records of every block.
"""

from __future__ import annotations

import argparse
import json
import re
import string
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import yaml

from bench.errors import UsageError, flat
from bench.files import write_text
from bench.records import costs as cost_records
from bench.records import journal
from bench.records import runs as records
from bench.records.runs import PHASES
from reports import build
from reports.measures import cost
from reports.measures.choice import choices
from reports.measures.matches import matches
from reports.page.format import NONE
from reports.page.model import Page, TableRow
from reports.read.preparation import NAME, ROW

REGISTRY = Path("docs/figures.yaml")
LOCK = Path("docs/figures.lock")
MARK = re.compile(r"^<!-- figures: ([\w-]+) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)
OPENING = re.compile(r"^<!-- figures: ", re.MULTILINE)
COLUMNS = 110  # characters of a line of text


# ---------------------------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Figure:
    """One figure of one row: `show` is a format string over the row's columns.

    The row is the one that `where` selects in addition to the block's own `where`: of several, the
    one with the `least` or the `most` of a column; otherwise all must show the same.
    """

    show: str
    where: Mapping[str, Any] = field(default_factory=dict)
    least: str | None = None
    most: str | None = None

    @classmethod
    def of(cls, given: Any, place: str) -> Self:
        return cls(**_known(cls, {"show": given} if isinstance(given, str) else given, place))


@dataclass(frozen=True)
class Block:
    """A table (`columns`, one row for each value of `key`) or a `text` with `figures` in it.

    runs: folders of runs or of cost studies, read together.
    table: which of TABLES the rows are taken from.
    where: columns and the value, or the list of values, that rows must have.
    sort: the column that orders the rows.
    parameters: those that `{name}` shows of a method's label; all without it.
    """

    runs: Sequence[str]
    table: str
    where: Mapping[str, Any] = field(default_factory=dict)
    key: Sequence[str] = ("label",)
    sort: str | None = None
    parameters: Sequence[str] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def registry(root: Path) -> tuple[list[str], dict[str, Block]]:
    """The documents and the blocks by name. UsageError where the registry is not valid."""
    try:
        given = yaml.safe_load((root / REGISTRY).read_text(encoding="utf-8"))
        blocks = given["blocks"].items()
        documents = list(given["documents"])
    except OSError as error:
        reason = f"cannot read {REGISTRY} ({error.strerror})"
        raise UsageError(f"{reason}; run it in a checkout, or give --root") from None
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        reason = flat(error)
        raise UsageError(f"{REGISTRY} needs `documents` and `blocks`: {reason}") from None
    return documents, {name: Block(**_known(Block, block, name)) for name, block in blocks}


def _known(kind: type[Any], given: Any, place: str) -> dict[str, Any]:
    """The fields given for a dataclass. UsageError where one is unknown or missing."""
    names = [one.name for one in fields(kind)]
    needed = {one.name for one in fields(kind) if one.default is one.default_factory is MISSING}
    if not isinstance(given, Mapping) or not needed <= set(given) <= set(names):
        fields_of = f"{', '.join(names)}, with at least {' and '.join(sorted(needed))}"
        raise UsageError(f"{REGISTRY}: {place} must be a mapping of {fields_of}")
    return dict(given)


# ---------------------------------------------------------------------------------- the tables


def _methods(page: Page) -> pd.DataFrame:
    """A row for each method and setting: speedup, accepted length, phases and the audit.

    The bounds of the accepted length and of the verification share are accepted_low, ...,
    verify_high; PHASE_ms is a step's time in the phase.
    """
    rows = page.speedup
    accepted = page.accepted.rename(columns={"low": "accepted_low", "high": "accepted_high"})
    shares = page.shares.rename(columns={"low": "verify_low", "high": "verify_high"})
    shares = shares.assign(**{f"{phase}_ms": shares[phase] * shares["loop_ms"] for phase in PHASES})
    audited = matches(page.records, page.audited)
    for other, key in ((accepted, ROW), (shares, ROW), (audited, NAME)):
        own = [name for name in other if name not in rows]
        rows = rows.merge(other[[*key, *own]], how="left", on=list(key))
    return rows


TABLES: Mapping[str, Callable[[Page], pd.DataFrame]] = {
    "methods": _methods,
    "choices": lambda page: choices(page.records, page.speedup, page.defective),
    "forwards": lambda page: cost.forwards(page.costs),
    "steps": lambda page: cost.steps(page.costs),
    "bandwidths": lambda page: cost.bandwidths(page.costs),
    "engines": lambda page: cost.engines(page.costs),
}


class Results:
    """The tables of recorded runs below `root`, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pages: dict[tuple[str, ...], Page] = {}
        self._tables: dict[tuple[tuple[str, ...], str], pd.DataFrame] = {}

    def table(self, runs: Sequence[str], name: str) -> pd.DataFrame:
        """UsageError where a run cannot be read, or there is no table of this name."""
        key = tuple(runs)
        if name not in TABLES:
            raise UsageError(f"{REGISTRY}: no table {name!r}; choose from {', '.join(TABLES)}")
        if key not in self._pages:
            self._pages[key] = build.load([self.root / run for run in runs])
        if (key, name) not in self._tables:
            self._tables[key, name] = TABLES[name](self._pages[key])
        return self._tables[key, name]

    def sha256(self, run: str) -> str:
        """Of the unpacked records of a run or a cost study."""
        folder = self.root / run
        study = journal.holds(folder, cost_records.COSTS)
        return journal.sha256(folder, cost_records.COSTS if study else records.RECORDS)


# ---------------------------------------------------------------------------------- rendering


class Figures(string.Formatter):
    """Formats with a dash where a value is not known."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        return NONE if pd.isna(value) else super().format_field(value, format_spec)

    def show(self, pattern: str, row: TableRow) -> str:
        """An interval that is not known is left out."""
        return self.vformat(pattern, (), row).replace(f" [{NONE}, {NONE}]", "")


def render(block: Block, results: Results, name: str) -> str:
    """The Markdown of a block. UsageError where it asks for what the records do not have."""
    place = f"{REGISTRY}: {name}"
    try:
        made = _Rendering(block, results.table(block.runs, block.table), place)
        return made.paragraph() if block.text else made.table()
    except KeyError as error:
        raise UsageError(f"{place}: there is no column {error} in {block.table}") from None


@dataclass(frozen=True)
class _Rendering:
    block: Block
    rows: pd.DataFrame
    place: str

    @cached_property
    def _own(self) -> pd.DataFrame:
        found = self._select(self.block.where)
        if found.empty:
            raise UsageError(f"{self.place}: no row has {dict(self.block.where)}")
        return found.sort_values(self.block.sort, kind="stable") if self.block.sort else found

    def table(self) -> str:
        columns = {
            head: Figure.of(given, f"{self.place}: {head}")
            for head, given in self.block.columns.items()
        }
        keys = self._own[list(self.block.key)].drop_duplicates().to_dict("records")
        lines = [list(columns), ["---"] * len(columns)]
        lines += [[self._show(figure, key) for figure in columns.values()] for key in keys]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def paragraph(self) -> str:
        shown = {
            name: self._show(Figure.of(given, f"{self.place}: {name}"), {})
            for name, given in self.block.figures.items()
        }
        text = " ".join(self.block.text.format_map(shown).split())
        return textwrap.fill(text, COLUMNS, break_on_hyphens=False, break_long_words=False) + "\n"

    def _show(self, figure: Figure, key: Mapping[Any, Any]) -> str:
        """The figure of the rows asked for, which must agree; a dash where there is none."""
        found = self._select({**self.block.where, **figure.where, **key})
        if figure.least or figure.most:
            ascending = figure.least is not None
            found = found.sort_values(str(figure.least or figure.most), ascending=ascending).head(1)
        shown = {
            Figures().show(figure.show, {**row, "name": self._name(row)})
            for row in found.to_dict("records")
        }
        if len(shown) > 1:
            wanted = {**self.block.where, **figure.where, **key}
            raise UsageError(f"{self.place}: {len(found)} rows have {wanted}; narrow `where`")
        return shown.pop() if shown else NONE

    def _select(self, where: Mapping[Any, Any]) -> pd.DataFrame:
        chosen = pd.Series(True, index=self.rows.index)
        for column, value in where.items():
            chosen &= self.rows[column].isin(value if isinstance(value, list) else [value])
        return self.rows[chosen]

    def _name(self, row: TableRow) -> str:
        method, _, rest = str(row.get("label", "")).partition("(")
        given = rest.removesuffix(")").split(",") if rest else []
        wanted = self.block.parameters
        kept = [one for one in given if wanted is None or one.partition("=")[0] in wanted]
        return f"{method}({','.join(kept)})" if kept else method


# ---------------------------------------------------------------------------------- documents


def contents(root: Path) -> Iterator[tuple[str, str, str, Sequence[str]]]:
    """Of each document and of the lock: path, text as it is, as it should be, differing blocks."""
    documents, blocks = registry(root)
    results = Results(root)
    bodies: dict[str, str] = {}
    for path in documents:
        text = _read(root, path)
        found = MARK.findall(text)
        if len(OPENING.findall(text)) != len(found) or any(OPENING.search(b) for _, b in found):
            raise UsageError(f"{path}: a block of figures has no `<!-- end -->` line; add it")
        for name, _ in found:
            if name not in blocks:
                raise UsageError(f"{path}: {REGISTRY} has no block {name!r}; add it there")
            bodies.setdefault(name, render(blocks[name], results, name))
        differing = [name for name, body in found if body != bodies[name]]
        yield path, text, MARK.sub(lambda mark: _marked(mark[1], bodies[mark[1]]), text), differing
    unused = [name for name in blocks if name not in bodies]
    if unused:
        raise UsageError(f"{REGISTRY}: no document has the block {unused[0]!r}; remove it")
    locked = {n: {run: results.sha256(run) for run in block.runs} for n, block in blocks.items()}
    text = _read(root, str(LOCK)) if (root / LOCK).exists() else "{}"
    known = _parsed(text)
    differing = [name for name in {**known, **locked} if known.get(name) != locked.get(name)]
    yield str(LOCK), text, json.dumps(locked, indent=1) + "\n", differing


def _marked(name: str, body: str) -> str:
    return f"<!-- figures: {name} -->\n{body}<!-- end -->"


def _read(root: Path, path: str) -> str:
    try:
        return (root / path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}); correct {REGISTRY}") from None


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}  # a damaged lock differs in every block
    return found if isinstance(found, dict) else {}


def write(root: Path) -> list[str]:
    """Writes what differs, once all of it is known; the paths."""
    changed = [(path, new) for path, old, new, _ in list(contents(root)) if new != old]
    for path, new in changed:
        write_text(root / path, new)
    return [path for path, _ in changed]


def check(root: Path) -> list[str]:
    """A line for each block that differs from the records, or whose records changed."""
    return [
        f"{path}: {name} differs from the records; run `python -m reports.quote --write`"
        for path, _, _, names in contents(root)
        for name in names
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where --check finds a difference, 2 with one line for invalid input."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.quote",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the documents and the lock")
    action.add_argument("--check", action="store_true", help="exit with 1 where a block differs")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        found = (write if arguments.write else check)(arguments.root)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(f"wrote {line}" if arguments.write else line)
    return int(arguments.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
