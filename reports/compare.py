"""What changed between two runs, or between two engines, with intervals; can fail a build that
became slower.

python -m reports.compare results/<before> results/<after> [--fail-slower 5%]
python -m reports.compare results/<run> [results/<other>] --engines compile exact
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import Parser, add_flag, did_you_mean, run_command
from bench.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from reports.measures.changes import Changes
    from reports.measures.comparability import Difference
    from reports.page.model import Page, TableRow

DESCRIPTION = """\
What changed between two runs, A and B, or between two engines.

Compared are the turns that both have. A row is called slower or faster where Student's t, corrected
by Holm's method for all rows, gives p < 0.05: at most one comparison in twenty of runs that did not
change calls any row so. The noise it allows for is that between questions, between repeats, and
between runs. The last cannot be seen in one run of each state: a standard deviation of 1.5 % is
taken (--noise). On a machine that is less steady, measure it with further runs: --also-a, --also-b.
Repeats (bench.run --repeats 3) show drift within a run; a single one cannot."""
MEASURES = {
    False: "time per token divided by that of the run's own reference in the same turn and repeat "
    "(the inverse of the speedup): a machine that was slower as a whole changes nothing",
    True: "seconds per token of the decode loop, whatever the reference took",
}
MOVED = 0.05  # change of a reference that is worth a note
LARGEST_NOISE = 0.5
NAMED = 12  # rows that an error lists


def main(argv: Sequence[str] | None = None, prog: str = "python -m reports.compare") -> int:
    """Exit code 0, 1 where a row became slower than --fail-slower allows, 2 on invalid input, 130
    when interrupted."""
    parser = Parser(
        prog=prog,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("before", type=Path, metavar="A", help="folder of a run")
    parser.add_argument(
        "after",
        type=Path,
        metavar="B",
        nargs="?",
        help="folder of the run to compare with A; with --engines A itself by default",
    )
    parser.add_argument(
        "--engines",
        nargs=2,
        metavar=("ENGINE_A", "ENGINE_B"),
        help="compare A's rows on one engine with B's on another, in seconds per token: each row "
        "with that of the same model, method, question set and temperature",
    )
    for side, runs in (("a", "A"), ("b", "B")):
        parser.add_argument(
            f"--also-{side}",
            type=Path,
            nargs="+",
            default=[],
            metavar="DIR",
            help=f"further runs of the state of {runs}: the noise between runs is measured",
        )
    parser.add_argument(
        "--noise",
        metavar="SHARE",
        help="standard deviation of a row's change between two runs of one state (default: 1.5%%)",
    )
    parser.add_argument(
        "--fail-slower",
        metavar="SHARE",
        help="exit 1 where a row is slower by significantly more than this: 5%% or 0.05",
    )
    parser.add_argument(
        "--strict", action="store_true", help="decide by the value alone, whatever the noise"
    )
    parser.add_argument("--absolute", action="store_true", help="compare seconds per token itself")
    add_flag(
        parser, "methods", default=[], nargs="+", metavar="NAME", help="these methods or rows alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to FILE too")
    return run_command(parser, _command, argv)


def _command(given: dict[str, Any]) -> int:
    flags = argparse.Namespace(**given)
    limit = _limit(flags.fail_slower, flags.strict)
    found = compare(_question(flags))
    if flags.json is not None:
        _write(flags.json, found, limit)
    print("\n".join(_lines(found, limit)))
    return int(any(_broken(found.changes.rows, limit)))


def _question(flags: argparse.Namespace) -> Question:
    """What the flags ask. UsageError where they contradict each other."""
    engines = tuple(flags.engines or ())
    before, after = [flags.before, *flags.also_a], [flags.after, *flags.also_b]
    if flags.after is None:
        if not engines:
            raise UsageError("give the folders of two runs, or of one with --engines")
        if flags.also_b:
            raise UsageError("--also-b needs a run B; give its folder after A")
        after = before
    folders = [folder.resolve() for folder in [*before, *after]]
    twice = next((f for f in folders if folders.count(f) > 1), None)
    if twice and not engines:
        raise UsageError(f"{twice.name} is given twice; give the folders of different runs")
    if len(set(engines)) == 1:
        raise UsageError(f"--engines names {engines[0]} twice; give two engines")
    noise = None
    if flags.noise is not None:
        if len([*before, *after]) > 2:
            raise UsageError("--also-a and --also-b measure the noise between runs; leave --noise")
        noise = share(flags.noise, "--noise")
        if noise > LARGEST_NOISE:
            raise UsageError(f"--noise {flags.noise} is too much to find anything")
    absolute = flags.absolute or bool(engines)
    return Question(before, after, engines, absolute, flags.methods, noise)


# ---------------------------------------------------------------------------------- the limit


@dataclass(frozen=True)
class Limit:
    """How much slower a row may become: significantly, or by its value alone where `strict`."""

    share: float
    strict: bool

    def __str__(self) -> str:
        return (
            f"slower by {'' if self.strict else 'significantly '}more than {100 * self.share:g} %"
        )


def share(text: str, flag: str = "--fail-slower") -> float:
    """5% and 0.05 -> 0.05. UsageError for other text, which names the flag."""
    match = re.fullmatch(r"([0-9]+(?:[.][0-9]*)?|[.][0-9]+)\s*(%?)", text.strip(), re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else math.inf
    if match is None or value > 100 or (value >= 1 and not match[2]):
        raise UsageError(f"{flag} {text!r} is not a share; write it as 5% or 0.05")
    return value


def _limit(given: str | None, strict: bool) -> Limit | None:
    if given is not None:
        return Limit(share(given), strict)
    if strict:
        raise UsageError("--strict changes how --fail-slower decides; give --fail-slower too")
    return None


def _broken(rows: pd.DataFrame, limit: Limit | None) -> list[bool]:
    """Of each row, whether it is over the limit."""
    from bench.statistics import LEVEL
    from reports.measures.changes import slower

    if limit is None or rows.empty:
        return [False] * len(rows)
    if limit.strict:
        return list(rows["change"] > limit.share)
    return list(slower(rows, limit.share) < 1 - LEVEL)


# ---------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Question:
    """What to compare.

    Attributes:
        before, after: folders of the runs of each state; the same where engines of one run are
            compared.
        engines: one of each state, or none: each row with that of its own engine.
        absolute: seconds per token, not speedups.
        methods: these methods or rows alone; none for all.
        noise: standard deviation of a change between runs; None for the usual one.
    """

    before: Sequence[Path]
    after: Sequence[Path]
    engines: tuple[str, ...] = ()
    absolute: bool = False
    methods: Sequence[str] = ()
    noise: float | None = None

    @property
    def one_run(self) -> bool:
        return list(self.before) == list(self.after)


@dataclass(frozen=True)
class Comparison:
    """Two states compared.

    Attributes:
        asked: the question.
        names, counts: the runs' folders, and how many of their records were looked at.
        notices: what reading left out of them.
        differences: of settings and environment.
        changes: the rows.
        references: how the references changed, in seconds per token; empty with engines.
        failed: why a row of a run has no figures, by side and name.
    """

    asked: Question
    names: Mapping[str, str]
    counts: Mapping[str, int]
    notices: Sequence[str]
    differences: Sequence[Difference]
    changes: Changes
    references: pd.DataFrame
    failed: Mapping[tuple[str, ...], str]


def compare(asked: Question) -> Comparison:
    """State B against state A. UsageError where a folder cannot be read, no run has one of the
    methods or engines, or the runs have no turn in common."""
    import pandas as pd

    from reports.measures import changes as measure
    from reports.measures import comparability

    folders = dict(_named(asked))
    pages = {name: _load(folder, name) for name, folder in folders.items()}
    together = pd.concat([page.records for page in pages.values()], ignore_index=True)
    sides = [
        [
            _chosen(page.records, asked.methods, together)
            for name, page in pages.items()
            if side in name
        ]
        for side in "AB"
    ]
    if asked.engines:
        known = [name for name in together["engine"].unique() if isinstance(name, str)]
        sides = [
            [_on(table, engine, asked.engines, known) for table in (tables or sides[0])]
            for tables, engine in zip(sides, asked.engines, strict=True)
        ]
    before, after = sides
    noise = measure.NOISE if asked.noise is None else asked.noise
    found = measure.changes(before, after, asked.absolute, noise)
    if found.rows.empty:
        if not asked.absolute and together["synthetic"].all():
            raise UsageError(
                "the runs are of models with random weights, which have no speedup; compare "
                "seconds per token with --absolute"
            )
        hint = (
            "" if asked.absolute else ", each with a reference in its own run (or use --absolute)"
        )
        raise UsageError(
            "the runs have no turn of the same row in common; compare runs of the same models, "
            f"question sets and methods{hint}"
        )
    plain = [[table[table["reference"]] for table in tables] for tables in (before, after)]
    return Comparison(
        asked,
        {name: str(folder) for name, folder in folders.items()},
        {name: len(page.records) for name, page in pages.items()},
        [notice for page in pages.values() for notice in page.notices],
        comparability.differences([run for page in pages.values() for run in page.runs], together),
        found,
        found.rows[:0] if asked.engines else measure.changes(plain[0], plain[1], True, noise).rows,
        dict(_failures(sides, found.key)),
    )


def _named(asked: Question) -> Iterable[tuple[str, Path]]:
    """A, A2, ..., B, B2, ... -> folder; only A where engines of one run are compared."""
    for side, folders in (("A", asked.before), ("B", [] if asked.one_run else asked.after)):
        for number, folder in enumerate(folders, start=1):
            yield side if number == 1 else f"{side}{number}", folder


def _on(
    records: pd.DataFrame, engine: str, engines: Sequence[str], known: Sequence[str]
) -> pd.DataFrame:
    """The records on the engine, under the name of both, so that the sides' rows are one."""
    if engine not in known:
        raise UsageError(f"--engines: no run has {engine!r}{did_you_mean(engine, known)}")
    return records[records["engine"] == engine].assign(engine=" -> ".join(engines))


