"""DFlash as a decoder: a tree of the block's likeliest tokens, verified in one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.dflash.drafter import Drafter, FusedDrafter
from baselines.dflash.model import DFlash as DFlashModel
from baselines.dflash.trainable import dflash_config
from bench.decoding.decoder import AUTO, Count, Settings, TargetInfo
from bench.decoding.drafts.confident import ConfidentTree, most
from bench.decoding.drafts.levels import Level, levels_of
from bench.decoding.drafts.loading import DraftModelDecoder
from bench.decoding.drafts.weights import randomise
from bench.decoding.drafts.worth import NodesWorth
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict


@dataclass(frozen=True)
class DFlashSettings(Settings):
    """Parameters.

    Attributes:
        nodes: drafted nodes of the tree, the root not counted; "auto" for a dynamic tree of which
            each step verifies as many nodes as are worth their measured time.
        depth: deepest level; 0 for all positions of the block.
        dynamic: grow the tree by summed log-probability at every step, instead of using a static
            one.
        beam: nodes that a dynamic tree expands in each level, and children of each; 1 for a chain.
        vocab: most frequent tokens that the LM head is reduced to; 0 for all.
    """

    nodes: Count = 26
    depth: int = 0
    dynamic: bool = False
    beam: int = 8
    vocab: int = 16384

    def __post_init__(self) -> None:
        self.require("dflash", nodes=1, depth=0, beam=1, vocab=0)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {
            "nodes": (5, 7, 10, 15, 20, 26, 31, 45, 63),
            "depth": (3, 4, 5, 0),
            "vocab": (4096, 8192, 16384),
            "dynamic": (False, True),
        }


class DFlash(DraftModelDecoder[DFlashModel]):
    """The draft's weights say whether a position depends on the token before (`markov`)."""

    name: ClassVar[str] = "dflash"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = DFlashSettings
    trained_as: ClassVar[str] = "dflash"
    package: ClassVar[str] = "baselines.dflash.weights"
    paper_tree: ClassVar[Sequence[int]] = (1,) * 15  # a chain
    draft_model = DFlashModel

    def __init__(self, target: TargetModel, settings: DFlashSettings) -> None:
        super().__init__(target, settings)
        model, vocabulary, tree = self.load_draft(target, settings)
        target.tap(*model.taps)
        self._taps = model.taps
        self._vocabulary = vocabulary[: settings.vocab or None].to(target.device)
        kind = FusedDrafter if target.fuses else Drafter
        self._drafter = kind(model, target, self._vocabulary)
        self._sequential = model.markov is not None
        self._depth = min(settings.depth or model.config.depth, model.config.depth)
        self._root = target.tensor((0,))  # the newest token
        self.width = most(settings.nodes) + 1
        self._worth: NodesWorth | None = None
        self._sprout = target.fuse(self._sprouted)
        if settings.dynamic or settings.nodes == AUTO:
            self._confident = ConfidentTree(settings.nodes, self._depth, settings.beam, target)
            self._draft = target.capture(self._likeliest_tree)
            self._worth = self._confident.worth
        else:
            paths = self.static_tree(settings, tree, settings.nodes, self._depth)
            self._topology = Topology.from_rank_paths(paths, target.device)
            levels = levels_of(paths, target.device)
            self._levels = levels if self._sequential else [Level.merged(levels)]
            self._draft = target.capture(self._static_tree)
        self._follow = target.capture(self._observe)
        if self._worth is not None:
            self._worth.measure(self)

    def random_draft(self, target: TargetModel) -> tuple[DFlashModel, str]:
        shape = TargetInfo(target.name, target.hidden_size, target.vocab_size, target.layers)
        with torch.device("meta"):
            draft = DFlashModel(dflash_config(shape))
        return draft, randomise(draft, target.device, target.dtype)

    def draft_bytes(self) -> int:
        return self._drafter.weight_bytes(self._depth)

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._drafter.start([step.taps[k] for k in self._taps])
        self._root.fill_(token)
        if self._worth is not None:
            self._worth.start()

    def draft(self) -> TokenTree:
        return self._draft()

    def _static_tree(self) -> TokenTree:
        """A node's token is its position's choice of its rank, behind its parent."""
        logits, expanded, tokens = self._drafter.logits(self._root), self._root, [self._root]
        for j, level in enumerate(self._levels):
            scores = logits  # [K, V'], all positions at once, or [n, V'] behind n nodes
            if self._sequential:
                scores = self._drafter.followed(logits[j : j + 1], expanded)
            best = self.target.top(scores, level.ranks)[1]
            drafted, expanded = self._sprout(best, level.parent, level.rank, level.inner)
            tokens.append(drafted)
        return TokenTree(torch.cat(tokens), self._topology)

    def _sprouted(
        self, best: Tensor, parent: Tensor, rank: Tensor, inner: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(a level's tokens, those of its nodes that are expanded next)."""
        drafted = self._vocabulary[best[parent, rank]]
        return drafted, drafted[inner]

    def _likeliest_tree(self) -> TokenTree:
        """The nodes with the largest sums of log q along their paths."""
        logits = self._drafter.logits(self._root)

        def expand(tokens: Tensor, above: Tensor, level: int, visible: Tensor) -> Tensor:
            del above, visible
            return self._drafter.followed(logits[level - 1 : level], tokens)

        return self._confident.grow(self._root, expand, self._vocabulary)

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, step, verdict)

    def _observe(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        path = verdict.path[: min(self._depth + 1, tree.width)]
        accepted = verdict.length.view(1)
        self._drafter.remember([step.taps[k] for k in self._taps], path, accepted)
        self._root.copy_(verdict.bonus.view(1))
        if self._worth is not None:
            self._worth.learn(tree.width - 1, accepted)
