"""Which turns the page shows step by step: pandas in, turns out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports.measures.ratios import SIDES, speedup_of
from reports.page.model import Page
from reports.page.step_texts import difference
from reports.read.preparation import pairs

SEED = 0

GAIN, LOSS, MIDDLE, DIVERGING, DRAWN = KINDS = (
    "largest gain",
    "largest loss, or smallest gain",
    "nearest to the median",
    "differs from the reference",
    "drawn at random",
)


class Turns:
    """Every turn that a reference answered, in the first repeat in which it did: of those with the
    phase clock, which have steps, where there are any.

    Attributes:
        style: of each label, as the page has it.
        table: one row each: panel, answer, prompt_id, turn, best (the speedup of the panel's
            fastest lossless method on it) and differs (the earliest position at which a lossless
            method's ids are not the reference's), nan where there is none.
        records: of these turns, with what `pairs` adds, ratio (the pair's speedup), place
            (where the ids first differ, nan where they are equal or sampled), fastest (whether the
            record is of the fastest lossless method) and rank, by which the answers of a turn
            stand side by side: the reference, the fastest, the others by speedup.
    """

    def __init__(self, page: Page) -> None:
        self.style = page.style
        good = page.records[page.records["ok"]]
        reference = good[good["reference"]]
        first = reference.sort_values(["timed", "repeat"], kind="stable")  # steps are not timed
        first = first.drop_duplicates(["panel", "question", "turn"]).sort_index()
        key = ["panel", "answer"]
        table = first[[*key, "prompt_id", "turn"]].reset_index(drop=True)
        both = pd.concat(
            [_paired(good.merge(table[key], on=key)), _stock(good, first[~first["timed"]])],
            ignore_index=True,
        )
        real = both["decoded"] & ~both["synthetic"]
        both = both.assign(ratio=np.nan, place=_places(both))
        sides = both.loc[real, list(SIDES)].to_numpy(dtype=np.float64)
        both.loc[real, "ratio"] = speedup_of(sides)
        rank, fastest = _ranks(page, both)
        self.records = both.assign(rank=rank, fastest=fastest).sort_values("rank", kind="stable")
        self._places = self.records.groupby(key).indices
        found = {
            "best": both[fastest].groupby(key)["ratio"].min(),
            "differs": both[~both["lossy"].astype(bool)].groupby(key)["place"].min(),
        }
        self.table = table.join(pd.DataFrame(found), on=key)

    def __len__(self) -> int:
        return len(self.table)

    def choose(self, count: int) -> list[tuple[int, str]]:
        """(the turn's place in the table, why) for at most `count` turns, panel by panel; panels
        take turns in naming one of each kind."""
        panels = [_kinds(rows) for _, rows in self.table.groupby("panel", sort=False)]
        chosen: dict[int, str] = {}
        while len(chosen) < count and any(any(kinds.values()) for kinds in panels):
            for kind, kinds in itertools.product(KINDS, panels):
                left = (at for at in kinds[kind] if at not in chosen)
                at = next(left, None)
                kinds[kind] = list(left)
                if at is not None and len(chosen) < count:
                    chosen[at] = kind
        order = {panel: place for place, panel in enumerate(self.table["panel"].unique())}
        return sorted(chosen.items(), key=lambda one: order[self.table["panel"][one[0]]])

    def answers(self, at: int) -> pd.DataFrame:
        """The records of one turn, in the order in which they stand."""
        turn = self.table["panel"][at], self.table["answer"][at]
        return self.records.iloc[self._places[turn]]


def _paired(records: pd.DataFrame) -> pd.DataFrame:
    """Records with what `pairs` adds."""
    held = pairs(records)
    return records.join(held[held.columns.difference(records.columns)])


def _stock(good: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """The stock row's first answers to the turns of `shown`, as answers of the repeat shown there:
    it has none with the phase clock. Each is paired with the reference's of its own repeat."""
    turn = ["panel", "prompt"]
    both = _paired(good[good["stock"] | good["reference"]])
    first = both[both["stock"]].sort_values("repeat", kind="stable").drop_duplicates(["row", *turn])
    return first.drop(columns="answer").merge(shown[[*turn, "answer"]], on=turn)


def _kinds(rows: pd.DataFrame) -> dict[str, list[int]]:
    """The turns of one panel as each kind would name them, the first choice first."""
    best = rows["best"].dropna()
    drawn = list(rows.index)
    random.Random(SEED).shuffle(drawn)
    return {
        GAIN: list(best.sort_values(ascending=False, kind="stable").index),
        LOSS: list(best.sort_values(kind="stable").index),
        MIDDLE: list((best - best.median()).abs().sort_values(kind="stable").index),
        DIVERGING: list(rows["differs"].dropna().sort_values(kind="stable").index),
        DRAWN: drawn,
    }


def _places(both: pd.DataFrame) -> list[float]:
    """Of each greedy record: where its ids first differ from those of its turn's reference."""
    turns = list(zip(both["panel"], both["answer"], strict=True))
    held = both["reference"]
    expected = {
        turn: ids for turn, ids, is_it in zip(turns, both["output_ids"], held, strict=True) if is_it
    }
    greedy = both["temperature"].eq(0) & ~held
    return [
        _place(ids, expected.get(turn)) if compared else np.nan
        for turn, ids, compared in zip(turns, both["output_ids"], greedy, strict=True)
    ]


def _place(ids: Sequence[int], expected: Sequence[int] | None) -> float:
    if expected is None or ids == expected:
        return np.nan
    place = difference(ids, expected)
    return np.nan if place is None else place


def _ranks(page: Page, both: pd.DataFrame) -> tuple[pd.Series[float], pd.Series[bool]]:
    """(order of a turn's answers, which are the fastest lossless method's)."""
    rows = page.speedup
    if rows.empty:
        return pd.Series(0.0, both.index), pd.Series(False, both.index)
    rows = rows.set_index("row")
    fastest = both["row"].map(rows["fastest"]).fillna(False).astype(bool)
    rank = -both["row"].map(rows["speedup"]).fillna(-np.inf)
    return rank.mask(fastest, -1e300).mask(both["reference"], -np.inf), fastest
