"""SuffixDecoding (Oliaro et al., arXiv 2411.04975).

The last p tokens of the text are looked up in what came before. All their earlier occurrences
together form a tree of continuations, a part of the suffix tree, in which a node's count C is the
number of occurrences that go on that way. A draft is grown from the root by the estimated
probability of its nodes, D(child) = D(parent) C(child) / C(parent), up to alpha p nodes; of the
drafts for p = 1, 2, ... the one with the largest sum of D is verified.

The suffix tree is not stored: a node of it is the list of the places that its occurrences lead to.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from bench.decoding.decoder import Block, Settings, TreeDecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology

OCCURRENCES = 256  # of a pattern that are looked at, the latest
BOUNDARY = -1  # between the texts of two answers


@dataclass(frozen=True)
class SuffixSettings(Settings):
    """Parameters.

    Attributes:
        nodes: most nodes of a draft.
        p: longest pattern that is looked up.
        alpha: nodes of a draft for each token of its pattern.
        warm: whether the text of earlier prompts and answers is kept; figures then depend on the
            order of the prompts.
    """

    nodes: int = 16
    p: int = 16
    alpha: float = 2.0
    warm: bool = False

    def __post_init__(self) -> None:
        self.require("suffix", nodes=1, p=1, alpha=1.0)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"nodes": (4, 7, 15, 26), "alpha": (1.0, 2.0, 4.0)}


class Draft(NamedTuple):
    """tokens and parents of its nodes, the root first; the sum of D over the drafted ones."""

    tokens: list[int]
    parents: list[int]
    score: float


class Suffix(TreeDecoder):
    """Drafts the most frequent continuations of the last tokens."""

    name: ClassVar[str] = "suffix"
    lossless: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = SuffixSettings

    def __init__(self, target: TargetModel, settings: SuffixSettings) -> None:
        super().__init__(target, settings)
        self.nodes, self.p, self.alpha = settings.nodes, settings.p, settings.alpha
        self.carries_over = settings.warm
        self.width = settings.nodes + 1
        self._ids: list[int] = []
        self._after: defaultdict[int, list[int]] = defaultdict(list)  # token -> places behind it

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        if not self.carries_over:
            self._ids.clear()
            self._after.clear()
        self._extend((BOUNDARY, *prompt_ids, token))

    def _extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            self._ids.append(token)
            self._after[token].append(len(self._ids))

    def draft(self) -> TokenTree:
        drafts = (self._grow(p, places) for p, places in self._occurrences())
        root = Draft([self._ids[-1]], [-1], 0.0)
        best = max(drafts, key=lambda draft: draft.score, default=root)
        topology = Topology.of(best.parents, self.target.device)
        return TokenTree(self.target.tensor(best.tokens), topology)

    def _occurrences(self) -> Iterator[tuple[int, list[int]]]:
        """(p, places behind the earlier occurrences of the last p tokens), the longest first. Of
        several p with the same occurrences only the longest."""
        ids, end = self._ids, len(self._ids)
        places = self._after[ids[-1]][-OCCURRENCES - 1 : -1]  # without the end itself
        found: list[tuple[int, list[int]]] = []
        p = 1
        while places:
            if found and len(found[-1][1]) == len(places):
                found.pop()
            found.append((p, places))
            token = ids[end - p - 1]
            if p == self.p or token == BOUNDARY:
                break
            p += 1
            places = [place for place in places if ids[place - p] == token]
        yield from reversed(found)

    def _grow(self, p: int, places: list[int]) -> Draft:
        """The likeliest nodes of the tree of continuations at `places`, best first."""
        draft, score = Draft([self._ids[-1]], [-1], 0.0), 0.0
        heap: list[tuple[float, int, int, list[int]]] = []  # -D, parent, token, places
        self._push_children(heap, 0, 1.0, places)
        for node in range(1, min(self.nodes, int(self.alpha * p)) + 1):
            if not heap:
                break
            d, parent, token, behind = heapq.heappop(heap)
            draft.tokens.append(token)
            draft.parents.append(parent)
            score -= d
            self._push_children(heap, node, -d, behind)
        return draft._replace(score=score)

    def _push_children(
        self, heap: list[tuple[float, int, int, list[int]]], node: int, d: float, places: list[int]
    ) -> None:
        children: defaultdict[int, list[int]] = defaultdict(list)
        for place in places:
            if place < len(self._ids) and self._ids[place] != BOUNDARY:
                children[self._ids[place]].append(place + 1)
        for token, behind in children.items():
            heapq.heappush(heap, (-d * len(behind) / len(places), node, token, behind))

    def observe(self, block: Block, also: Sequence[int]) -> None:
        self._extend(block.ids)
