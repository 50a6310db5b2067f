"""The reference's speed on each card, where several cards measured one setting."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from bench.statistics import LEVEL, holm
from reports.measures import Definitions
from reports.read.preparation import good
from reports.read.rows import ordered, rows

DEFINITIONS: Definitions = (
    (
        "Card against the others",
        "the reference's decode seconds per token on this card divided by those on the other cards "
        "of the setting, as geometric means over questions. Every question ran on one card with "
        "all its methods, so that a slow card moves no speedup, but tokens/s. Marked where Welch's "
        "test of the logarithms, corrected by Holm's method for all rows of the table, gives "
        "p < 0.05.",
    ),
)


def cards(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each reference and card of the settings that several cards measured: card, ms (a
    token), prompts, others, p (corrected), differs. A card with fewer than two
    questions has no p.
    """
    known = good(records).assign(card=records["card"])
    timed = known[known["reference"] & known["timed"] & (known["tokens"] > 0)]
    timed = timed[timed["card"].notna()]
    timed = timed[timed.groupby("row")["card"].transform("nunique") > 1]
    if timed.empty:
        return pd.DataFrame()
    found = rows(timed, records, more=("card",))
    every = pd.Series(True, index=found.records.index)
    sums = found.sums(("tokens", "decode_s"))
    table = found.facts.assign(
        ms=1000 * sums["decode_s"] / sums["tokens"], prompts=found.distinct("question", every)
    )
    by_question = timed.groupby(["row", "card", "question"])[["tokens", "decode_s"]].sum()
    seconds = by_question["decode_s"] / by_question["tokens"]
    logs = seconds.map(np.log).reset_index(name="log")
    p, others = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for at, (row, card) in enumerate(zip(table["row"], table["card"], strict=True)):
        setting = logs[logs["row"] == row]
        own = setting.loc[setting["card"] == card, "log"]
        rest = setting.loc[setting["card"] != card, "log"]
        others[at] = np.exp(own.mean() - rest.mean())
        if min(len(own), len(rest)) > 1:
            p[at] = ttest_ind(own, rest, equal_var=False).pvalue
    corrected = holm(p)
    table = table.assign(others=others, p=corrected, differs=corrected < 1 - LEVEL)
    return ordered(records, table.sort_values("card", kind="stable"))