def _load(folder: Path, name: str) -> Page:
    """The run, called `name` from here on."""
    from reports import build

    page = build.load([folder])
    if page.costs:
        raise UsageError(f"{folder} holds a cost study; give the folders of two runs")
    notices = [f"{name}, {notice}" for notice in page.notices]
    runs = [replace(run, name=name) for run in page.runs]
    return replace(page, runs=runs, records=page.records.assign(run=name), notices=notices)


def _chosen(records: pd.DataFrame, methods: Sequence[str], together: pd.DataFrame) -> pd.DataFrame:
    """The records of the named methods or rows, and of the references that they need."""
    known = list(dict.fromkeys([*together["method"], *together["label"]]))
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise UsageError(
            f"--methods {unknown[0]!r} is in no run; they hold {', '.join(known[:NAMED])}"
        )
    if not methods:
        return records
    named = records["method"].isin(methods) | records["label"].isin(methods)
    return records[named | records["reference"]]


def _failures(
    sides: Sequence[Sequence[pd.DataFrame]], key: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], str]]:
    for side, tables in zip("AB", sides, strict=True):
        for table in tables:
            failed = table[~table["ok"]]
            names = failed[list(key)].itertuples(index=False, name=None)
            for name, error in zip(names, failed["error"], strict=True):
                yield (side, *map(str, name)), str(error)


