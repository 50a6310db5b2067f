"""Chimera as a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.decoding.decoder import AUTO, Count, Settings, TargetInfo
from bench.decoding.drafts.confident import most
from bench.decoding.drafts.loading import DraftModelDecoder, PublishedLayouts
from bench.decoding.lookup import TextLookup
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict
from chimera import published
from chimera.drafter import ConfidentGrower, Drafter, Grower, StaticGrower
from chimera.model import Chimera as ChimeraModel
from chimera.model import ChimeraConfig
from chimera.variants import chimera_block_config, chimera_plus_config


@dataclass(frozen=True)
class ChimeraSettings(Settings):
    """Parameters.

    Attributes:
        nodes: drafted nodes of the tree, the root not counted; "auto" for a dynamic tree of which
            each step verifies as many nodes as are worth their measured time.
        depth: deepest level; 0 for the number of heads.
        dynamic: grow the tree by confidence at every step, instead of using a static one.
        beam: nodes that a dynamic tree expands in each level, and children of each.
        vocab: most frequent tokens that the shared LM head is reduced to; 0 for all. A checkpoint's
            own LM heads score the whole vocabulary.
        lookup: how many of the nodes are a chain that prompt lookup finds in the text so far.
    """

    nodes: Count = 26
    depth: int = 0
    dynamic: bool = False
    beam: int = 8
    vocab: int = 16384
    lookup: int = 0

    def __post_init__(self) -> None:
        self.require("chimera", nodes=1, depth=0, beam=1, vocab=0, lookup=0)
        self.require("chimera", nodes=self.lookup + 1)
        if self.nodes == AUTO and self.lookup:
            raise ValueError("chimera takes either nodes=auto or lookup")

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {
            "nodes": (5, 7, 10, 15, 20, 26, 31, 45, 63),
            "depth": (3, 4, 5, 0),
            "vocab": (4096, 8192, 16384),
            "dynamic": (False, True),
            "lookup": (0, 3, 5),
        }


class Chimera(DraftModelDecoder[ChimeraModel]):
    """The paper's method: trigram encoder, full-context encoder, residual heads."""

    name: ClassVar[str] = "chimera"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = ChimeraSettings
    trained_as: ClassVar[str] = "chimera"
    package: ClassVar[str] = "chimera.weights"
    layouts: ClassVar[PublishedLayouts] = published
    paper_tree: ClassVar[Sequence[int]] = (4, 8, 8, 3, 2)  # 25 nodes
    draft_model = ChimeraModel

    def __init__(self, target: TargetModel, settings: ChimeraSettings) -> None:
        super().__init__(target, settings)
        model, vocabulary, tree = self.load_draft(target, settings)
        config = model.config
        target.tap(*config.taps)
        self._taps = config.taps
        kept = None if config.own_heads else settings.vocab or None
        depth = min(settings.depth or config.depth, config.depth)
        nodes = most(settings.nodes) - settings.lookup
        # Expanded nodes are kept in the draft's cache after the committed positions, or the pass.
        expanded = 1 + depth * max(settings.beam, nodes)
        spare = max(config.depth if config.one_pass else expanded, settings.lookup)
        self._drafter = Drafter(model, target, vocabulary[:kept], spare)
        self.width = most(settings.nodes) + 1
        self._levels = max(depth, settings.lookup)
        self._lookup = TextLookup(target, settings.lookup) if settings.lookup else None
        self._grower: Grower
        if settings.dynamic or settings.nodes == AUTO:
            size: Count = AUTO if settings.nodes == AUTO else nodes
            self._grower = ConfidentGrower(size, depth, settings.beam, target)
        else:
            paths = self.static_tree(settings, tree, nodes, depth)
            self._grower = StaticGrower(paths, target.device)
        self._recent = torch.zeros(3, dtype=torch.long, device=target.device)  # newest last
        self._draft, self._follow = target.capture(self._tree), target.capture(self._observe)
        self._slide = target.fuse(self._slid)
        if self._grower.worth is not None:
            self._grower.worth.measure(self)

    def load_published(self, target: TargetModel, location: Path) -> tuple[ChimeraModel, str]:
        return published.load(location, target.config)

    def random_draft(self, target: TargetModel) -> tuple[ChimeraModel, str]:
        return published.random(published.shape(target.config), target.device, target.dtype)

    def draft_bytes(self) -> int:
        return self._drafter.weight_bytes(self._grower.depth)

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._drafter.start(step.hidden, [step.taps[k] for k in self._taps])
        if self._grower.worth is not None:
            self._grower.worth.start()
        recent = [prompt_ids[0], *prompt_ids[-2:], token][-3:]
        self._recent.copy_(self.target.tensor(recent))
        if self._lookup is not None:
            self._lookup.start((*prompt_ids, token))

    def draft(self) -> TokenTree:
        return self._draft()

    def _tree(self) -> TokenTree:
        tree = self._grower.grow(self._drafter, self._recent)
        return tree if self._lookup is None else self._lookup.joined(tree)

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, step, verdict)

    def _observe(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        path = verdict.path[: min(self._levels + 1, tree.width)]
        accepted = verdict.length.view(1)
        taps = [step.taps[k] for k in self._taps]
        self._drafter.remember(step.hidden, taps, path, accepted)
        if self._grower.worth is not None:
            self._grower.worth.learn(tree.width - 1, accepted)
        self._recent.copy_(self._slide(tree.tokens, path, accepted, verdict.bonus.view(1)))
        if self._lookup is not None:
            self._lookup.extend(tree, verdict, self._levels)

    def _slid(self, tokens: Tensor, path: Tensor, accepted: Tensor, bonus: Tensor) -> Tensor:
        """The three newest tokens: the path's last two and the bonus token. If nothing was
        accepted, the path's last is the root and the one before it comes from `_recent`."""
        parent = tokens[path[(accepted - 1).clamp(min=0)]]
        before = torch.where(accepted > 0, parent, self._recent[1])
        return torch.cat((before, tokens[path[accepted]], bonus))


class ChimeraPlus(Chimera):
    """Our extension: the context also reads two inner layers, and h_t enters the query."""

    name: ClassVar[str] = "chimera_plus"
    trained_as: ClassVar[str] = "chimera_plus"
    configure: Callable[[TargetInfo], ChimeraConfig] = staticmethod(chimera_plus_config)

    def random_draft(self, target: TargetModel) -> tuple[ChimeraModel, str]:
        shape = TargetInfo(target.name, target.hidden_size, target.vocab_size, target.layers)
        return published.random(self.configure(shape), target.device, target.dtype)


class ChimeraBlock(ChimeraPlus):
    """Our variant of `chimera_plus` for engines whose draft is limited by its number of kernels:
    the encoder runs once for all depths."""

    name: ClassVar[str] = "chimera_block"
    trained_as: ClassVar[str] = "chimera_block"
    configure = staticmethod(chimera_block_config)
