"""What differs between runs, and inside one: can their figures be compared?

Sources: the records, `environment.json`, and the settings of each run.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from bench.files import canonical_sha256
from bench.records.journal import CONTINUED
from bench.records.runs import STOCK_ENGINE, Record
from reports.read.companions import RunInfo, sessions
from reports.read.words import counted

# Of environment.json: what a figure depends on, and what it is called.
ENVIRONMENT = {
    "cuda.driver": "driver",
    "cuda.cuda": "CUDA",
    "cuda.cudnn": "cuDNN",
    "cuda.sm_clock_max_mhz": "maximum SM clock, MHz",
    "cuda.memory_clock_max_mhz": "maximum memory clock, MHz",
    "cuda.power_limit_w": "power limit, W",
    "cuda.ecc": "ECC",
    "cuda.tf32_matmul": "TF32 in matrix products",
    "cuda.tf32_cudnn": "TF32 in cuDNN",
    "float32_matmul_precision": "float32 matrix products",
    "cpu.model": "processor",
    "cpu.torch_threads": "threads",
    "python": "Python",
    "packages.torch": "torch",
    "packages.transformers": "transformers",
    "packages.triton": "triton",
    "git.commit": "commit",
    **{f"code.{package}": f"code of {package}" for package in ("baselines", "bench", "chimera")},
}
# Readings of the moment, and what the records say better.
UNCOMPARED = (
    *("cuda.sm_clock_mhz", "cuda.memory_clock_mhz", "cuda.name", "git.dirty"),
    *("device", "datasets", "dtype", "packages.chimera-bench", CONTINUED),
)

# No card, no checkout, or of an older version: nothing to compare.
KNOWN_ALONE = ("cuda", "git", "code")

# Of the settings: what only says which rows there are, and what the records say better.
ROWS_ALONE = (
    *("models", "methods", "datasets", "preset"),
    *("provenance.models", "provenance.methods", "provenance.prompts"),
)
SETTLED = (
    *("dtype", "device", "engine", "max_new_tokens", "top_k", "top_p", "seed", "checkpoint"),
    *("provenance.datasets", "provenance.package_version", "provenance.code"),
)
NOTHING = "none"

# Of the records: settings of a whole run, and those that a model, set or method has of its own.
WHOLE = {
    "package_version": "package",
    "device": "device",
    "dtype": "dtype",
    "engine": "engine",
    "max_new_tokens": "token limit",
    "top_k": "top-k",
    "top_p": "top-p",
    "seed": "seed",
}
OWN = {
    "revision": ("model",),
    "dataset_sha256": ("dataset",),
    "checkpoint_sha256": ("model", "label"),
    "tree_sha256": ("model", "label"),
}
OF_STUDIES = (*("run", "ok", "model", "revision"), *list(WHOLE)[:4], "seed")
OWN_WORDS = {
    "revision": "revision",
    "dataset_sha256": "hash of the question set",
    "checkpoint_sha256": "checkpoint",
    "tree_sha256": "tree",
}
# Of one turn: the same in all runs that hold it, or answers and times are of other prompts.
TURN = ("model", "dataset", "prompt_id", "turn")
OF_TURN = {"prompt_sha256": "prompts", "history": "history"}

DEFINITIONS = (
    (
        "Compared",
        "the device, driver, clocks, versions, engine, dtype, hashes of data, weights and history, "
        "and the settings of each run, from its records, environment.json and settings. Hashes "
        "are compared where several runs hold the same model, question set or method; prompts "
        "and history turn by turn, as one hash over the turns that all of those runs hold. "
        "Clocks are the card's maxima; their values at the start of a run are not compared.",
    ),
    (
        "Effect",
        "a difference that changes figures is reported at the top of the page too. Others are "
        "listed for the record: a different list of methods, say, only changes which rows there "
        "are.",
    ),
)


@dataclass(frozen=True)
class Difference:
    """An item with several values; `values`: each with the runs that have it, `within`: the one
    run inside which they differ.
    """

    item: str
    values: Mapping[str, Sequence[str]]
    weighs: bool = True
    within: str | None = None

    def __str__(self) -> str:
        if self.within is not None:
            return f"Different {self.item} inside {self.within}: {'; '.join(self.values)}"
        said = (f"{value} ({', '.join(runs)})" for value, runs in self.values.items())
        return f"Different {self.item}: {'; '.join(said)}"


def differences(
    runs: Sequence[RunInfo], records: pd.DataFrame, costs: Sequence[Record] = ()
) -> list[Difference]:
    """What differs, inside runs first. Studies are compared with studies alone."""
    found: list[Difference] = []
    for name in dict.fromkeys(run.settings_name for run in runs):
        group = [run for run in runs if run.settings_name == name]
        names = [run.name for run in group]
        kinds = _kinds(records[records["run"].isin(names)])
        turns = _turns(records[records["run"].isin(names)])
        if kinds.empty:  # studies
            rows = [record | {"ok": True} for record in costs if record["run"] in names]
            kinds = _kinds(pd.DataFrame(rows, columns=list(OF_STUDIES)))
        for run in group:
            found += _inside(run, kinds[kinds["run"] == run.name], turns[turns["run"] == run.name])
        if len(group) > 1:
            between = list(_between(group, kinds, turns))
            found += sorted(between, key=lambda difference: not difference.weighs)
    return found


def _kinds(records: pd.DataFrame) -> pd.DataFrame:
    """One line for each combination of settings that records have, with their `count`."""
    names = dict.fromkeys(["run", "ok", *WHOLE, *OWN, "model", "dataset", "label"])
    known = [name for name in names if name in records]
    return records.groupby(known, dropna=False, sort=False).size().reset_index(name="count")


def _turns(records: pd.DataFrame) -> pd.DataFrame:
    """One line for each turn of a run, of those with a good record."""
    names = ["run", *TURN, *OF_TURN]
    return records.loc[records["ok"], names].drop_duplicates()


# ---------------------------------------------------------------------------------- inside


def _inside(run: RunInfo, kinds: pd.DataFrame, turns: pd.DataFrame) -> Iterator[Difference]:
    planned = run.settings.get("engine")
    for column, words in WHOLE.items():
        values = _counts(kinds, column)
        as_planned = column == "engine" and isinstance(planned, list) and {*values} <= {*planned}
        if len(values) > 1 and not as_planned:
            yield _within(run.name, words, values)
    for item, rows in _owned(kinds):
        values = _counts(rows, item.column)
        if len(values) > 1:
            yield _within(run.name, item.words, values)
    known = [dict(flat(one)) for one in sessions(run.environment or {})]
    for path, words in ENVIRONMENT.items():
        seen = {values[path]: [run.name] for values in known if path in values}
        if len(seen) > 1:
            yield Difference(words, seen, within=run.name)
    for dataset, rows in turns.groupby("dataset", sort=False):
        several = rows.groupby(list(TURN), sort=False).size().gt(1).sum()
        if several:
            said = f"{counted(several, 'turn')} with more than one"
            yield Difference(f"prompts or history of {dataset}", {said: [run.name]}, True, run.name)


def _counts(kinds: pd.DataFrame, column: str) -> dict[str, int]:
    """Records of each value; the stock row has an engine of its own."""
    if column not in kinds:
        return {}
    if column == "engine":
        kinds = kinds[kinds["engine"] != STOCK_ENGINE]
    counts = kinds.groupby(column, dropna=False)["count"].sum()
    return {_said(value): int(count) for value, count in counts.items()}


class _Item(NamedTuple):
    column: str
    words: str


def _owned(kinds: pd.DataFrame) -> Iterator[tuple[_Item, pd.DataFrame]]:
    """The items that belong to a model, set or method, each with the lines that know its value:
    failures do not."""
    good = kinds[kinds["ok"].astype(bool)]  # of no records at all, too
    for column, of in OWN.items():
        if {column, *of} <= {*kinds.columns}:
            for key, rows in good.groupby(list(of), dropna=False, sort=False):
                yield _Item(column, f"{OWN_WORDS[column]} of {' '.join(map(_said, key))}"), rows


def _within(run: str, item: str, values: Mapping[str, int]) -> Difference:
    said = {f"{value} ({counted(count, 'record')})": [run] for value, count in values.items()}
    return Difference(item, said, within=run)


# ---------------------------------------------------------------------------------- between


def _between(
    runs: Sequence[RunInfo], kinds: pd.DataFrame, turns: pd.DataFrame
) -> Iterator[Difference]:
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    for item, name, value in (*_of_kinds(kinds), *_of_turns(turns)):
        facts[item][name] = value
    for item, values in facts.items():
        yield from _differs(item, values, True)
    known = {run.name: dict(flat(run.environment or {})) for run in runs}
    kept = {name: "kept" if values else "missing" for name, values in known.items()}
    yield from _differs("environment.json", kept, True)
    known = {name: values for name, values in known.items() if values}
    for path in dict.fromkeys(path for values in known.values() for path in values):
        if not _below(path, UNCOMPARED):
            values = {name: values.get(path, NOTHING) for name, values in known.items()}
            if _below(path, KNOWN_ALONE):
                values = {name: value for name, value in values.items() if value != NOTHING}
            yield from _differs(ENVIRONMENT.get(path, path), values, path in ENVIRONMENT)
    chosen = {run.name: dict(flat(run.settings)) for run in runs if run.settings}
    for path in dict.fromkeys(path for values in chosen.values() for path in values):
        if not _below(path, SETTLED):
            values = {name: values.get(path, NOTHING) for name, values in chosen.items()}
            yield from _differs(f"setting {path}", values, not _below(path, ROWS_ALONE))


def _differs(item: str, values: Mapping[str, str], weighs: bool) -> Iterator[Difference]:
    by_value: dict[str, list[str]] = {}
    for run, value in values.items():
        by_value.setdefault(value, []).append(run)
    if len(by_value) > 1:
        yield Difference(item, by_value, weighs)


def _below(path: str, names: Sequence[str]) -> bool:
    return any(f"{path}.".startswith(f"{name}.") for name in names)


def _of_kinds(kinds: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """(item, run, value) of the settings of records."""
    for column, words in WHOLE.items():
        for run, own in kinds.groupby("run", sort=False):
            values = _counts(own, column)
            if values:
                yield words, str(run), ", ".join(values)
    for item, rows in _owned(kinds):
        for run, own in rows.groupby("run", sort=False):
            yield item.words, str(run), ", ".join(_counts(own, item.column))


def _of_turns(turns: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """How many turns a run has of a set, and one hash over those that the others have too."""
    for (model, dataset), group in turns.groupby(["model", "dataset"], sort=False):
        place = group.groupby(["prompt_id", "turn"], sort=False)["run"]
        shared = group[place.transform("nunique") == group["run"].nunique()]
        for run, own in group.groupby("run", sort=False):
            yield f"turns of {dataset}, {model}", str(run), f"{len(own):,}"
        for run, own in shared.groupby("run", sort=False):
            for column, words in OF_TURN.items():
                rows = own[["prompt_id", "turn", column]].astype(object).values.tolist()
                said = canonical_sha256(sorted([_said(value) for value in row] for row in rows))
                yield f"{words} of {dataset}, {model}", str(run), said[:8]


# ---------------------------------------------------------------------------------- words


def flat(values: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Paths and values of nested mappings, in words."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", _said(value)))
    return found


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value[:8] if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", value) else value
    if isinstance(value, Iterable):
        return json.dumps(value, ensure_ascii=False, default=str)
    if value is None or pd.isna(value):
        return NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)
