"""What row-invariant forwards cost: plain decoding on engine exact against engine compile."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.statistics import estimates
from reports.measures import Definitions
from reports.measures.ratios import SIDES, speedup_of
from reports.read.preparation import good

PRICED, CHEAPER = "exact", "compile"  # engines
SETTING = ("model", "dataset", "temperature", "dtype", "device", "max_new_tokens")
TURN = ("prompt_id", "turn", "repeat", "prompt_sha256")

DEFINITIONS: Definitions = (
    (
        "Price of exact",
        "the reference's decode seconds per token on engine exact divided by those on engine "
        "compile, over the turns and repeats that both have, with the 95 % interval of a speedup.",
    ),
)


def price(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting in which the reference ran on both engines: exact_ms and compile_ms
    a token, price (their ratio), low, high, and how many questions they share."""
    known = good(records)
    more = [name for name in (*SETTING, *TURN, "engine") if name not in known]
    timed = known.join(records[more])
    timed = timed[timed["reference"] & timed["timed"] & (timed["tokens"] > 0)]
    one, other = (
        timed[timed["engine"] == engine].drop_duplicates([*SETTING, *TURN], keep="last")
        for engine in (PRICED, CHEAPER)
    )
    key = [*SETTING, *TURN]
    both = one.merge(other[[*key, "tokens", "decode_s"]], on=key, suffixes=("_ref", ""))
    if both.empty:
        return pd.DataFrame()
    groups = both.groupby(list(SETTING), dropna=False, sort=False)
    found = estimates(
        groups.ngroup().to_numpy(dtype=np.int64),
        pd.factorize(both["prompt_id"].astype(str))[0].astype(np.int64),
        both["repeat"].to_numpy(dtype=np.int64),
        both[list(SIDES)].to_numpy(dtype=np.float64),
        speedup_of,
        groups.ngroups,
    )
    sums = groups[list(SIDES)].sum()
    return sums.index.to_frame(index=False).assign(
        exact_ms=1000 * (sums["decode_s_ref"] / sums["tokens_ref"]).to_numpy(),
        compile_ms=1000 * (sums["decode_s"] / sums["tokens"]).to_numpy(),
        price=found.value,
        low=found.low,
        high=found.high,
        questions=groups["prompt_id"].nunique().to_numpy(),
    )
