"""What changed between two states, each of one run or several: rows, turn by turn, with intervals.

A row's change is the ratio of its times per token. Its logarithm has three sources of noise, whose
variances add up:

- questions: a jackknife over the questions that all runs have;
- repeats: how the change differs between repeats by more than the noise of single answers, pooled
  over the rows (the answers of one repeat share what the machine did at that time); with the former
  it makes the variance that is robust to clusters of both kinds (Cameron, Gelbach and Miller 2011);
- runs: what differs between two runs of the same state, such as the layout of memory, and does not
  show within a run. With further runs of a state it is measured: the spread of the runs' figures,
  pooled over the rows, which then includes that of repeats. Without them it is taken as `NOISE`.

Interval and p are those of Student's t with the degrees of freedom of Welch and Satterthwaite; p is
corrected by Holm's method for the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from bench.records.runs import REFERENCE
from bench.statistics import LEVEL, SAME, Floats, Ints, holm, jackknifed
from reports.read.preparation import pairs

KEY = ("model", "dataset", "engine", "temperature", "label")
# These distinguish rows of one run where they vary in it.
MORE = (
    *("dtype", "device", "top_k", "top_p", "max_new_tokens"),
    *("revision", "dataset_sha256", "checkpoint_sha256", "tree_sha256", "package_version"),
)
TURN = ("prompt_id", "turn", "repeat")
NOISE = 0.015  # standard deviation of the change between two unchanged runs of one machine

_ABSOLUTE = ("decode_s", "tokens")
_RELATIVE = ("decode_s_ref", "tokens_ref", "decode_s", "tokens")
_STEPS = ("accepted_tokens", "verify_steps")


@dataclass(frozen=True)
class Changes:
    """Rows that all runs have, with `change`, `low`, `high` (of the time per token; 0.05: 5 %
    slower), `error` (standard error of its logarithm) and `freedom` (degrees of it), `p`
    (corrected), `a` and `b` (speedups, or seconds per token), `accepted_a` and `accepted_b`,
    `pairs` and `questions`; the names of rows that one side alone has; the columns that
    distinguish rows; the standard deviation of the changes that is due to repeats (nan for one
    repeat, or where that of runs includes it) and to runs, and whether the latter is `measured`.
    """

    key: Sequence[str]
    rows: pd.DataFrame
    only_a: pd.DataFrame
    only_b: pd.DataFrame
    between_repeats: float
    between_runs: float
    measured: bool


def changes(
    a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame], absolute: bool, noise: float = NOISE
) -> Changes:
    """From the records of runs as `prepare` returns them: of the state A, and of the state B.

    Compared are the turns that all have, repeat by repeat: the time per token divided by that of
    the run's own reference in the same turn and repeat, so that a machine that was slower as a
    whole changes nothing; or, with `absolute`, the time per token itself. Synthetic models have no
    speedup, so that only `absolute` compares them. `noise`: of runs, where there is one of each
    state.
    """
    runs = [*a, *b]
    key = [*KEY, *(name for name in MORE if any(_varies(run, name) for run in runs))]
    timed = [_timed(records, absolute) for records in runs]
    names = [pd.concat([one[key] for one in side]) for side in (timed[: len(a)], timed[len(a) :])]
    columns = list(_ABSOLUTE if absolute else _RELATIVE)
    turns = [
        one[[*key, *TURN, *columns, *_STEPS]]
        .drop_duplicates([*key, *TURN], keep="last")
        .rename(columns={name: f"{name}_{place}" for name in (*columns, *_STEPS)})
        for place, one in enumerate(timed)
    ]
    shared = reduce(lambda one, other: one.merge(other, on=[*key, *TURN]), turns)
    rows, repeats, between = _rows(shared, key, columns, len(a), len(runs), noise)
    known = rows[key] if len(rows) else names[0][:0]
    only_a, only_b = (_without(side.drop_duplicates(), known) for side in names)
    return Changes(key, rows, only_a, only_b, repeats, between, len(runs) > 2)


def slower(rows: pd.DataFrame, share: float) -> Floats:
    """p [rows], one-sided and corrected: that a row became slower by no more than `share`."""
    distance = (np.log1p(rows["change"]) - np.log1p(share)) / rows["error"]
    return holm(special.stdtr(rows["freedom"], -distance))


def _varies(records: pd.DataFrame, name: str) -> bool:
    return bool((records.groupby(list(KEY), sort=False)[name].nunique() > 1).any())


def _timed(records: pd.DataFrame, absolute: bool) -> pd.DataFrame:
    """Records whose time per token is known, with question, turn and repeat as plain values."""
    if absolute:
        timed = records["ok"] & records["timed"]
        good = records[timed & (records["tokens"] > 0) & (records["decode_s"] > 0)]
    else:
        beside = pairs(records[~records["synthetic"]])
        timed = beside["counted"] & (beside["decode_s"] > 0) & (beside["decode_s_ref"] > 0)
        known = records.loc[beside.index[timed]]
        good = known[known["method"] != REFERENCE]
        good = good.join(beside[["decode_s_ref", "tokens_ref"]])
    return good.assign(
        prompt_id=[str(one) for one in good["prompt_id"].convert_dtypes()],
        turn=good["turn"].astype("int64"),
        repeat=good["repeat"].astype("int64"),
    )


def _rows(
    shared: pd.DataFrame,
    key: list[str],
    columns: Sequence[str],
    first: int,
    runs: int,
    noise: float,
) -> tuple[pd.DataFrame, float, float]:
    """The rows, and the noise of repeats and of runs. The columns of run k end in `_k`; the `first`
    runs are of the state A."""
    if shared.empty:
        return pd.DataFrame(), np.nan, noise
    sides = {"a": range(first), "b": range(first, runs)}
    for side, places in sides.items():
        for name in (*columns, *_STEPS):
            shared[f"{name}_{side}"] = shared[[f"{name}_{place}" for place in places]].sum(axis=1)
    groups = shared.groupby(key, dropna=False, sort=False)
    of = groups.ngroup().to_numpy().astype(np.int64)
    count = int(of.max()) + 1
    parts = [f"{name}_{side}" for side in sides for name in columns]
    value, error, questions = jackknifed(
        of,
        pd.factorize(shared["prompt_id"], sort=True)[0].astype(np.int64),
        shared["repeat"].to_numpy(dtype=np.int64),
        shared[parts].to_numpy(dtype=np.float64),
        _slowdown,
        count,
    )
    sums = groups[[name for name in shared if name not in (*key, *TURN)]].sum()
    repeats, drift = _Spread(np.nan, 0), _Spread(noise, np.inf)
    if runs > 2:
        drift = _between_runs(sums, columns, sides)
    else:
        repeats = _between_repeats(shared, of, parts)
    table = sums.index.to_frame(index=False).assign(
        **{side: _figure(sums[[f"{n}_{side}" for n in columns]].to_numpy()) for side in sides},
        **_tested(value, [(error, questions - 1), repeats, drift]),
        pairs=groups.size().to_numpy(),
        questions=questions,
    )
    for side in sides:
        steps = sums[f"verify_steps_{side}"].to_numpy(dtype=np.float64)
        tokens = sums[f"accepted_tokens_{side}"].to_numpy(dtype=np.float64)
        table[f"accepted_{side}"] = np.divide(
            tokens, steps, out=np.full(count, np.nan), where=steps > 0
        )
    return table, float(repeats.error), float(drift.error)


class _Spread(NamedTuple):
    """A standard error of a change's logarithm, and its degrees of freedom."""

    error: Floats | float
    freedom: Ints | float


