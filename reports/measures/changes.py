"""What changed between two runs: the rows that both have, turn by turn, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.records.runs import REFERENCE
from bench.statistics import Floats, estimates
from reports.read.preparation import pairs

KEY = ("model", "dataset", "engine", "temperature", "label")
# These distinguish rows of one run where they vary in it.
MORE = (
    *("dtype", "device", "top_k", "top_p", "max_new_tokens"),
    *("revision", "dataset_sha256", "checkpoint_sha256", "tree_sha256", "package_version"),
)
TURN = ("prompt_id", "turn", "repeat")

_ABSOLUTE = ("decode_s", "tokens")
_RELATIVE = ("decode_s_ref", "tokens_ref", "decode_s", "tokens")
_STEPS = ("accepted_tokens", "verify_steps")


@dataclass(frozen=True)
class Changes:
    """Rows in both runs, with `change`, `low`, `high` (of the time per token; 0.05: 5 % slower),
    `a` and `b` (speedups, or seconds per token), `accepted_a` and `accepted_b`, `pairs` and
    `questions`; the names of rows that one run alone has; the columns that distinguish rows.
    """

    key: Sequence[str]
    rows: pd.DataFrame
    only_a: pd.DataFrame
    only_b: pd.DataFrame


def changes(a: pd.DataFrame, b: pd.DataFrame, absolute: bool) -> Changes:
    """From the records of two runs as `prepare` returns them.

    Compared are the turns that both have, repeat by repeat: the time per token divided by that of
    the run's own reference in the same turn and repeat, so that a machine that was slower as a
    whole changes nothing; or, with `absolute`, the time per token itself. Synthetic models have no
    speedup, so that only `absolute` compares them.
    """
    key = [*KEY, *(name for name in MORE if _varies(a, name) or _varies(b, name))]
    sides = [_timed(records, absolute) for records in (a, b)]
    names = [side[key].drop_duplicates() for side in sides]
    columns = list(_ABSOLUTE if absolute else _RELATIVE)
    kept = [*key, *TURN, *columns, *_STEPS]
    first, second = (side[kept].drop_duplicates([*key, *TURN], keep="last") for side in sides)
    both = first.merge(second, on=[*key, *TURN], suffixes=("_a", "_b"))
    rows = _rows(both, key, columns)
    known = rows[key] if len(rows) else names[0][:0]
    return Changes(key, rows, _without(names[0], known), _without(names[1], known))


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


def _rows(both: pd.DataFrame, key: list[str], columns: Sequence[str]) -> pd.DataFrame:
    if both.empty:
        return pd.DataFrame()
    groups = both.groupby(key, dropna=False, sort=False)
    of = groups.ngroup().to_numpy()
    count = int(of.max()) + 1
    parts = [f"{name}_{side}" for side in "ab" for name in columns]
    found = estimates(
        of.astype(np.int64),
        pd.factorize(both["prompt_id"], sort=True)[0].astype(np.int64),
        both["repeat"].to_numpy(dtype=np.int64),
        both[parts].to_numpy(dtype=np.float64),
        _slowdown,
        count,
    )
    sums = groups[[*parts, *(f"{name}_{side}" for side in "ab" for name in _STEPS)]].sum()
    sides = {side: sums[[f"{name}_{side}" for name in columns]].to_numpy() for side in "ab"}
    table = sums.index.to_frame(index=False).assign(
        **{side: _figure(values) for side, values in sides.items()},
        change=found.value - 1,
        low=found.low - 1,
        high=found.high - 1,
        pairs=groups.size().to_numpy(),
        questions=groups["prompt_id"].nunique().to_numpy(),
    )
    for side in "ab":
        steps = sums[f"verify_steps_{side}"].to_numpy(dtype=np.float64)
        tokens = sums[f"accepted_tokens_{side}"].to_numpy(dtype=np.float64)
        table[f"accepted_{side}"] = np.divide(
            tokens, steps, out=np.full(count, np.nan), where=steps > 0
        )
    return table


def _slowdown(parts: Floats) -> Floats:
    """[..., 4 or 8] sums of run A, then of run B -> time per token of B over that of A."""
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
