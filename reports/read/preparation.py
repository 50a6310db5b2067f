"""Records made ready for figures: pandas in, pandas out, one row a turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.records.runs import FIELDS, PHASES, REFERENCE, STOCK_ENGINE
from bench.statistics import Estimates, Figure, Floats, Ints, estimates
from reports.read.repetition import repetition

TUNING = "tuning"  # the question set that parameters are chosen on: no figure is made of it

# What a method shares with the reference it is held against; nothing is paired across any of it.
SETTINGS = (
    "run",
    "package_version",
    "model",
    "revision",
    "dtype",
    "device",
    "dataset",
    "dataset_sha256",
    "temperature",
    "top_k",
    "top_p",
    "max_new_tokens",
)
TURN = ("prompt_id", "turn", "repeat", "prompt_sha256")
ROW = (
    *SETTINGS,
    "engine",
    "reference_engine",
    "method",
    "label",
    "checkpoint_sha256",
    "tree_sha256",
)
NAME = ("run", "model", "engine", "dtype", "dataset", "temperature", "label")  # a row in words
# The stock row is held against the first of these that was run; itself, where none was.
ENGINES = ("eager", "graph", "compile", STOCK_ENGINE)
LOOP = tuple(f"{phase}_s" for phase in PHASES)
FLAGS = ("reference", "stock", "synthetic", "lossy")
# What figures are made of: good records are taken with these alone.
FIGURES = (
    *("row", "panel", "answer", "prompt", "question", "prompt_id", "turn", "repeat", "category"),
    *(*FLAGS, "tokens", "new_tokens", "prompt_tokens", "repetition", "accept_lengths"),
    *("verify_steps", "accepted_tokens", "drafted", "draft_parameters", "peak_memory_bytes"),
    *(*LOOP, "loop_s", "prefill_s", "decode_s", "total_s"),
)


def prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """Records, one row a turn, with the columns that the figures are summed from.

    `tokens` counts those of the decode loop, `verify_steps` its steps; `repetition` is of the
    answer's ids; `failed` is the number of failures in the record's row, `reference_engine` the
    engine of the reference it is held against. Whole numbers say which records belong together:
    `row` is equal within a row of the tables, `panel` within rows that share a reference, `answer`
    within one turn of one repeat, `prompt` within one turn, `question` within a question; those of
    tables that were prepared apart are not the same. A turn kept twice in a row (two seeds in one
    folder) counts with the last in the order of the records, the highest seed.
    """
    table = frame.reindex(columns=list(dict.fromkeys([*FIELDS, *frame.columns])))
    table = table.assign(
        ok=table["status"] == "ok",
        reference=table["method"] == REFERENCE,
        stock=table["engine"] == STOCK_ENGINE,
        synthetic=table["model"].astype(str).str.startswith("synthetic:"),
        lossy=table["lossless"].eq(False),
        tokens=number(table["new_tokens"]) - 1,
        verify_steps=number(each(table["accept_lengths"], len)),
        accepted_tokens=number(each(table["accept_lengths"], sum)),
        **{name: number(table[name]) for name in ("prefill_s", "decode_s", "drafted")},
        **{
            f"{phase}_s": number(each(table["phase_s"], lambda times, phase=phase: times[phase]))
            for phase in PHASES
        },
        repetition=_repetitions(table["output_ids"]),
    )
    table["loop_s"] = table[list(LOOP)].sum(axis=1, skipna=False)
    table["total_s"] = table["prefill_s"] + table["decode_s"]
    table["reference_engine"] = _reference_engines(table)
    table["row"], table["answer"] = _codes(table, ROW), _codes(table, TURN)
    table["prompt"] = _codes(table, ("prompt_id", "turn", "prompt_sha256"))
    table["panel"] = _codes(table, (*SETTINGS, "reference_engine"))
    table["question"] = pd.factorize(table["prompt_id"].astype(str), sort=True)[0]
    failures = (~table["ok"]).astype(int)
    table["failed"] = failures.groupby(_codes(table, NAME)).transform("sum")
    repeated = table["ok"] & table.duplicated(["row", "answer", "ok"], keep="last")
    return table[~repeated].reset_index(drop=True)


def number(values: pd.Series[Any]) -> pd.Series[float]:
    return pd.to_numeric(values, errors="coerce").astype("float64")


def each(values: pd.Series[Any], function: Callable[..., Any]) -> pd.Series[Any]:
    """The function of every value that is not null."""
    return values.map(function, na_action="ignore")


def _codes(table: pd.DataFrame, by: Sequence[str]) -> pd.Series[int]:
    return table.groupby(list(by), dropna=False, sort=False).ngroup()


def _repetitions(answers: pd.Series[Any]) -> Floats:
    """Of each answer's ids; equal answers are counted once."""
    known: dict[bytes, float] = {}
    found = np.full(len(answers), np.nan)
    for place, (answer, given) in enumerate(zip(answers, answers.notna(), strict=True)):
        if not given:
            continue
        ids = np.asarray(answer, dtype=np.int64)
        key = ids.tobytes()
        if key not in known:
            known[key] = repetition(ids.tolist())
        found[place] = known[key]
    return found


