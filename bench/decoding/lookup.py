"""The text so far on the device, and what followed its end earlier in it: prompt lookup
(Saxena, "Prompt Lookup Decoding", 2023) as part of another method's tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict

LONGEST = 3  # tokens of the end that are compared


class TextLookup:
    """A chain of `k` nodes from the text so far, below the root of a drafted tree.

    x is the text of c tokens, its last one the root. m_p is the number of tokens, LONGEST at most,
    in which the text before position p agrees with its end:

        m_p = max{m : x[p-m .. p-1] = x[c-m .. c-1]},  1 <= p < c

    The chain follows the p with the largest m_p, the latest among equals: x[p], x[p+1], ... Behind
    the end it goes on as if the text repeated itself from there. Where no position agrees, the
    chain is a guess like any other: drafts never change what is emitted.

    All but `start` works on the device alone, at addresses that stay, so that it can be captured.
    """

    def __init__(self, target: TargetModel, k: int) -> None:
        self._target, self._k = target, k
        self._ids = torch.zeros(0, dtype=torch.long, device=target.device)  # x
        self._count = torch.zeros(1, dtype=torch.long, device=target.device)  # c
        self._steps = torch.arange(k, device=target.device)
        self._chains: dict[int, tuple[Topology, Topology]] = {}  # by id of the tree's own
        self._propose, self._append = target.fuse(self._proposal), target.fuse(self._appended)

    def start(self, ids: Sequence[int]) -> None:
        """A new text."""
        # A step writes a whole path, of which the accepted part counts.
        rows = self._target.cache.capacity + self._k
        if len(self._ids) < rows:
            self._ids = torch.zeros(rows, dtype=torch.long, device=self._target.device)
        self._ids[: len(ids)].copy_(self._target.tensor(ids))
        self._count.fill_(len(ids))

    def extend(self, tree: TokenTree, verdict: Verdict, levels: int) -> None:
        """Append a step's accepted tokens and its bonus token; a path has at most `levels`."""
        path = verdict.path[: levels + 1]
        self._append(tree.tokens, path, verdict.length.view(1), verdict.bonus.view(1), self._ids)

    def joined(self, tree: TokenTree) -> TokenTree:
        """The tree with the chain behind its own nodes."""
        tokens = torch.cat((tree.tokens, self._propose(self._ids)))
        return TokenTree(tokens, self._with_chain(tree.topology))

    def _with_chain(self, own: Topology) -> Topology:
        w = own.width
        if not own.lasting:
            parents = torch.cat((own.parents, w - 1 + self._steps))
            parents[w].zero_()
            return Topology.grown(parents, max(own.height or w, self._k))
        if id(own) not in self._chains:
            parents_ = [*own.parents.tolist(), 0, *range(w, w + self._k - 1)]
            device = self._target.device
            self._chains[id(own)] = own, Topology.of(parents_, device, lasting=True)
        return self._chains[id(own)][1]

    def _proposal(self, ids: Tensor) -> Tensor:
        """int64 [k] from x, int64 [rows], of which `count` are text."""
        position, count = torch.arange(len(ids), device=ids.device), self._count
        matched, agrees = torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool)
        for back in range(1, LONGEST + 1):
            end = ids[(count - back).clamp(min=0)]
            agrees = agrees & (position >= back) & (ids.roll(back) == end) & (count >= back)
            matched = matched + agrees
        inside = (position >= 1) & (position < count)
        place = (matched * len(ids) + position).masked_fill(~inside, -1).argmax().view(1)  # p
        place = place.clamp(min=0).minimum(count - 1)
        return ids[place + self._steps % (count - place)]

    def _appended(
        self, tokens: Tensor, path: Tensor, accepted: Tensor, bonus: Tensor, ids: Tensor
    ) -> None:
        """Write behind x; tokens int64 [w], path int64 [levels + 1] from the root, accepted and
        bonus int64 [1]."""
        order = torch.arange(len(path), device=path.device)
        emitted = torch.where(order == accepted, bonus, tokens[path.roll(-1)])
        ids.index_copy_(0, (self._count + order).clamp(max=len(ids) - 1), emitted)
        self._count.add_(accepted + 1)
