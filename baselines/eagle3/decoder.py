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
from bench.decoding.decoder import Settings
from bench.decoding.drafts.confident import ConfidentTree
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
        nodes: drafted nodes of the tree, the root not counted.
        depth: deepest level.
        beam: nodes that are expanded in each level, and children of each ("top-k").
    """

    nodes: int = 60
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
        self.width, self._depth = settings.nodes + 1, settings.depth
        self._grower = ConfidentTree(settings.nodes, settings.depth, beam, target, root_row=False)
        self._spare = settings.depth * beam  # rows behind the committed ones
        options: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
        self._rows = torch.empty(0)  # keys and values, [2, G, rows, D]
        self._rotation = (torch.empty(0), torch.empty(0))  # cos and sin, [rows, D / 2]
        self._f = torch.zeros(1, target.hidden_size, **options)  # f_t
        self._root = target.tensor((0,))  # x_{t+1}, the newest token
        self._unseen = torch.zeros(1, 1, dtype=torch.bool, device=target.device)
        self._product, self._embeddings = products(target), target.embeddings()
        self._draft, self._follow = target.capture(self._tree), target.capture(self._observe)
        self._pair, self._place = target.fuse(self._paired), target.fuse(self._placed)
        self._read = target.fuse(self._path_read)

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
        rows = self.target.cache.capacity + self._spare
        config = self.model.config
        if self._rows.dim() < 4 or self._rows.shape[2] < rows:
            shape = (2, config.kv_heads, rows, config.head_dim)
            self._rows = torch.zeros(shape, dtype=self.target.dtype, device=self.target.device)
            self._rotation = self.model.rotation(rows, self.target.device)
        taps = [step.taps[k] for k in self.model.taps]
        f = self.model.features(taps, self._product)
        tokens = self.target.tensor((*prompt_ids[1:], token))
        places = torch.arange(len(tokens), device=self.target.device)
        qkv = self._product(self.model.qkv, self._paired(tokens, f))
        self._placed(qkv, places, places, self._rows, *self._rotation)
        self._f.copy_(f[-1:])
        self._root.fill_(token)

    def draft(self) -> TokenTree:
        return self._draft()

    def _tree(self) -> TokenTree:
        a = self._f  # [n, d] of the nodes expanded last; f_t at first
        expanded = 0

        def expand(tokens: Tensor, above: Tensor, level: int, visible: Tensor) -> Tensor:
            nonlocal a, expanded
            f = a[above]
            # The root's row is t, the last committed one; level j lies at position t + j - 1.
            place = self.target.length - 1 + (level - 1)
            order = torch.arange(len(tokens), device=tokens.device)
            rows = self.target.length - 1 + expanded + order
            expanded += len(tokens)
            qkv = self._product(self.model.qkv, self._pair(tokens, f))
            q = self._place(qkv, place, rows, self._rows, *self._rotation)
            seen = self._unseen if level == 1 else visible
            attended = self.target.attend(q, self._rows[0], self._rows[1], seen)
            a = self.model.finish(f, attended.flatten(1), self._product)
            return self.model.logits(a, self._product)

        return self._grower.grow(self._root, expand, self._vocabulary)

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, step, verdict)

    def _observe(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        """Rows of the newly committed positions, of their true states. Path nodes behind the
        accepted ones give rows that the next draft overwrites before it sees them."""
        path, accepted = verdict.path[: self._depth + 1], verdict.length.view(1)
        taps = [step.taps[k][path] for k in self.model.taps]
        f = self.model.features(taps, self._product)  # [n, d]
        tokens, places = self._read(tree.tokens, path, accepted, verdict.bonus.view(1))
        qkv = self._product(self.model.qkv, self._pair(tokens, f))
        self._place(qkv, places, places, self._rows, *self._rotation)
        self._f.copy_(f[accepted])
        self._root.copy_(verdict.bonus.view(1))

    # Functions of tensors, which engines may compile

    def _paired(self, tokens: Tensor, f: Tensor) -> Tensor:
        """[RMS(e_{i+1}); RMS(f_i)] [n, 2d] of tokens x_{i+1}, int64 [n], and f_i [n, d]."""
        return self.model.inputs(self._embeddings(tokens), f)

    def _placed(
        self, qkv: Tensor, places: Tensor, rows: Tensor, into: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Queries [n, H, D] at positions `places`, int64 [n] or [1]; keys and values go into
        `rows`, int64 [n], of `into` [2, G, rows, D]."""
        q, k, v = self.model.heads(qkv, cos[places], sin[places])
        into.index_copy_(2, rows, torch.stack((k, v)).transpose(1, 2))
        return q

    def _path_read(
        self, tokens: Tensor, path: Tensor, accepted: Tensor, bonus: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x_{i+1} beside each of the path's nodes: the next one's token, behind the last accepted
        the bonus token; their positions), int64 [n] each."""
        order = torch.arange(len(path), device=path.device)
        following = tokens[path].roll(-1)
        first = self.target.length - accepted - 1
        return torch.where(order == accepted, bonus, following), first + order
