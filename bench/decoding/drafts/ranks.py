"""Static trees from rank statistics.

Under teacher forcing, record at each depth the rank that a draft gives the true token. The accepted
length of any static tree follows: a step is accepted as deep as its rank path stays in the tree.
Counts of rank prefixes do not increase along a path, so taking the most frequent prefixes first
gives, for every n, the tree of n nodes with the longest accepted length on those statistics (the
greedy algorithm of Medusa, arXiv 2401.10774, section 2.3.3, with joint counts instead of products
of marginals).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

RANK_LIMIT = 24  # this rank and worse ones count as misses

RankPath = tuple[int, ...]


def ranks_of(logits: Tensor, true: Tensor) -> Tensor:
    """int64 [...]: how many entries of logits [..., V] are larger than entry `true` [...], at most
    RANK_LIMIT; RANK_LIMIT where `true` is negative (not in the draft vocabulary)."""
    own = logits.gather(-1, true.clamp(min=0)[..., None])
    rank = (logits > own).sum(dim=-1).clamp(max=RANK_LIMIT)
    return torch.where(true < 0, RANK_LIMIT, rank)


def grow(ranks: Tensor, nodes: int) -> list[RankPath]:
    """The best `nodes` rank paths for ranks int64 [n, depth], the most frequent first. Every prefix
    of the list is a tree."""
    counts: Counter[RankPath] = Counter()
    for row in ranks.tolist():
        for k, rank in enumerate(row, start=1):
            if rank >= RANK_LIMIT:
                break
            counts[tuple(row[:k])] += 1
    order = sorted(counts, key=lambda path: (-counts[path], len(path), path))
    return order[:nodes]


def accepted_length(ranks: Tensor, paths: Sequence[RankPath]) -> float:
    """Mean tokens that a verify step of the tree `paths` emits, the bonus token included."""
    inside = set(map(tuple, paths))
    total = 0
    for row in ranks.tolist():
        depth = 0
        while depth < len(row) and tuple(row[: depth + 1]) in inside:
            depth += 1
        total += depth + 1
    return total / max(len(ranks), 1)


def top_accuracy(ranks: Tensor, k: int = 1) -> list[float]:
    """Share of true tokens among the first k ranks, by depth."""
    shares: list[float] = (ranks < k).float().mean(dim=0).tolist()
    return shares