def _reference_engines(table: pd.DataFrame) -> list[str]:
    """Each record's own engine; for the stock row the first of ENGINES that its model ran on."""
    ran = set(
        table.loc[table["reference"], ["run", "model", "engine"]].itertuples(index=False, name=None)
    )

    def of(run: str, model: str, engine: str) -> str:
        if engine != STOCK_ENGINE:
            return engine
        return next((name for name in ENGINES if (run, model, name) in ran), STOCK_ENGINE)

    columns = (table["run"], table["model"], table["engine"])
    return [of(*names) for names in zip(*columns, strict=True)]


def good(records: pd.DataFrame) -> pd.DataFrame:
    """The good records, with FIGURES alone."""
    return records.loc[records["ok"], list(FIGURES)]


def pairs(records: pd.DataFrame) -> pd.DataFrame:
    """Every good record beside the reference's of the same turn (columns `..._ref`, null where
    there is none), with FIGURES alone; `counted` marks the pairs that the speedup is made of.
    """
    known, key = good(records), ["panel", "answer"]
    reference = known[known["reference"]].drop_duplicates(key, keep="last")
    columns = ["tokens", "decode_s", "new_tokens", "total_s", "loop_s", "verify_steps"]
    both = known.merge(
        reference[[*key, *columns, "repetition"]],
        how="left",
        on=key,
        suffixes=("", "_ref"),
        validate="many_to_one",
    ).set_index(known.index)
    paired = both["tokens_ref"].notna()
    counted = paired & (both["tokens"] > 0) & (both["tokens_ref"] > 0)
    return both.assign(paired=paired, counted=counted)


# ---------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Rows:
    """Rows of a table in the making: what names each, and the row [records] of every record."""

    facts: pd.DataFrame
    records: pd.DataFrame
    of: Ints

    def sums(self, columns: Sequence[str], which: pd.Series[bool] | None = None) -> pd.DataFrame:
        """Over the records `which` holds for; nulls count as 0. One line a row."""
        mask = slice(None) if which is None else which.to_numpy()
        found = self.records.loc[mask, list(columns)].groupby(self.of[mask]).sum()
        return found.reindex(range(len(self.facts)), fill_value=0)

    def count(self, which: pd.Series[bool]) -> Ints:
        return np.bincount(self.of[which.to_numpy()], minlength=len(self.facts)).astype(np.int64)

    def distinct(self, column: str, which: pd.Series[bool]) -> pd.Series[int]:
        """How many values a column has."""
        found = self.records.loc[which, column].groupby(self.of[which.to_numpy()]).nunique()
        return found.reindex(range(len(self.facts)), fill_value=0)

    def median(self, values: Floats, which: pd.Series[bool]) -> pd.Series[float]:
        found = pd.Series(values).groupby(self.of[which.to_numpy()]).median()
        return found.reindex(range(len(self.facts)))

    def most(self, column: str) -> pd.Series[float]:
        found = number(self.records[column]).groupby(self.of).max()
        return found.reindex(range(len(self.facts)))

    def estimates(
        self, columns: Sequence[str], figure: Figure, which: pd.Series[bool]
    ) -> Estimates:
        """The figure of sums over the records `which` holds for, in each row."""
        counted = self.records[which]
        return estimates(
            self.of[which.to_numpy()],
            counted["question"].to_numpy(dtype=np.int64),
            counted["repeat"].to_numpy(dtype=np.int64),
            counted[list(columns)].to_numpy(dtype=np.float64),
            figure,
            len(self.facts),
        )


def rows(
    counted: pd.DataFrame, records: pd.DataFrame, more: Sequence[str] = (), by: Sequence[str] = ROW
) -> Rows:
    """The rows that `by` and `more` tell apart, in the order of the records.

    counted: what the rows are made of, with the index of `records`, which names them.
    """
    key = ["row"] if tuple(by) == ROW else list(by)
    codes = _codes(counted, [*key, *more]).to_numpy().astype(np.int64)
    first = counted.iloc[np.unique(codes, return_index=True)[1]]
    names = dict.fromkeys(["row", "panel", *by, *FLAGS, "failed"])
    facts = records.loc[first.index, [name for name in names if name not in more]]
    facts = facts.assign(**{name: first[name] for name in more})
    return Rows(facts.reset_index(drop=True), counted, codes)


def ordered(records: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the page: runs, models and sets as they were run; the reference and the
    stock row before the methods by name.
    """
    if table.empty:
        return pd.DataFrame()
    places = {
        name: {value: place for place, value in enumerate(records[name].unique())}
        for name in ("run", "model", "dataset", "temperature", "dtype", "device")
    }
    order = pd.DataFrame({name: table[name].map(place) for name, place in places.items()})
    order = order.assign(
        engine=table["reference_engine"].map({name: at for at, name in enumerate(ENGINES)}),
        kind=np.select([table["reference"], table["stock"]], [0, 1], 2),
        label=table["label"].str.replace(r"\d+", lambda number: number[0].zfill(9), regex=True),
    )
    return table.loc[order.sort_values(list(order.columns), kind="stable").index].reset_index(
        drop=True
    )
