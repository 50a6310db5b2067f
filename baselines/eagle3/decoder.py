"""EAGLE-3 as a decoder: a tree grown by confidence, each level from the layer's own outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.eagle3 import published
from baselines.eagle3.model import Eagle3 as Eagle3Model
from bench.decoding.decoder import Count, Settings, TargetInfo
from bench.decoding.drafts.confident import ConfidentTree, most
from bench.decoding.drafts.loading import DraftModelDecoder, PublishedLayouts
from bench.decoding.drafts.products import products
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict


@dataclass(frozen=True)
class Eagle3Settings(Settings):
    """Parameters.

    Attributes:
        nodes: drafted nodes of the tree, the root not counted; "auto" for as many at each step as
            are worth their measured time.
        depth: deepest level.
        beam: nodes that are expanded in each level, and children of each ("top-k").
    """

    nodes: Count = 60
    depth: int = 8
    beam: int = 10

    def __post_init__(self) -> None:
        self.require("eagle3", nodes=1, depth=1, beam=1)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"nodes": (7, 10, 15, 26, 31, 45, 60), "depth": (3, 4, 5, 6, 8), "beam": (4, 6, 10)}


class Eagle3(DraftModelDecoder[Eagle3Model]):
    """Row i of the draft's cache has key and value of [e_{i+1}; f_i]: the first `target.length`
    rows from the target's true states, the rows behind them from the nodes expanded in a draft."""

    name: ClassVar[str] = "eagle3"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = Eagle3Settings
    trained_as: ClassVar[str] = "eagle3"
    package: ClassVar[str] = "baselines.eagle3.weights"
    layouts: ClassVar[PublishedLayouts] = published
    paper_tree: ClassVar[Sequence[int]] = ()  # it has no static one
    draft_model = Eagle3Model

    def __init__(self, target: TargetModel, settings: Eagle3Settings) -> None:
        super().__init__(target, settings)
        self.model, frequent, _ = self.load_draft(target, settings)
        target.tap(*self.model.taps)
        ids = self.model.vocabulary
        ids = frequent[: self.model.config.vocabulary] if ids is None else ids
        self._vocabulary = ids.to(target.device)
        beam = min(settings.beam, len(ids))
        self.width, self._depth = most(settings.nodes) + 1, settings.depth
        self._grower = ConfidentTree(settings.nodes, settings.depth, beam, target, root_row=False)
        self._spare = settings.depth * beam  # rows behind the committed ones
        options: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
        self._rows = torch.empty(0)  # keys and values, [2, G, rows, D]
        self._rotation = (torch.empty(0), torch.empty(0))  # cos and sin, [rows, D / 2]
        self._f = torch.zeros(1, target.hidden_size, **options)  # f_t
        self._root = target.tensor((0,))  # x_{t+1}, the newest token
        self._product, self._embeddings = products(target), target.embeddings()
        self._draft, self._follow = target.capture(self._tree), target.capture(self._observe)
        self._level_inputs = target.fuse(self._inputs_of)
        self._level_heads = target.fuse(self._heads_of)
        self._path_inputs = target.fuse(self._path_of)
        self._path_heads = target.fuse(self._rows_of)
        if self._grower.worth is not None:
            self._grower.worth.measure(self)

    @classmethod
    def check_published(cls, target: TargetInfo, location: Path) -> None:
        if target.hidden_size and target.vocab_size and target.layers:
            published.check(location, target.hidden_size, target.vocab_size, target.layers)

    def load_published(self, target: TargetModel, location: Path) -> tuple[Eagle3Model, str]:
        return published.load(location, target.hidden_size, target.vocab_size, target.layers)

    def random_draft(self, target: TargetModel) -> tuple[Eagle3Model, str]:
        return published.random(target.config, target.device, target.dtype)

    def draft_bytes(self) -> int:
        """Each level reads all but W_fc; the committed positions read W_fc and the projection."""
        whole, fc, qkv = (
            sum(p.nbytes for p in part.parameters())
            for part in (self.model, self.model.fc, self.model.qkv)
        )
        return self._depth * (whole - fc) + fc + qkv

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        target, config = self.target, self.model.config
        rows = target.cache.capacity + self._spare
        if self._rows.dim() < 4 or self._rows.shape[2] < rows:
            shape = (2, config.kv_heads, rows, config.head_dim)
            self._rows = torch.zeros(shape, dtype=target.dtype, device=target.device)
            self._rotation = self.model.rotation(rows, target.device)
        f = self.model.features([step.taps[k] for k in self.model.taps], self._product)
        x = self.model.inputs(self._embeddings(target.tensor((*prompt_ids[1:], token))), f)
        places = torch.arange(len(x), device=target.device)
        qkv = self._product(self.model.qkv, x)
        self._write(qkv, places, places, self._rows, *self._rotation)
        self._f.copy_(f[-1:])
        self._root.fill_(token)
        if self._grower.worth is not None:
            self._grower.worth.start()

    def draft(self) -> TokenTree:
        return self._draft()

    def _tree(self) -> TokenTree:
        a = self._f  # [n, d] of the nodes expanded last; f_t at first
        expanded = 0

        def expand(tokens: Tensor, above: Tensor, level: int, visible: Tensor) -> Tensor:
            nonlocal a, expanded
            f, x = self._level_inputs(tokens, a, above)
            qkv = self._product(self.model.qkv, x)
            q = self._level_heads(qkv, level, expanded, self._rows, *self._rotation)
            expanded += len(tokens)
            attended = self.target.attend(q, self._rows[0], self._rows[1], visible)
            a = self.model.finish(f, attended.flatten(1), self._product)
            return self.model.logits(a, self._product)

        return self._grower.grow(self._root, expand, self._vocabulary)

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, step, verdict)

    def _observe(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        """Rows of the newly committed positions, of their true states. Path nodes behind the
        accepted ones give rows that the next draft overwrites before it sees them."""
        path = verdict.path[: min(self._depth + 1, tree.width)]
        accepted = verdict.length.view(1)
        taps = [step.taps[k][path] for k in self.model.taps]
        f = self.model.features(taps, self._product)  # [n, d]
        bonus = verdict.bonus.view(1)
        x = self._path_inputs(tree.tokens, path, accepted, bonus, f)
        qkv = self._product(self.model.qkv, x)
        self._path_heads(qkv, accepted, self._rows, *self._rotation)
        self._f.copy_(f[accepted])
        self._root.copy_(bonus)
        if self._grower.worth is not None:
            self._grower.worth.learn(tree.width - 1, accepted)

    # Functions of tensors, which engines may compile

    def _inputs_of(self, tokens: Tensor, a: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """(f [n, d], [RMS(e); RMS(f)] [n, 2d]) of n nodes: their parents' outputs, and the nodes'
        own tokens beside them."""
        f = a[above]
        return f, self.model.inputs(self._embeddings(tokens), f)

    def _heads_of(self, qkv: Tensor, level: int, expanded: int, *into: Tensor) -> Tensor:
        """Queries [n, H, D] of a level's nodes. The root's row is t, the last committed one;
        `expanded` nodes have rows from there, and level j lies at position t + j - 1."""
        t = self.target.length - 1
        rows = t + expanded + torch.arange(len(qkv), device=qkv.device)
        return self._write(qkv, t + (level - 1), rows, *into)

    def _path_of(
        self, tokens: Tensor, path: Tensor, accepted: Tensor, bonus: Tensor, f: Tensor
    ) -> Tensor:
        """[RMS(e_{i+1}); RMS(f_i)] [n, 2d] of a path's nodes: x_{i+1} is the next one's token,
        behind the last accepted one the bonus token."""
        order = torch.arange(len(path), device=path.device)
        following = torch.where(order == accepted, bonus, tokens[path].roll(-1))
        return self.model.inputs(self._embeddings(following), f)

    def _rows_of(self, qkv: Tensor, accepted: Tensor, *into: Tensor) -> None:
        first = self.target.length - accepted - 1
        rows = first + torch.arange(len(qkv), device=qkv.device)
        self._write(qkv, rows, rows, *into)

    def _write(
        self, qkv: Tensor, places: Tensor, rows: Tensor, into: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Queries [n, H, D] at positions `places`, int64 [n] or [1]; keys and values go into
        `rows`, int64 [n], of `into` [2, G, rows, D]."""
        q, k, v = self.model.heads(qkv, cos[places], sin[places])
        into.index_copy_(2, rows, torch.stack((k, v)).transpose(1, 2))
        return q
