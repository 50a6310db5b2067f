"""Records made ready for figures: pandas in, pandas out, one row a turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.decoding.engines.registry import ENGINES
from bench.records.runs import FIELDS, PHASES, REFERENCE, STOCK_ENGINE
from bench.statistics import Floats
from reports.read.repetition import repetition

TUNING = "tuning"  # the question set that parameters are chosen on: no figure is made of it

# What a method and its reference must share to be paired.
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
# The stock row is compared with the reference on the first of these that was run, or with none.
REFERENCE_ENGINES = (*ENGINES, STOCK_ENGINE)
LOOP = tuple(f"{phase}_s" for phase in PHASES)
FLAGS = ("reference", "stock", "synthetic", "lossy")
MISSED = ("failed", "skipped")  # turns of a row without figures
# What figures are made of: good records are taken with these alone.
FIGURES = (
    *("row", "panel", "answer", "prompt", "question", "prompt_id", "turn", "repeat", "category"),
    *(*FLAGS, "tokens", "new_tokens", "prompt_tokens", "repetition", "accept_lengths"),
    *("verify_steps", "accepted_tokens", "drafted", "draft_parameters", "clocked", "timed"),
    *(*LOOP, "loop_s", "prefill_s", "decode_s", "total_s"),
)


def prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """Records, one row a turn, with the columns that the figures are summed from.

    `tokens` counts those of the decode loop, `verify_steps` its steps; `clocked` says whether the
    phase clock ran, `timed` whether the record's times count for speed: those without the phase
    clock in a row that has any, otherwise all; `repetition` is of the
    answer's ids; `failed` and `skipped` are the numbers of such turns in the record's row,
    `reference_engine` the engine of the reference it is compared with. Whole numbers say which
    records belong together:
    `row` is equal within a row of the tables, `panel` within rows that share a reference, `answer`
    within one turn of one repeat, `prompt` within one turn, `question` within a question; those of
    tables that were prepared separately are unrelated. A turn kept twice in a row (two seeds in one
    folder) counts with the last in the order of the records, the highest seed.
    """
    table = frame.reindex(columns=list(dict.fromkeys([*FIELDS, *frame.columns])))
    table = table.assign(
        ok=table["status"] == "ok",
        reference=table["method"] == REFERENCE,
        stock=table["engine"] == STOCK_ENGINE,
        synthetic=table["model"].astype(str).str.startswith("synthetic:"),
        lossy=table["lossless"].eq(False),
        clocked=(table["engine"] != STOCK_ENGINE) & table["clock"].ne(False),
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
    table["row"], table["answer"] = codes_of(table, ROW), codes_of(table, TURN)
    table["prompt"] = codes_of(table, ("prompt_id", "turn", "prompt_sha256"))
    table["panel"] = codes_of(table, (*SETTINGS, "reference_engine"))
    table["question"] = pd.factorize(table["prompt_id"].astype(str), sort=True)[0]
    plain = (table["ok"] & ~table["clocked"]).groupby(table["row"]).transform("any")
    table["timed"] = ~(table["clocked"] & plain)
    names = codes_of(table, NAME)
    for count, status in zip(MISSED, ("error", "skipped"), strict=True):
        table[count] = table["status"].eq(status).astype(int).groupby(names).transform("sum")
    repeated = table["ok"] & table.duplicated(["row", "answer", "ok"], keep="last")
    return table[~repeated].reset_index(drop=True)


def number(values: pd.Series[Any]) -> pd.Series[float]:
    return pd.to_numeric(values, errors="coerce").astype("float64")


def each(values: pd.Series[Any], function: Callable[..., Any]) -> pd.Series[Any]:
    """The function of every value that is not null."""
    return values.map(function, na_action="ignore")


def codes_of(table: pd.DataFrame, by: Sequence[str]) -> pd.Series[int]:
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
    """Each record's own engine; for the stock row the first of REFERENCE_ENGINES that ran."""
    ran = set(
        table.loc[table["reference"], ["run", "model", "engine"]].itertuples(index=False, name=None)
    )

    def of(run: str, model: str, engine: str) -> str:
        if engine != STOCK_ENGINE:
            return engine
        return next((name for name in REFERENCE_ENGINES if (run, model, name) in ran), STOCK_ENGINE)

    columns = (table["run"], table["model"], table["engine"])
    return [of(*names) for names in zip(*columns, strict=True)]


def good(records: pd.DataFrame) -> pd.DataFrame:
    """The good records, with FIGURES alone."""
    return records.loc[records["ok"], list(FIGURES)]


def pairs(records: pd.DataFrame) -> pd.DataFrame:
    """Every good record with the reference's of the same turn (columns `..._ref`, null where
    there is none), with FIGURES alone. `decoded` marks pairs with a decode time per token on both
    sides, `counted` those of them that are timed: the speedup is made of these. The two sides of a
    pair are one repeat, so that the phase clock ran in both or in neither.
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
    decoded = paired & (both["tokens"] > 0) & (both["tokens_ref"] > 0)
    return both.assign(paired=paired, decoded=decoded, counted=decoded & both["timed"])