def _tested(value: Floats, spreads: Sequence[tuple[Any, Any]]) -> dict[str, Floats]:
    """The columns change, low, high, error, freedom and p. A spread of nan counts as none, but for
    the first: without it there is neither interval nor p."""
    known = [s for place, s in enumerate(spreads) if not place or np.isfinite(s[0])]
    with np.errstate(all="ignore"):
        error = np.sqrt(sum(np.square(spread) for spread, _ in known))
        parts = sum(np.power(spread, 4) / freedom for spread, freedom in known)
        freedom = np.maximum(np.power(error, 4) / parts, 1.0)
        freedom = np.where(np.isfinite(error) & ~np.isfinite(freedom), 1e9, freedom)  # no noise
        centre = np.log(value)
        wide = special.stdtrit(freedom, (1 + LEVEL) / 2) * error
        distance = np.where(np.abs(centre) <= SAME, 0.0, np.abs(centre) / error)
        p = np.where(np.isfinite(error), 2 * special.stdtr(freedom, -distance), np.nan)
        ends = np.exp(centre - wide), np.exp(centre + wide)
    low, high = (end - 1 for end in ends)
    named = {"change": value - 1, "low": low, "high": high}
    return {**named, "error": error, "freedom": freedom, "p": holm(p)}


def _between_runs(sums: pd.DataFrame, columns: Sequence[str], sides: dict[str, range]) -> _Spread:
    """Of the difference of the states' means, from the runs' figures in each row, pooled."""
    squares, freedom, share, rows = 0.0, 0, 0.0, len(sums)
    for places in sides.values():
        figures = [_figure(sums[[f"{n}_{place}" for n in columns]].to_numpy()) for place in places]
        logs = np.log(np.stack(figures))  # [runs, rows]
        squares += float(np.square(logs - logs.mean(axis=0)).sum())
        freedom += len(places) - 1
        share += 1 / len(places)
    return _Spread(np.sqrt(squares / (freedom * rows) * share), freedom * _independent(rows))


