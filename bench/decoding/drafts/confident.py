"""Trees grown by confidence (EAGLE-2, arXiv 2406.16858, section 4).

Each level expands the `beam` likeliest nodes of the level above, by the log-probability of their
paths; of all candidates the `nodes` likeliest make the tree, likeliest first. With `nodes` of AUTO
each step verifies as many of them as are worth their time (`worth.py`).
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.decoding.decoder import AUTO, Count
from bench.decoding.drafts.worth import SIZES, NodesWorth
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology

# The m candidates of a level: tokens [m], parents' numbers [m], log-probabilities of paths [m].
Candidates: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Expand(Protocol):
    """A draft model, as a growing tree asks for it."""

    def __call__(self, tokens: Tensor, above: Tensor, level: int, visible: Tensor) -> Tensor:
        """logits [n, V'] of the children of n nodes, which lie at depth `level`, from 1.

        Args:
            tokens: int64 [n], the nodes'.
            above: int64 [n], the place of each one's parent among the nodes that the call before
                expanded; 0 for the root.
            visible: bool [n, rows], which of the tree's rows each one sees: its ancestors' and its
                own. They are in the order of expansion.
        """


class ConfidentTree:
    """Grows trees of the likeliest paths, in static shapes and without host reads.

    Attributes:
        depth: number of drafted levels.
        worth: chooses how many of the nodes are verified; None for all.
    """

    def __init__(
        self, nodes: Count, depth: int, beam: int, target: TargetModel, root_row: bool = True
    ) -> None:
        """`root_row`: whether the root's is the first of the tree's rows; otherwise its key and
        value are committed, and it sees none of the tree's."""
        self._nodes, self.depth, self._beam = most(nodes), depth, beam
        self.worth = NodesWorth(target) if nodes == AUTO else None
        self._target = target
        self._spread = target.fuse(self._candidates)
        self._onward = target.fuse(self._frontier)
        self._stay = target.fuse(self._best)
        self._alone = torch.eye(beam, dtype=torch.bool, device=target.device)
        self._first = self._alone[:1, :1] if root_row else None
        self._nothing = torch.zeros(1, 1, dtype=torch.bool, device=target.device)

    def grow(self, root: Tensor, expand: Expand, vocabulary: Tensor) -> TokenTree:
        """The tree below `root`, int64 [1]; `vocabulary` int64 [V'] has the target's ids."""
        device = root.device
        found: list[Candidates] = []  # by level
        tokens, above = root, torch.zeros_like(root)  # nodes to expand,
        number = torch.full((1,), -1, device=device)  # their numbers as candidates, the root -1,
        path = torch.zeros(1, device=device)  # and log-probabilities of their paths
        visible = self._first  # rows of their ancestors and their own
        count = 0
        for level in range(1, self.depth + 1):
            seen = self._nothing if visible is None else visible
            logits = expand(tokens, above, level, seen)
            likely, index = self._target.likeliest(logits, self._beam)
            found.append(self._spread(number, path, likely, vocabulary[index]))
            if level < self.depth:
                kept = self._target.top(found[-1][2][None], self._beam)[1][0]  # of n * beam
                tokens, above, path, number, visible = self._onward(found[-1], kept, visible, count)
                count += len(found[-1][2])
        drafted, parents, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        chosen, parents = self._stay(parents, scores)
        worth = None if self.worth is None else self.worth.choose(scores[chosen])
        topology = Topology.grown(parents, self.depth)
        return TokenTree(torch.cat((root, drafted[chosen])), topology, worth)

    def _candidates(
        self, number: Tensor, path: Tensor, likely: Tensor, tokens: Tensor
    ) -> Candidates:
        """Children of n nodes. likely (log-probabilities), tokens: [n, beam]."""
        scores = (path[:, None] + likely).flatten()
        return tokens.flatten(), number[:, None].expand(tokens.shape).flatten(), scores

    def _frontier(
        self, found: Candidates, kept: Tensor, visible: Tensor | None, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(tokens, places of parents, path scores, numbers, visible rows) of the level's `kept`
        candidates, int64 [beam]; `count` candidates came before this level's."""
        tokens, _, scores = found
        above = kept // self._beam
        # A child sees the rows that its parent saw, which include the parent's own, and itself.
        before = () if visible is None else (visible[above],)
        seen = torch.cat((*before, self._alone), dim=1)
        return tokens[kept], above, scores[kept], kept + count, seen

    def _best(self, parents: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """(the best candidates, likeliest first; the tree's parents with the root first). A path
        never scores above its prefix, and the earlier of equal scores wins, so that parents come
        before their children."""
        order = torch.arange(len(scores), device=scores.device)
        earlier = order[None] < order[:, None]
        ahead = (scores[None] > scores[:, None]) | ((scores[None] == scores[:, None]) & earlier)
        place = ahead.sum(dim=1)
        nodes = min(self._nodes, len(scores))
        chosen = order.new_zeros(nodes + 1).scatter(0, place.clamp(max=nodes), order)[:nodes]
        # Parent -1 reads the last place, the root's.
        above = F.pad(place + 1, (0, 1))[parents[chosen]]
        return chosen, F.pad(above, (1, 0), value=-1)


def most(nodes: Count) -> int:
    """Nodes of the largest tree."""
    return SIZES[-1] if nodes == AUTO else nodes
