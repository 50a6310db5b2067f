"""Tokens per second of each method, engine beside engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

SETTING = ("model", "dataset", "temperature", "dtype", "device", "top_k", "top_p", "max_new_tokens")
WEIGHTS = ("checkpoint_sha256", "tree_sha256")  # tell rows of one label apart


def throughput(speedups: pd.DataFrame) -> tuple[pd.DataFrame, Sequence[str]]:
    """(rows, the engines that they have columns of, fastest first) from the table of `speedup`.

    One row for each method in each setting, of all runs together, or of each run where two have the
    same row; the fastest first within a setting. Columns: those of the first such row, and of each
    engine ENGINE (tokens/s) and ENGINE_speedup, nan where it did not run. The stock row is in the
    column of the engine that it is compared with.
    """
    known = speedups[speedups["tokens_per_s"].notna()] if len(speedups) else speedups
    if known.empty:
        return known, ()
    setting = list(SETTING)
    row = ["label", *(name for name in WEIGHTS if name in known)]
    if known.duplicated([*setting, *row, "reference_engine"]).any():
        setting.insert(0, "run")
    fastest = known.groupby("reference_engine")["tokens_per_s"].max()
    engines = list(fastest.sort_values(ascending=False, kind="stable").index)
    lines = []
    for _, group in known.groupby([*setting, *row], dropna=False, sort=False):
        own = group.drop_duplicates("reference_engine").set_index("reference_engine")
        lines.append(
            {
                **group.iloc[0],
                **own["tokens_per_s"].reindex(engines),
                **own["speedup"].reindex(engines).add_suffix("_speedup"),
            }
        )
    rows = pd.DataFrame(lines)
    places = rows.groupby(setting, dropna=False, sort=False).ngroup()
    order = np.lexsort((-rows[engines].max(axis=1), places))
    return rows.iloc[order].reset_index(drop=True), engines
