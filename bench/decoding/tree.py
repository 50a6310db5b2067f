"""Token trees: what one verify forward looks at.

Node 0 is the root, the newest token whose keys are not in the cache yet; every other node is a
drafted token and names an earlier node as its parent. Siblings are tried in index order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Topology:
    """The shape of a token tree of w nodes.

    Attributes:
        parents: int64 [w], `parents[0] == -1` and `parents[i] < i` otherwise.
        acceptable: bool [w] or None for all: nodes that an acceptance rule may take. Lookahead's
            window rides in the tree but is never emitted.
        lasting: whether this object serves many steps, so that an engine keeps a padded copy of it
            for good; a tree made anew at each step is not. Of a lasting tree without branches, the
            flags in `acceptable` may change from step to step.
        height: levels below the root, as many as were drafted; None where the host does not know.
    """

    parents: Tensor
    acceptable: Tensor | None = None
    lasting: bool = False
    height: int | None = None

    @classmethod
    def of(
        cls,
        parents: Sequence[int],
        device: torch.device | str = "cpu",
        acceptable: Sequence[bool] | None = None,
        lasting: bool = False,
    ) -> Topology:
        """From a list of parent indices; ValueError where it is not a tree in topological order.

        Masks and depths are worked out on the host: two uploads instead of many small launches.
        """
        if not parents or parents[0] != -1:
            raise ValueError("a token tree starts with its root: parents[0] must be -1")
        if any(not 0 <= parent < node for node, parent in enumerate(parents) if node):
            raise ValueError("each node's parent must come before it")
        w, depths, reach = len(parents), [0], [1]  # bit j of reach[i]: j is i or above it
        for node, parent in enumerate(parents[1:], start=1):
            depths.append(depths[parent] + 1)
            reach.append(reach[parent] | 1 << node)
        size = -(-w // 8)
        rows = np.frombuffer(b"".join(r.to_bytes(size, "little") for r in reach), np.uint8)
        bits = np.unpackbits(rows.reshape(w, size), axis=1, count=w, bitorder="little")
        numbers = torch.tensor([parents, depths]).to(device)
        flags = None if acceptable is None else torch.tensor(acceptable, device=device)
        topology = cls(numbers[0], flags, lasting, max(depths))
        # As cached_property would leave them.
        topology.__dict__["depths"] = numbers[1]
        topology.__dict__["ancestors"] = torch.from_numpy(bits.view(np.bool_)).to(device)
        return topology

    @classmethod
    def grown(cls, parents: Tensor, height: int) -> Topology:
        """A tree made anew on the device, int64 [w], at most `height` levels below the root."""
        above = parents.clamp(min=0)
        reach = own = torch.eye(parents.shape[0], dtype=torch.bool, device=parents.device)
        for _ in range(height):
            reach = own | reach[above]
        topology = cls(parents, lasting=False, height=height)
        topology.__dict__["ancestors"] = reach
        topology.__dict__["depths"] = reach.sum(dim=1) - 1
        return topology

    @classmethod
    def from_rank_paths(
        cls, paths: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> Topology:
        """From rank paths, Medusa's notation (arXiv 2401.10774, section 2.3.1).

        `(0, 2)` is the third-ranked continuation of the first-ranked one. Missing prefixes are
        added. Nodes come level by level, siblings by rank. The tree lasts.
        """
        nodes = {tuple(path[:k]) for path in paths for k in range(len(path) + 1)} | {()}
        order = sorted(nodes, key=lambda path: (len(path), path))
        index = {path: i for i, path in enumerate(order)}
        return cls.of([-1] + [index[path[:-1]] for path in order[1:]], device, lasting=True)

    def first(self, w: int) -> Topology:
        """The first w nodes, as a tree of their own; views of the same tensors."""
        flags = None if self.acceptable is None else self.acceptable[:w]
        topology = Topology(self.parents[:w], flags, self.lasting, self.height)
        topology.__dict__["ancestors"] = self.ancestors[:w, :w]
        topology.__dict__["depths"] = self.depths[:w]
        return topology

    @property
    def width(self) -> int:
        """Number of nodes, the root counted: the width of the verify forward."""
        return self.parents.shape[0]

    @cached_property
    def ancestors(self) -> Tensor:
        """bool [w, w]: `ancestors[i, j]` where j is i or above it; the tree's attention mask."""
        w = self.width
        reach = torch.eye(w, device=self.parents.device)
        if w > 1:
            reach[torch.arange(1, w, device=reach.device), self.parents[1:]] = 1.0
        # (I + A)^(2^k) reaches 2^k levels up.
        for _ in range(max(w - 1, 1).bit_length()):
            reach = (reach @ reach).clamp_(max=1.0)
        return reach.bool()

    @cached_property
    def depths(self) -> Tensor:
        """int64 [w]: distance to the root."""
        return self.ancestors.sum(dim=1) - 1

    @property
    def elder_siblings(self) -> Tensor:
        """bool [w, w]: `[i, j]` where j shares i's parent, comes first and may be accepted.

        Kept for a lasting tree alone: the tensors of another may be written anew at each step."""
        return self._elder_siblings if self.lasting else self._find_elder_siblings()

    @cached_property
    def _elder_siblings(self) -> Tensor:
        return self._find_elder_siblings()

    def _find_elder_siblings(self) -> Tensor:
        same = self.parents[:, None] == self.parents[None, :]
        elder = same.tril(diagonal=-1)
        return elder if self.acceptable is None else elder & self.acceptable

    @cached_property
    def bias(self) -> Tensor:
        """float32 [w, w]: the mask in additive form, 0 where visible and -inf elsewhere."""
        hidden = ~self.ancestors
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)

    @cached_property
    def children(self) -> Tensor:
        """int64 [w, b]: each node's acceptable children in index order, -1 behind them."""
        w = self.width
        rank = self.elder_siblings.sum(dim=1)  # [w], place among the siblings
        taken = torch.ones_like(rank, dtype=torch.bool)
        if self.acceptable is not None:
            taken = self.acceptable.clone()
        taken[0] = False
        table = torch.full((w, int(rank.max()) + 1), -1, device=rank.device)
        nodes = taken.nonzero().squeeze(1)
        table[self.parents[nodes], rank[nodes]] = nodes
        return table


@dataclass(frozen=True)
class TokenTree:
    """A topology and its tokens.

    Attributes:
        tokens: int64 [w].
        topology: the shape; reuse one object for a static tree, its masks are computed once.
        worth: int64 [1], how many of the nodes are worth verifying, the first ones, the root
            counted; None for all.
    """

    tokens: Tensor
    topology: Topology
    worth: Tensor | None = None

    @property
    def width(self) -> int:
        return self.topology.width

    def first(self, w: int) -> TokenTree:
        """The first w nodes, as a tree of their own."""
        return TokenTree(self.tokens[:w], self.topology.first(w))
