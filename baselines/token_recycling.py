"""Token Recycling (Luo et al., arXiv 2408.08696).

An adjacency matrix M [V, k] holds, for each token, the k likeliest tokens after it as the target
last saw it in any context. A static tree is read off it: the child of rank r below a node with
token t is M[t, r]. Each verify forward gives logits at every node, accepted or not, and their top k
replace the rows of the nodes' tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.decoding.decoder import Settings, TreeDecoder
from bench.decoding.drafts.ranks import RankPath
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict

CHUNK = 256  # positions of the prompt whose logits are computed at once


@dataclass(frozen=True)
class TokenRecyclingSettings(Settings):
    """Parameters.

    Attributes:
        nodes: drafted nodes of the tree, the root not counted; the paper has 80.
        depth: deepest level.
        k: successors of each token.
        prompt: whether the matrix also takes the logits at the prompt's positions, at the cost of
            an LM head over all of them.
        warm: whether the matrix is kept from one answer to the next, as the paper has it; figures
            then depend on the order of the prompts.
    """

    nodes: int = 26
    depth: int = 6
    k: int = 8
    prompt: bool = True
    warm: bool = False

    def __post_init__(self) -> None:
        self.require("token_recycling", nodes=1, depth=1, k=1)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"nodes": (7, 10, 15, 26, 31, 45, 63, 80), "depth": (2, 3, 4, 6), "k": (2, 4, 8)}


class TokenRecycling(TreeDecoder):
    """The matrix and the tree on it stay on the device."""

    name: ClassVar[str] = "token_recycling"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = TokenRecyclingSettings

    def __init__(self, target: TargetModel, settings: TokenRecyclingSettings) -> None:
        super().__init__(target, settings)
        self.k, self._from_prompt = min(settings.k, target.vocab_size), settings.prompt
        self.carries_over = settings.warm
        paths = likeliest_paths(settings.nodes, settings.depth, self.k)
        self.topology = Topology.from_rank_paths(paths, target.device)
        self.width = self.topology.width
        self._levels = list(self._by_level(paths))
        # M, and a last row for what is not kept
        shape = target.vocab_size + 1, self.k
        self._successors = torch.zeros(shape, dtype=torch.long, device=target.device)
        self._root = target.tensor([0])  # the newest token
        self._draft, self._follow = target.capture(self._tree), target.capture(self._learn)

    def _by_level(self, paths: Sequence[RankPath]) -> list[tuple[Tensor, Tensor]]:
        """(place of each node's parent in the level above, its rank), each int64 [m], by level."""
        above: list[RankPath] = [()]
        levels = []
        for _, nodes in groupby(sorted(paths, key=lambda path: (len(path), path)), key=len):
            level = list(nodes)
            places = {path: i for i, path in enumerate(above)}
            parents = [places[path[:-1]] for path in level]
            ranks = [path[-1] for path in level]
            levels.append((self.target.tensor(parents), self.target.tensor(ranks)))
            above = level
        return levels

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        if not self.carries_over:
            self._successors.zero_()
        self._root.fill_(token)
        if self._from_prompt:
            head = self.target.head()
            ids = torch.split(self.target.tensor(prompt_ids), CHUNK)
            for tokens, hidden in zip(ids, torch.split(step.hidden, CHUNK), strict=True):
                self._replace(tokens.flip(0), head(hidden).flip(0))  # the latest counts

    def draft(self) -> TokenTree:
        return self._draft()

    def _tree(self) -> TokenTree:
        tokens = [self._root]
        for parent, rank in self._levels:
            tokens.append(self._successors[tokens[-1][parent], rank])
        return TokenTree(torch.cat(tokens), self.topology)

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, step, verdict)

    def _learn(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._replace(tree.tokens, step.logits)
        self._root.copy_(verdict.bonus.view(1))

    def _replace(self, tokens: Tensor, logits: Tensor) -> None:
        """New rows of M for tokens int64 [n], from logits [n, V]; of equal tokens the first counts,
        in a tree the one nearest to the root."""
        best = self.target.top(logits, self.k)[1]  # [n, k]
        again = (tokens[:, None] == tokens[None]).tril(diagonal=-1).any(dim=1)
        rows = torch.where(again, len(self._successors) - 1, tokens)
        self._successors.index_copy_(0, rows, best)


def likeliest_paths(nodes: int, depth: int, k: int) -> list[RankPath]:
    """A tree of `nodes` rank paths, the likeliest first, where the child of rank r is right with
    probability 1 / (2 (1 + r)): broad near the root and deep along low ranks, as the paper's is."""
    found: list[RankPath] = []
    # (-log probability, path), without the probability of its level being any of the k
    heap: list[tuple[float, RankPath]] = [(math.log(2), (0,))]
    while heap and len(found) < nodes:
        cost, path = heapq.heappop(heap)
        found.append(path)
        rank = path[-1]
        if rank + 1 < k:
            step = math.log((rank + 2) / (rank + 1))
            heapq.heappush(heap, (cost + step, (*path[:-1], rank + 1)))
        if len(path) < depth:
            heapq.heappush(heap, (cost + math.log(2), (*path, 0)))
    return found
