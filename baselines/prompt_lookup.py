"""Prompt lookup decoding: proposes the tokens that followed an earlier occurrence of the last n.

Saxena, "Prompt Lookup Decoding" (2023); the same idea as LLMA (Yang et al., arXiv 2304.04487).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.decoding.decoder import Settings, TreeDecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict

NO_TOKEN = -1  # before the text's first token


@dataclass(frozen=True)
class PromptLookupSettings(Settings):
    """Parameters.

    Attributes:
        n: longest n-gram to search for; shorter ones are tried next.
        k: most tokens to propose.
    """

    n: int = 3
    k: int = 10

    def __post_init__(self) -> None:
        self.require("prompt_lookup", n=1, k=1)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"k": (3, 4, 6, 10), "n": (2, 3)}


class PromptLookup(TreeDecoder):
    """Drafts a chain: the continuation of the latest occurrence of the longest matching suffix.

    The text lies on the device, and the last n-gram is compared with all of it at once. Where the
    host may not read in between, drafts always have k nodes, of which those without a token are
    not acceptable.
    """

    name: ClassVar[str] = "prompt_lookup"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = PromptLookupSettings

    def __init__(self, target: TargetModel, settings: PromptLookupSettings) -> None:
        super().__init__(target, settings)
        self.n, self.k = settings.n, settings.k
        self.width = settings.k + 1
        # the text from place n on, with places for the nodes of a last draft
        self._text = torch.empty(0, dtype=torch.long)
        parents = range(-1, self.k)
        self._whole = Topology.of(parents, target.device, [True] * self.width, lasting=True)
        self._cut = [
            Topology.of(parents[:w], target.device, lasting=True) for w in range(1, self.width + 1)
        ]
        self._propose = target.capture(self._proposal)
        self._follow = target.capture(self._append)
        self._look_up = target.fuse(self._continuation)

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        places = self.n + self.target.cache.capacity + self.width
        if len(self._text) < places:
            self._text = torch.empty(places, dtype=torch.long, device=self.target.device)
        self._text.fill_(NO_TOKEN)
        known = self.target.tensor((*prompt_ids, token))
        self._text[self.n : self.n + len(known)] = known

    def draft(self) -> TokenTree:
        tokens, found = self._propose()
        if self.target.runs_ahead:
            return TokenTree(tokens, self._whole)
        width = int(found.sum())
        return TokenTree(tokens[:width], self._cut[width - 1])

    def _proposal(self) -> tuple[Tensor, Tensor]:
        tokens, found = self._look_up(self._text, self.target.length)
        flags = self._whole.acceptable
        assert flags is not None
        flags.copy_(found)
        return tokens, found

    def _continuation(self, text: Tensor, newest: Tensor) -> tuple[Tensor, Tensor]:
        """(newest token and k proposals, which of them there are), each [k + 1].

        text: int64 [n + rows + k + 1]; newest: int64 [1], the position of the newest token.
        """
        n, rows = self.n, len(text) - self.n - self.width
        place = torch.arange(rows, device=text.device)  # where a continuation starts
        matching = torch.ones_like(place)
        length = torch.zeros_like(place)  # of the n-gram before it that is the text's last
        for i in range(n):
            before = text[n - 1 - i : n - 1 - i + rows]  # [rows], i + 1 tokens before the place
            matching = matching * (before == text[n + newest - i])
            length = length + matching
        best = torch.where(place <= newest, length * rows + place, 0)
        best = best.argmax(dim=0, keepdim=True)  # [1]: indexing by it needs no host read
        ahead = torch.arange(self.width, device=text.device) - 1
        at = torch.where(ahead < 0, newest, best + ahead)
        found = (ahead < 0) | ((length[best] > 0) & (at <= newest))
        return text[n + torch.where(found, at, newest)], found

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, verdict)

    def _append(self, tree: TokenTree, verdict: Verdict) -> None:
        """The accepted tokens, what follows them in the path, and the bonus token in its place."""
        path = verdict.path[: self.width]
        root = self.target.length - verdict.length - 1  # [1], its position
        places = self.n + root + torch.arange(len(path), device=path.device)
        self._text.index_copy_(0, places, tree.tokens[path])
        self._text.index_copy_(0, self.n + self.target.length, verdict.bonus.view(1))
