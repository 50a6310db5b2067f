"""Speedups that papers state for their methods.

Only what a paper states itself, with its source; an average stays an average.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from reports.measures import Definitions

DEFINITIONS: Definitions = (
    (
        "Published",
        "as the source states it, measured by its authors on their machine, with their weights and "
        "their baseline. An average is not split by model, question set or temperature.",
    ),
    (
        "Measured here",
        "rows of the speedup table of the same method, models and question sets, on the machine "
        "and with the weights, parameters and number of questions of these records.",
    ),
)


class PublishedSpeedup(NamedTuple):
    """One published speedup.

    Attributes:
        method: name of the method here.
        models, datasets: names here of what the figure covers; rows of these are shown with it.
        model, dataset, temperature: the same in the paper's words.
        speedup: over plain autoregressive decoding, as the paper prints it.
        source: paper, and the table, section or abstract in it.
    """

    method: str
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    model: str
    dataset: str
    temperature: str
    speedup: str
    source: str

    def measured(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of `speedup` with this figure's method on one of its models and sets."""
        if rows.empty:
            return rows
        named = (rows["method"] == self.method) & rows["speedup"].notna()
        return rows[named & rows["model"].isin(self.models) & rows["dataset"].isin(self.datasets)]


PUBLISHED = (
    PublishedSpeedup(
        method="chimera",
        models=("vicuna-7b-v1.3", "vicuna-13b-v1.3", "llama-2-7b-chat", "llama-2-13b-chat"),
        datasets=("mt_bench", "vicuna_bench"),
        model="Vicuna and LLaMA-2, 7B and 13B",
        dataset="MT-Bench and Vicuna-Bench",
        temperature="greedy and sampling",
        speedup="2.7×, average of all",
        source="arXiv 2402.15758, abstract",
    ),
)