def _between_repeats(shared: pd.DataFrame, of: Ints, parts: Sequence[str]) -> _Spread:
    """Of the mean over repeats of the change in each, over the turns that have all repeats, pooled
    over rows: as far as it is more than the noise of single answers, which questions show."""
    turns = shared.assign(row=of)
    held = turns.groupby(["row", "prompt_id", "turn"])["repeat"].transform("nunique")
    whole = turns[held == turns.groupby("row")["repeat"].transform("nunique")]
    sums = whole.groupby(["row", "repeat"])[list(parts)].sum()
    logs = pd.Series(np.log(_slowdown(sums.to_numpy(dtype=np.float64))), index=sums.index)
    rows = logs.groupby("row").agg(["var", "count"])
    rows = rows[rows["count"] > 1]
    if rows.empty:
        return _Spread(np.nan, 0)
    of_answers = jackknifed(
        whole["row"].to_numpy(dtype=np.int64),
        whole.groupby(["prompt_id", "turn", "repeat"]).ngroup().to_numpy().astype(np.int64),
        np.zeros(len(whole), dtype=np.int64),
        whole[list(parts)].to_numpy(dtype=np.float64),
        _slowdown,
        int(of.max()) + 1,
    )[1][rows.index]
    excess = (rows["var"] / rows["count"] - np.square(of_answers)).mean()
    freedom = (rows["count"].mean() - 1) * _independent(len(rows))
    return _Spread(np.sqrt(max(excess, 0.0)), freedom)


def _independent(rows: int) -> float:
    """How many independent rows tell as much of a variance as `rows` whose noise is correlated by
    0.5, since they share the reference's."""
    return rows / (1 + (rows - 1) * 0.5**2)


def _slowdown(parts: Floats) -> Floats:
    """[..., 4 or 8] sums of state A, then of state B -> time per token of B over that of A."""
    half = parts.shape[-1] // 2
    ratio: Floats = _figure(parts[..., half:]) / _figure(parts[..., :half])
    return ratio if half == 2 else 1 / ratio


def _figure(sums: Any) -> Floats:
    """[..., 2] seconds and tokens -> seconds per token; [..., 4] with the reference's first -> the
    speedup."""
    with np.errstate(all="ignore"):
        per_token: Floats = sums[..., -2] / sums[..., -1]
        return per_token if sums.shape[-1] == 2 else sums[..., 0] / sums[..., 1] / per_token


def _without(names: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The names that are not among the known ones."""
    held = {tuple(map(str, name)) for name in known.itertuples(index=False, name=None)}
    rows = names.itertuples(index=False, name=None)
    return names[[tuple(map(str, name)) not in held for name in rows]].reset_index(drop=True)
