"""A static tree of rank paths level by level, as a draft grows it on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bench.decoding.drafts.ranks import RankPath


@dataclass(frozen=True)
class Level:
    """One level of m nodes below the n nodes that were expanded in the level above.

    Attributes:
        parent: int64 [m], the place of each node's parent among those n.
        rank: int64 [m], the rank of each node below its parent.
        inner: int64 [k], which of the m nodes are expanded next: those with children.
        ranks: number of ranks needed.
    """

    parent: Tensor
    rank: Tensor
    inner: Tensor
    ranks: int

    @classmethod
    def merged(cls, levels: Sequence[Level]) -> Level:
        """All levels as one below a row of ranked drafts for each, where the drafts of a level are
        the same behind every node above it."""
        rank = torch.cat([level.rank for level in levels])
        rows = [torch.full_like(level.rank, row) for row, level in enumerate(levels)]
        ranks = max(level.ranks for level in levels)
        return cls(torch.cat(rows), rank, rank.new_empty(0), ranks)


def levels_of(paths: Sequence[RankPath], device: torch.device) -> list[Level]:
    """The levels of a tree, its nodes in the order of `Topology.from_rank_paths`."""
    ordered = sorted(set(paths), key=lambda path: (len(path), path))
    expanded = {path[:-1] for path in ordered}
    above: list[RankPath] = [()]
    levels = []
    for _, nodes in groupby(ordered, key=len):
        level = list(nodes)
        inner = [i for i, path in enumerate(level) if path in expanded]
        numbers = (
            [above.index(path[:-1]) for path in level],
            [path[-1] for path in level],
            inner,
        )
        parent, rank, place = (torch.tensor(x, dtype=torch.long, device=device) for x in numbers)
        levels.append(Level(parent, rank, place, int(rank.max()) + 1))
        above = [level[i] for i in inner]
    return levels