# ---------------------------------------------------------------------------------- printing


def _lines(found: Comparison, limit: Limit | None) -> Iterable[str]:
    asked, rows = found.asked, found.changes.rows
    for side, name in found.names.items():
        yield f"{side}: {name}, {found.counts[side]:,} records"
    yield from (f"note: {notice}" for notice in found.notices)
    yield ""
    if not asked.one_run:
        yield from _different(found.differences)
        yield ""
    yield f"Compared: {MEASURES[asked.absolute]}; over the turns that all have, repeat by repeat"
    yield f"Noise: {_noise(found.changes)}"
    show = _seconds if asked.absolute else _speedup
    yield from _rows(rows, found.changes.key, show, limit)
    if not asked.absolute and len(found.references):
        yield ""
        yield "The references themselves, in seconds per token (not part of the comparison)"
        key = [name for name in found.changes.key if name in found.references]
        yield from _rows(found.references, key, _seconds)
        if (found.references["change"].abs() > MOVED).any():
            yield "  The references changed: where the machine did, a row may have changed with it."
    for side, names in (("A", found.changes.only_a), ("B", found.changes.only_b)):
        for row in _records(names):
            other = "B" if side == "A" else "A"
            place = (other, *(str(row[part]) for part in found.changes.key))
            reason = found.failed.get(place)
            said = f": it failed in {other}, {reason}" if reason else ""
            yield f"only in {side}: {_name(row, found.changes.key)}{said}"
    if limit is not None:
        count = sum(_broken(rows, limit))
        yield ""
        yield f"{limit}: {count} of {len(rows)} row{'' if len(rows) == 1 else 's'}"


