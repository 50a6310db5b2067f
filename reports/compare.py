"""What changed between two runs, with intervals; can fail a build that became slower.

python -m reports.compare results/<before> results/<after> [--fail-slower 5%]
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import Parser, add_flag, run_command
from bench.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from reports.measures.changes import Changes
    from reports.measures.comparability import Difference
    from reports.page.model import Page, TableRow

MEASURES = {
    False: "time per token divided by that of the run's own reference in the same turn and repeat "
    "(the inverse of the speedup): a machine that was slower as a whole changes nothing",
    True: "seconds per token of the decode loop, whatever the reference took",
}
PAIRED = (
    "over the turns that both runs have, repeat by repeat; in brackets the 95 % interval of a "
    "bootstrap over questions, then repeats"
)
NAMED = 12  # rows that an error lists


def main(argv: Sequence[str] | None = None, prog: str = "python -m reports.compare") -> int:
    """Exit code 0, 1 where a row became slower than --fail-slower allows, 2 on invalid input, 130
    when interrupted."""
    parser = Parser(
        prog=prog,
        description="What changed between two runs.",
        allow_abbrev=False,
    )
    parser.add_argument("before", type=Path, metavar="A", help="folder of a run")
    parser.add_argument("after", type=Path, metavar="B", help="folder of the run to compare with A")
    parser.add_argument(
        "--fail-slower",
        metavar="SHARE",
        help="exit 1 where a row is slower by more than this with its whole interval: 5%% or 0.05",
    )
    parser.add_argument(
        "--strict", action="store_true", help="decide by the value alone, not by its interval"
    )
    parser.add_argument("--absolute", action="store_true", help="compare seconds per token itself")
    add_flag(
        parser, "methods", default=[], nargs="+", metavar="NAME", help="these methods or rows alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to FILE too")
    return run_command(parser, _command, argv)


def _command(flags: dict[str, Any]) -> int:
    limit = _limit(flags["fail_slower"], flags["strict"])
    found = compare(flags["before"], flags["after"], flags["absolute"], flags["methods"])
    if flags["json"] is not None:
        _write(flags["json"], found, limit)
    print("\n".join(_lines(found, limit)))
    return int(any(_broken(row, limit) for row in _rows(found.changes.rows)))


# ---------------------------------------------------------------------------------- the limit


@dataclass(frozen=True)
class Limit:
    """How much slower a row may become: by its interval, or by its value alone where `strict`."""

    share: float
    strict: bool

    def __str__(self) -> str:
        return (
            f"slower by more than {100 * self.share:g} %{'' if self.strict else ', whole interval'}"
        )


def share(text: str) -> float:
    """5% and 0.05 -> 0.05. UsageError for other text."""
    match = re.fullmatch(r"([0-9]+(?:[.][0-9]*)?|[.][0-9]+)\s*(%?)", text.strip(), re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else math.inf
    if match is None or value > 100 or (value >= 1 and not match[2]):
        raise UsageError(f"--fail-slower {text!r} is not a share; write it as 5% or 0.05")
    return value


def _limit(given: str | None, strict: bool) -> Limit | None:
    if given is not None:
        return Limit(share(given), strict)
    if strict:
        raise UsageError("--strict changes how --fail-slower decides; give --fail-slower too")
    return None


def _broken(row: TableRow, limit: Limit | None) -> bool:
    if limit is None:
        return False
    value = float(row["change"] if limit.strict else row["low"])
    return not math.isnan(value) and value > limit.share


# ---------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Comparison:
    """Two runs compared.

    Attributes:
        names, counts: their folders, and how many of their records were looked at.
        notices: what reading left out of them.
        differences: of settings and environment.
        changes: the rows.
        references: how the references changed, in seconds per token.
        failed: why a row of a run has no figures, by side and name.
    """

    names: Sequence[str]
    counts: Sequence[int]
    notices: Sequence[str]
    differences: Sequence[Difference]
    changes: Changes
    references: pd.DataFrame
    failed: Mapping[tuple[str, ...], str]
    absolute: bool


def compare(before: Path, after: Path, absolute: bool, methods: Sequence[str] = ()) -> Comparison:
    """Run B against run A. UsageError where a folder cannot be read, neither run has one of the
    `methods`, or the two have no turn in common."""
    import pandas as pd

    from reports.measures import comparability
    from reports.measures.changes import changes

    if before.resolve() == after.resolve():
        raise UsageError(f"{before} and {after} are one folder; give the folders of two runs")
    pages = [_load(before, "A"), _load(after, "B")]
    together = pd.concat([page.records for page in pages], ignore_index=True)
    tables = [page.records[_chosen(page.records, methods, together)] for page in pages]
    found = changes(tables[0], tables[1], absolute)
    if found.rows.empty:
        hint = "" if absolute else ", each with a reference in its own run (or use --absolute)"
        raise UsageError(
            f"{before} and {after} have no turn of the same row in common; compare runs of the "
            f"same models, question sets and methods{hint}"
        )
    plain = [table[table["reference"]] for table in tables]
    references = changes(plain[0], plain[1], absolute=True).rows
    runs = [run for page in pages for run in page.runs]
    return Comparison(
        (str(before), str(after)),
        [len(table) for table in tables],
        [notice for page in pages for notice in page.notices],
        comparability.differences(runs, together),
        found,
        references,
        dict(_failures(tables, found.key)),
        absolute,
    )


def _load(folder: Path, name: str) -> Page:
    """The run, called `name` from here on."""
    from reports import build

    page = build.load([folder])
    if page.costs:
        raise UsageError(f"{folder} holds a cost study; give the folders of two runs")
    notices = [f"{name}, {notice}" for notice in page.notices]
    runs = [replace(run, name=name) for run in page.runs]
    return replace(page, runs=runs, records=page.records.assign(run=name), notices=notices)


def _chosen(
    records: pd.DataFrame, methods: Sequence[str], together: pd.DataFrame
) -> pd.Series[bool]:
    """Which records are of the named methods or rows, and of the references that they need."""
    known = list(dict.fromkeys([*together["method"], *together["label"]]))
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise UsageError(
            f"--methods {unknown[0]!r} is in neither run; they hold {', '.join(known[:NAMED])}"
        )
    if not methods:
        return records["method"].notna()
    named = records["method"].isin(methods) | records["label"].isin(methods)
    return named | records["reference"]


def _failures(
    tables: Sequence[pd.DataFrame], key: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], str]]:
    for side, table in zip("AB", tables, strict=True):
        failed = table[~table["ok"]]
        names = failed[list(key)].itertuples(index=False, name=None)
        for name, error in zip(names, failed["error"], strict=True):
            yield (side, *map(str, name)), str(error)


# ---------------------------------------------------------------------------------- printing


def _lines(found: Comparison, limit: Limit | None) -> Iterable[str]:
    for side, name, count in zip("AB", found.names, found.counts, strict=True):
        yield f"{side}: {name}, {count:,} records"
    yield from (f"note: {notice}" for notice in found.notices)
    yield ""
    yield "What differs between them" if found.differences else "Settings and environment: the same"
    yield from (f"  {one}" for one in found.differences if one.weighs)
    rest = [one.item for one in found.differences if not one.weighs]
    if rest:
        yield f"  For the record: {', '.join(rest)}"
    rows = _rows(found.changes.rows)
    yield ""
    yield f"Compared: {MEASURES[found.absolute]}; {PAIRED}"
    show = _seconds if found.absolute else _speedup
    yield from _table([_cells(row, found.changes.key, show, limit) for row in rows])
    if not found.absolute and len(found.references):
        yield ""
        yield "The references themselves, in seconds per token (not part of the comparison)"
        key = [name for name in found.changes.key if name in found.references]
        yield from _table([_cells(row, key, _seconds) for row in _rows(found.references)])
    for side, names in (("A", found.changes.only_a), ("B", found.changes.only_b)):
        for row in _rows(names):
            other = "B" if side == "A" else "A"
            place = (other, *(str(row[part]) for part in found.changes.key))
            reason = found.failed.get(place)
            said = f": it failed in {other}, {reason}" if reason else ""
            yield f"only in {side}: {_name(row, found.changes.key)}{said}"
    if limit is not None:
        count = sum(_broken(row, limit) for row in rows)
        yield ""
        yield f"{limit}: {count} of {len(rows)} row{'' if len(rows) == 1 else 's'}"


def _cells(row: TableRow, key: Sequence[str], show: Any, limit: Limit | None = None) -> list[str]:
    accepted = [f"{row[f'accepted_{side}']:.2f}" for side in "ab"]
    return [
        _name(row, key),
        f"{show(row['a'])} -> {show(row['b'])}",
        f"accepted {' -> '.join(accepted)}".replace("nan -> nan", "unknown"),
        f"{100 * row['change']:+.1f} % {_interval(row)}",
        _verdict(row, limit),
        f"{row['pairs']:,} pairs, {row['questions']:,} questions",
    ]


def _name(row: TableRow, key: Sequence[str]) -> str:
    rest = [f"T={row[name]:g}" if name == "temperature" else str(row[name]) for name in key]
    label = rest.pop(list(key).index("label"))
    return f"{label} on {' '.join(rest)}"


def _interval(row: TableRow) -> str:
    if math.isnan(row["low"]):
        return "[no interval]"
    return f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def _verdict(row: TableRow, limit: Limit | None) -> str:
    if _broken(row, limit):
        return str(limit).upper()
    if row["low"] > 0:
        return "slower"
    return "faster" if row["high"] < 0 else "no difference seen"


def _speedup(value: float) -> str:
    return f"{value:.2f}x"


def _seconds(value: float) -> str:
    return f"{1000 * value:.3f} ms"


def _table(lines: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


# ---------------------------------------------------------------------------------- the file


def _write(path: Path, found: Comparison, limit: Limit | None) -> None:
    from reports import build

    key = found.changes.key
    content = {
        "before": found.names[0],
        "after": found.names[1],
        "measure": "seconds per token" if found.absolute else "time per token over the reference's",
        "fail_slower": limit and limit.share,
        "strict": bool(limit and limit.strict),
        "notices": list(found.notices),
        "differences": [
            {"item": one.item, "values": dict(one.values), "weighs": one.weighs}
            for one in found.differences
        ],
        "rows": [
            {**_plain(row), "slower": _broken(row, limit)} for row in _rows(found.changes.rows)
        ],
        "references": [_plain(row) for row in _rows(found.references)],
        "only_before": [_plain(row) for row in _rows(found.changes.only_a[list(key)])],
        "only_after": [_plain(row) for row in _rows(found.changes.only_b[list(key)])],
    }
    build.write(path, json.dumps(content, indent=1, allow_nan=False) + "\n", "--json")


def _rows(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return table.to_dict("records")


def _plain(row: TableRow) -> dict[str, Any]:
    """Values as JSON has them; null where one is not known."""
    found = {}
    for name, value in row.items():
        plain = value.item() if hasattr(value, "item") else value
        unknown = isinstance(plain, float) and not math.isfinite(plain)
        found[str(name)] = None if unknown else plain
    return found


if __name__ == "__main__":
    sys.exit(main())
