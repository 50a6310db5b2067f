"""Medusa as a decoder: lossless on its tree, or with typical acceptance (lossy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from baselines.medusa import published
from baselines.medusa.model import Medusa as MedusaHeads
from bench.decoding.decoder import Settings
from bench.decoding.drafts.loading import DraftModelDecoder, PublishedLayouts
from bench.decoding.engines import ops
from bench.decoding.lookup import TextLookup
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict, typical


@dataclass(frozen=True)
class MedusaSettings(Settings):
    """Parameters.

    Attributes:
        nodes: drafted nodes of the tree, the root not counted.
        lookup: how many of them are a chain that prompt lookup finds in the text so far.
    """

    nodes: int = 26
    lookup: int = 0

    def __post_init__(self) -> None:
        self.require("medusa", nodes=1, lookup=0)
        self.require("medusa", nodes=self.lookup + 1)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"nodes": (3, 5, 7, 10, 15, 26, 63), "lookup": (0, 3, 5)}


class Medusa(DraftModelDecoder[MedusaHeads]):
    """Parallel heads on h_t; a node's token is its head's choice at the node's rank."""

    name: ClassVar[str] = "medusa"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = MedusaSettings
    trained_as: ClassVar[str] = "medusa"
    package: ClassVar[str] = "baselines.medusa.weights"
    layouts: ClassVar[PublishedLayouts] = published
    paper_tree: ClassVar[Sequence[int]] = (10, 28, 23, 2)  # 63 nodes
    draft_model = MedusaHeads

    def __init__(self, target: TargetModel, settings: MedusaSettings) -> None:
        super().__init__(target, settings)
        self.heads, vocabulary, tree = self.load_draft(target, settings)
        self._vocabulary = vocabulary.to(target.device)
        self._head = target.head().weight[self._vocabulary].contiguous()
        self._score = target.product(self._head)
        depth = self.heads.config.depth
        paths = self.static_tree(settings, tree, settings.nodes - settings.lookup, depth)
        self.topology = Topology.from_rank_paths(paths, target.device)
        self.width = self.topology.width + settings.lookup
        self._levels = max(depth, settings.lookup)
        self._lookup = TextLookup(target, settings.lookup) if settings.lookup else None
        ordered = sorted(paths, key=lambda path: (len(path), path))
        self._depth = torch.tensor([len(p) - 1 for p in ordered], device=target.device)
        self._rank = torch.tensor([p[-1] for p in ordered], device=target.device)
        self._ranks = int(self._rank.max()) + 1
        self._state = torch.zeros(target.hidden_size, dtype=target.dtype, device=target.device)
        self._root = target.tensor((0,))  # the newest token
        self._draft, self._follow = target.capture(self._tree), target.capture(self._observe)

    def load_published(self, target: TargetModel, location: Path) -> tuple[MedusaHeads, str]:
        return published.load(location, target.hidden_size, target.vocab_size)

    def random_draft(self, target: TargetModel) -> tuple[MedusaHeads, str]:
        size, vocabulary = target.hidden_size, target.vocab_size
        return published.random(size, vocabulary, target.device, target.dtype)

    def draft_bytes(self) -> int:
        shared = 0 if self.heads.config.own_heads else self._head.nbytes
        return super().draft_bytes() + shared

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._state.copy_(step.hidden[-1])
        self._root.fill_(token)
        if self._lookup is not None:
            self._lookup.start((*prompt_ids, token))

    def draft(self) -> TokenTree:
        return self._draft()

    def _tree(self) -> TokenTree:
        logits = self._fused() if self.target.fuses else self.heads.logits(self._state, self._score)
        best = self.target.top(logits, self._ranks)[1]
        drafted = self._vocabulary[best[self._depth, self._rank]]
        tree = TokenTree(torch.cat((self._root, drafted)), self.topology)
        return tree if self._lookup is None else self._lookup.joined(tree)

    def _fused(self) -> Tensor:
        """logits [K, V'] as `Medusa.logits` computes them, in few kernels."""
        states = []
        for head in self.heads.heads:
            z = self._state[None]
            for block in cast(list[nn.Linear], head):
                z = ops.linear(z, block.weight, bias=block.bias, silu=True, residual=z)
            states.append(z)
        if not self.heads.lm_heads:
            return ops.linear(torch.cat(states), self._head)
        heads = cast(list[nn.Linear], self.heads.lm_heads)
        own = zip(states, heads, strict=True)
        return torch.cat([ops.linear(z, head.weight) for z, head in own])

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, step, verdict)

    def _observe(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        last = verdict.path.gather(0, verdict.length.view(1))
        self._state.copy_(step.hidden[last][0])
        self._root.copy_(verdict.bonus.view(1))
        if self._lookup is not None:
            self._lookup.extend(tree, verdict, self._levels)


class MedusaTypical(Medusa):
    """Typical acceptance above temperature 0: longer blocks, another distribution."""

    name: ClassVar[str] = "medusa_typical"
    lossless: ClassVar[bool] = False

    def accept(self, tree: TokenTree, step: Step, sampling: Sampling) -> Verdict:
        return typical(tree, sampling.probs(step.logits), sampling)