def _different(differences: Sequence[Difference]) -> Iterable[str]:
    yield "What differs between them" if differences else "Settings and environment: the same"
    yield from (f"  {one}" for one in differences if one.weighs)
    rest = [one.item for one in differences if not one.weighs]
    if rest:
        yield f"  For the record: {', '.join(rest)}"


def _noise(found: Changes) -> str:
    """What intervals and verdicts allow for."""
    repeats = (
        "one repeat, so that drift within a run is unknown (run with --repeats 3)"
        if math.isnan(found.between_repeats)
        else f"between repeats {100 * found.between_repeats:.1f} %"
    )
    runs = f"between runs {100 * found.between_runs:.1f} %"
    if found.measured:
        allowed = f"{runs}, as measured"
    else:
        allowed = f"{repeats}; {runs}, as assumed (--also-a, --also-b measure it)"
    return (
        f"of questions; {allowed}. In brackets the 95 % interval of the row alone; slower and "
        "faster are said where p, corrected for all rows, is under 0.05"
    )


def _rows(
    rows: pd.DataFrame, key: Sequence[str], show: Any, limit: Limit | None = None
) -> Iterable[str]:
    broken = _broken(rows, limit)
    lines = [
        _cells(row, key, show, str(limit).upper() if over else _verdict(row))
        for row, over in zip(_records(rows), broken, strict=True)
    ]
    yield from _table(lines)


def _cells(row: TableRow, key: Sequence[str], show: Any, verdict: str) -> list[str]:
    accepted = [f"{row[f'accepted_{side}']:.2f}" for side in "ab"]
    return [
        _name(row, key),
        f"{show(row['a'])} -> {show(row['b'])}",
        f"accepted {' -> '.join(accepted)}".replace("nan -> nan", "unknown"),
        f"{100 * row['change']:+.1f} % {_interval(row)}",
        verdict,
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


def _verdict(row: TableRow) -> str:
    from bench.statistics import LEVEL

    if not row["p"] < 1 - LEVEL:  # nan: one question
        return "no difference seen"
    return "slower" if row["change"] > 0 else "faster"


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

    asked, key = found.asked, found.changes.key
    rows = found.changes.rows
    content = {
        "before": [str(folder) for folder in asked.before],
        "after": [str(folder) for folder in asked.after],
        "engines": list(asked.engines),
        "measure": "seconds per token" if asked.absolute else "time per token over the reference's",
        "fail_slower": limit and limit.share,
        "strict": bool(limit and limit.strict),
        "noise": _plain(
            {
                "between_repeats": found.changes.between_repeats,
                "between_runs": found.changes.between_runs,
                "measured": found.changes.measured,
            }
        ),
        "notices": list(found.notices),
        "differences": [
            {"item": one.item, "values": dict(one.values), "weighs": one.weighs}
            for one in found.differences
        ],
        "rows": [
            {**_plain(row), "verdict": _verdict(row), "slower": bool(over)}
            for row, over in zip(_records(rows), _broken(rows, limit), strict=True)
        ],
        "references": [_plain(row) for row in _records(found.references)],
        "only_before": [_plain(row) for row in _records(found.changes.only_a[list(key)])],
        "only_after": [_plain(row) for row in _records(found.changes.only_b[list(key)])],
    }
    build.write(path, json.dumps(content, indent=1, allow_nan=False) + "\n", "--json")


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
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
