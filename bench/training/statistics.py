"""Accepted lengths and accuracies of a draft, from the ranks that it gives the true tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.decoding.drafts import ranks
from bench.decoding.drafts.ranks import RankPath

NODES = (8, 15, 26, 63)  # sizes of the trees whose accepted length is reported


def statistics(found: Tensor) -> dict[str, Any]:
    """Accepted lengths by nodes, of trees grown on one half and evaluated on the other, and the
    accuracy by depth, of ranks int64 [n, depth]."""
    fit, rest = found[::2], found[1::2]
    accepted = {str(nodes): ranks.accepted_length(rest, ranks.grow(fit, nodes)) for nodes in NODES}
    return {
        "accepted": accepted,
        "top1": ranks.top_accuracy(found),
        "top3": ranks.top_accuracy(found, 3),
        "anchors": len(found),
    }


def tree(found: Tensor) -> list[list[int]]:
    """The static tree for a card, as JSON: rank paths grown on all of ranks int64 [n, depth]."""
    paths: list[RankPath] = ranks.grow(found, max(NODES) + 1)
    return [list(path) for path in paths]
