"""Settings of records in tables and figures: their titles, which of them are shown, and how."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from reports.page.format import NONE

TITLES = {
    "run": "Run",
    "model": "Model",
    "dataset": "Question set",
    "temperature": "T",
    "dtype": "Dtype",
    "device": "Device",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "max_new_tokens": "Token limit",
    "package_version": "Package",
    "revision": "Revision",
    "dataset_sha256": "Set's hash",
    "checkpoint_sha256": "Checkpoint",
    "tree_sha256": "Tree",
    "engine": "Engine",
    "context": "Context",
}
NUMBERS = ("temperature", "context")  # settings that sort as numbers
ALWAYS = ("model", "dataset", "engine", "temperature")
IF_SEVERAL = ("run", "dtype", "device", "top_k", "top_p", "max_new_tokens")
HASHES = ("revision", "dataset_sha256", "checkpoint_sha256", "tree_sha256")
IF_AMBIGUOUS = ("package_version", *HASHES)


def setting(name: str, value: Any) -> str:
    """A setting's value as tables and figures print it."""
    if pd.isna(value):
        return NONE
    if name in HASHES:
        return str(value)[:8]
    return f"{value:g}" if isinstance(value, float) else str(value)


def count_values(rows: pd.DataFrame, name: str) -> int:
    return rows[name].nunique(dropna=False) if name in rows else 0


def varies(groups: DataFrameGroupBy[Any, Any], name: str) -> bool:
    return bool((groups[name].nunique(dropna=False) > 1).any())
