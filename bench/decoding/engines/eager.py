"""Engine `eager`: plain transformers forwards over the live rows of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.decoding.cache import TreeCache, round_up
from bench.decoding.spread import cache_of
from bench.decoding.target import Committed, Reading, Step, TargetModel
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict

PREFILL_CHUNK = 512  # tokens a prefill forward


class EagerTarget(TargetModel):
    """Exact tree widths; every call is a plain torch call."""

    engine: ClassVar[str] = "eager"

    def _make_cache(self) -> TreeCache:
        return cache_of(self.model, self.dtype, self.device)

    def prefill(self, prompt_ids: Sequence[int]) -> Step:
        """Forget the sequence before, run the prompt and commit it. Hidden states of all of it."""
        self.cache.length = 0
        parts: list[Step] = []
        for chunk in torch.split(self.tensor(prompt_ids), PREFILL_CHUNK):
            n = chunk.shape[0]
            self.cache.begin(n, exact=True)
            positions = torch.arange(n, device=self.device) + self.cache.length
            parts.append(self._forward(chunk, positions, mask=None, logits_to_keep=1))
            self.cache.advance(n)
        if not parts:
            raise ValueError("a prompt needs at least one token")
        self.length.fill_(self.cache.length)
        return Step.joined(parts)

    def pad(self, tree: TokenTree) -> TokenTree:
        """The tree in the form that this engine's `forward` takes."""
        return tree

    def forward(self, tree: TokenTree) -> Step:
        """Run the tree behind the committed rows; nothing is committed."""
        w, length = tree.width, self.cache.length
        self.cache.begin(w, exact=w == 1)
        positions = tree.topology.depths + length
        if length + w > self.max_positions:  # drafts past the end are never emitted
            positions = positions.clamp(max=self.max_positions - 1)
        mask = None
        if w > 1:
            mask = torch.full((w, self.cache.live), -torch.inf, device=self.device)
            mask[:, :length] = 0.0
            mask[:, length : length + w] = tree.topology.bias
            mask = mask.to(self.dtype)[None, None]
        return self._forward(tree.tokens, positions, mask, logits_to_keep=0)

    def store_verdict(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """The verdict where the engine keeps it, its nodes counted; a function of tensors, to be
        called once, before `settle`."""
        return verdict

    def move_accepted(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """The device's part of a commit: a recorded verdict's rows in order."""
        return verdict

    def commit(self, tree: TokenTree, verdict: Verdict, also: Tensor | None = None) -> Reading:
        """Keep the root's and the accepted rows; the step's one host read.

        Args:
            tree: the tree of the last forward.
            verdict: what to keep, recorded and settled.
            also: int64 [m], more numbers that the decoder wants on the host.
        """
        parts = [verdict.length[None], verdict.bonus[None], verdict.path, tree.tokens]
        if also is not None:
            parts.append(also)
        length, bonus, *rest = torch.cat(parts).tolist()
        w = tree.width
        path, tokens = rest[: length + 1], rest[w : 2 * w]
        if path[-1] == length:  # 0, 1, 2, ...: the rows lie in place
            self.cache.advance(length + 1)
        else:
            self.cache.keep(verdict.path[: length + 1])
        self.length.fill_(self.cache.length)
        return Committed(path, [*(tokens[i] for i in path[1:]), bonus], rest[2 * w :])

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, context: bool = True
    ) -> Tensor:
        """Attention of a draft's nodes over its own cache.

        Args:
            q: [n, H, D].
            keys, values: [G, rows, D], H a multiple of G; the committed positions' rows and m
                drafted ones behind.
            visible: bool [n, m].
            context: False hides the committed rows.

        Returns:
            [n, H, D].
        """
        length = self.cache.length
        end = length + visible.shape[1]
        live = min(round_up(end), keys.shape[1])  # few shapes: some kernels are planned for each
        seen = F.pad(F.pad(visible, (length, 0), value=context), (0, live - end), value=False)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None, :, :live],
            values[None, :, :live],
            attn_mask=seen,
            enable_gqa=keys.shape[0] != q.shape[1],
        )
        return out[0].transpose(0, 1)

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, logits_to_keep: int
    ) -> Step:
        return self._run_model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=mask,
            logits_to_keep=logits_to_keep,
        )
