"""Hydra as a decoder: a static tree, drafted level by level along its paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from baselines.hydra import published
from baselines.hydra.model import Head
from baselines.hydra.model import Hydra as HydraHeads
from bench.decoding.decoder import Settings, TargetInfo
from bench.decoding.drafts.checkpoint import RANDOM, CheckpointError, on_hub
from bench.decoding.drafts.loading import DraftModelDecoder, PublishedLayouts
from bench.decoding.drafts.ranks import RankPath
from bench.decoding.engines import ops
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict


@dataclass(frozen=True)
class HydraSettings(Settings):
    """Parameters.

    Attributes:
        nodes: drafted nodes of the tree, the root not counted.
        depth: deepest level; 0 for the number of heads.
        vocab: most frequent tokens that the shared LM head is reduced to; 0 for all. A checkpoint's
            own LM heads score the whole vocabulary.
    """

    nodes: int = 26
    depth: int = 0
    vocab: int = 16384

    def __post_init__(self) -> None:
        self.require("hydra", nodes=1, depth=0, vocab=0)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {
            "nodes": (3, 5, 7, 10, 15, 26, 63),
            "depth": (2, 3, 4, 0),
            "vocab": (4096, 8192, 16384),
        }


@dataclass(frozen=True)
class Level:
    """One level of a static tree, of m nodes, drafted from n nodes above that have children.

    Attributes:
        parent: int64 [m], the index of each node's parent among those n.
        rank: int64 [m], the rank of each node.
        ranks: number of ranks needed.
        inner: int64 [k], which of the m nodes have children.
    """

    parent: Tensor
    rank: Tensor
    ranks: int
    inner: Tensor


def levels(paths: Sequence[RankPath], device: torch.device) -> list[Level]:
    """The levels of a tree of rank paths, nodes ordered as `Topology.from_rank_paths` does."""
    expanded = {path[:-1] for path in paths}
    found: list[Level] = []
    above: list[RankPath] = [()]
    for depth in range(1, max(map(len, paths)) + 1):
        nodes = sorted(path for path in paths if len(path) == depth)
        rank = [path[-1] for path in nodes]
        inner = [i for i, path in enumerate(nodes) if path in expanded]
        parent, ranks, inners = (
            torch.tensor(numbers, dtype=torch.long, device=device)
            for numbers in ([above.index(path[:-1]) for path in nodes], rank, inner)
        )
        found.append(Level(parent, ranks, max(rank) + 1, inners))
        above = [nodes[i] for i in inner]
    return found


class Hydra(DraftModelDecoder[HydraHeads]):
    """Head k drafts level k: it reads h_t and the tokens above, back to the root."""

    name: ClassVar[str] = "hydra"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = HydraSettings
    trained_as: ClassVar[str] = "hydra"
    package: ClassVar[str] = "baselines.hydra.weights"
    layouts: ClassVar[PublishedLayouts] = published
    paper_tree: ClassVar[Sequence[int]] = (10, 28, 23, 2)  # Medusa's, 63 nodes
    draft_model = HydraHeads

    def __init__(self, target: TargetModel, settings: HydraSettings) -> None:
        super().__init__(target, settings)
        self.heads, vocabulary, tree = self.load_draft(target, settings)
        config = self.heads.config
        self._vocabulary = vocabulary.to(target.device)
        if settings.vocab and not config.own_heads:
            self._vocabulary = self._vocabulary[: settings.vocab]
        self._head = target.head().weight[self._vocabulary].contiguous()
        self._score = target.product(self._head)
        depth = min(settings.depth or config.depth, config.depth)
        paths = self.static_tree(settings, tree, settings.nodes, depth)
        self.topology = Topology.from_rank_paths(paths, target.device)
        self.width = self.topology.width
        self._levels = levels(paths, target.device)
        self._embeddings = target.embeddings()
        options: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
        self._state = torch.zeros(1, target.hidden_size, **options)  # h_t
        self._root = target.tensor((0,))  # the newest token
        self._draft, self._follow = target.capture(self._tree), target.capture(self._observe)
        self._start, self._sprout = target.fuse(self._extended), target.fuse(self._children)

    @classmethod
    def _misfit(cls, target: TargetInfo, settings: Settings) -> str | None:
        """Published heads are read before the target is, for names and shapes."""
        reason, (d, size) = (
            super()._misfit(target, settings),
            (target.hidden_size, target.vocab_size),
        )
        checkpoint = settings.checkpoint
        if reason or not checkpoint or checkpoint == RANDOM or on_hub(checkpoint):
            return reason
        location = published.locate(checkpoint)
        if d is None or size is None or not published.recognises(location):
            return None
        try:
            published.read(location, d, size)
        except CheckpointError as error:
            return str(error)
        return None

    def load_published(self, target: TargetModel, location: Path) -> tuple[HydraHeads, str]:
        return published.load(location, target.hidden_size, target.vocab_size)

    def random_draft(self, target: TargetModel) -> tuple[HydraHeads, str]:
        size, vocabulary = target.hidden_size, target.vocab_size
        return published.random(size, vocabulary, target.device, target.dtype)

    def draft_bytes(self) -> int:
        """Each level reads its head and an LM head."""
        depth = len(self._levels)
        used = [*self.heads.heads[:depth], *self.heads.lm_heads[:depth]]
        own: int = sum(p.nbytes for module in used for p in module.parameters())
        return own if self.heads.lm_heads else own + depth * self._head.nbytes

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._state.copy_(step.hidden[-1:])
        self._root.fill_(token)

    def draft(self) -> TokenTree:
        return self._draft()

    def _tree(self) -> TokenTree:
        tokens = [self._root]
        x = self._start(self._state, self._root)  # x_1 [1, 2d]
        for k, level in enumerate(self._levels, start=1):
            best = self.target.top(self._logits(x, k), level.ranks)[1]
            drafted, x = self._sprout(x, best, level.parent, level.rank, level.inner)
            tokens.append(drafted)
        return TokenTree(torch.cat(tokens), self.topology)

    def _logits(self, x: Tensor, k: int) -> Tensor:
        """[n, V'] of head k from x_k [n, (k + 1) d], as `Hydra.logits` computes them; in few
        kernels where the engine fuses."""
        if not self.target.fuses:
            return self.heads.logits(x, k, self._score)
        head = cast(Head, self.heads.heads[k - 1])
        shortcut, first = head.shortcut, head.first
        z = ops.linear(x, shortcut.weight, bias=shortcut.bias)
        z = ops.linear(x, first.weight, bias=first.bias, silu=True, residual=z)
        for block in cast(list[nn.Linear], head.rest):
            z = ops.linear(z, block.weight, bias=block.bias, silu=True, residual=z)
        if not self.heads.lm_heads:
            return ops.linear(z, self._head)
        own = cast(nn.Linear, self.heads.lm_heads[k - 1])
        return ops.linear(z, own.weight, bias=own.bias)

    # Functions of tensors, which engines may compile

    def _extended(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x_k [n, (k + 1) d] from x_{k-1} [n, k d] and the tokens int64 [n] at t + k."""
        return self.heads.extended(x, self._embeddings(tokens))

    def _children(
        self, x: Tensor, best: Tensor, parent: Tensor, rank: Tensor, inner: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(tokens int64 [m] of a level's nodes, x_{k+1} of those that have children).

        x: x_k of the nodes above; best: int64 [n, ranks], their drafts; see `Level`.
        """
        drafted = self._vocabulary[best[parent, rank]]
        return drafted, self._extended(x[parent[inner]], drafted[inner])

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, step, verdict)

    def _observe(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        last = verdict.path.gather(0, verdict.length.view(1))
        self._state.copy_(step.hidden[last])
        self._root.copy_(verdict.bonus.view(1))
