"""Static buffers of the engines whose shapes are static: a padded tree, its verdict, its masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.decoding.target import Step
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict


class StaticBuffers:
    """Buffers of forwards of one width, and of the trees and verdicts that go with them.

    Attributes:
        run: the forward of what lies in them; set by their engine.
    """

    run: Callable[[], Step]

    def __init__(self, width: int, device: torch.device) -> None:
        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.width = width
        self.depths, parents = numbers(width), numbers(width)
        self._alone = torch.eye(width, dtype=torch.bool, device=device)
        self.visible = self._alone.clone()
        # length, bonus, path, tokens: what a commit reads, in one piece
        self.packed = numbers(2 + 2 * width)
        self.tokens = self.packed[2 + width :]
        self.landing = pinned(self.packed.shape[0], device)
        self.verdict = Verdict(self.packed[0], self.packed[2 : 2 + width], self.packed[1])
        acceptable = torch.zeros(width, dtype=torch.bool, device=device)
        # Trees that change at every step are copied into this one.
        self._moving = _over(parents, acceptable, self.visible, self.depths, lasting=False)
        self._any = TokenTree(self.tokens, self._moving)
        self._lasting: dict[int, tuple[Topology, TokenTree]] = {}  # by id of the topology
        self._shown: Topology | None = None  # whose masks lie in `visible` and `depths`
        self._chain: TokenTree | None = None

    def take(self, tree: TokenTree) -> TokenTree:
        """`tree` in these buffers."""
        w, topology = tree.width, tree.topology
        self.tokens[:w].copy_(tree.tokens)
        if topology.lasting:
            kept = self._keep(topology)
            if topology.acceptable is not None and kept.topology.acceptable is not None:
                kept.topology.acceptable[:w].copy_(topology.acceptable)  # may have changed
            return kept
        self._fill(self._moving, topology)
        self._shown = self._moving
        return self._any

    def chain(self) -> TokenTree:
        """Every node below the one before: a piece of a prompt."""
        if self._chain is None:
            device = self.tokens.device
            self._chain = self._keep(Topology.of(range(-1, self.width - 1), device, lasting=True))
        return self._chain

    def show(self, tree: TokenTree) -> None:
        """Its masks are those that the next forward reads."""
        if self._shown is not tree.topology:
            self.visible.copy_(tree.topology.ancestors)
            self.depths.copy_(tree.topology.depths)
            self._shown = tree.topology

    def _keep(self, topology: Topology) -> TokenTree:
        """Its padded form, made once."""
        if id(topology) not in self._lasting:
            moving = self._moving
            padded = _over(
                torch.zeros_like(moving.parents),
                torch.zeros_like(self._alone[0]),
                torch.zeros_like(moving.ancestors),
                torch.zeros_like(moving.depths),
                lasting=True,
                height=topology.height,
            )
            self._fill(padded, topology)
            self._lasting[id(topology)] = topology, TokenTree(self.tokens, padded)
        return self._lasting[id(topology)][1]

    def _fill(self, padded: Topology, topology: Topology) -> None:
        """Copy `topology` into a wider one; the nodes behind see themselves alone and are never
        taken."""
        w = topology.width
        assert padded.acceptable is not None
        padded.parents[:w].copy_(topology.parents)
        padded.depths[:w].copy_(topology.depths)
        padded.ancestors.copy_(self._alone)
        padded.ancestors[:w, :w].copy_(topology.ancestors)
        padded.acceptable.zero_()
        if topology.acceptable is None:
            padded.acceptable[:w].fill_(True)
        else:
            padded.acceptable[:w].copy_(topology.acceptable)


def pinned(count: int, device: torch.device) -> Tensor:
    """int64 [count] on the host, where copies from the device need not wait."""
    return torch.empty(count, dtype=torch.long, pin_memory=device.type == "cuda")


def _over(
    parents: Tensor,
    acceptable: Tensor,
    ancestors: Tensor,
    depths: Tensor,
    lasting: bool,
    height: int | None = None,
) -> Topology:
    """A topology whose masks and depths lie in buffers of ours."""
    topology = Topology(parents, acceptable, lasting, height)
    topology.__dict__.update(ancestors=ancestors, depths=depths)
    return topology
