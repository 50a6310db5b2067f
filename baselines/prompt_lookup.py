"""Prompt lookup decoding: proposes the tokens that followed an earlier occurrence of the last n.

Saxena, "Prompt Lookup Decoding" (2023); the same idea as LLMA (Yang et al., arXiv 2304.04487).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from bench.decoding.decoder import Block, Settings, TreeDecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology


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
    """Drafts a chain: the continuation of the latest occurrence of the longest matching suffix."""

    name: ClassVar[str] = "prompt_lookup"
    lossless: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = PromptLookupSettings

    def __init__(self, target: TargetModel, settings: PromptLookupSettings) -> None:
        super().__init__(target, settings)
        self.n, self.k = settings.n, settings.k
        self.width = settings.k + 1
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after it
        self._chain = lru_cache(maxsize=None)(self._make_chain)

    def _make_chain(self, width: int) -> Topology:
        return Topology.of(list(range(-1, width - 1)), self.target.device, lasting=True)

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._ids, self._after = [], {}
        self._extend((*prompt_ids, token))

    def _extend(self, ids: Sequence[int]) -> None:
        """Append `ids` and index the n-grams that end just before each of them."""
        for token in ids:
            end = len(self._ids)
            for n in range(1, min(self.n, end) + 1):
                self._after[tuple(self._ids[end - n :])] = end
            self._ids.append(token)

    def _propose(self) -> list[int]:
        for n in range(min(self.n, len(self._ids)), 0, -1):
            start = self._after.get(tuple(self._ids[-n:]))
            if start is not None:
                return self._ids[start : start + self.k]
        return []

    def draft(self) -> TokenTree:
        tokens = [self._ids[-1], *self._propose()]
        return TokenTree(self.target.tensor(tokens), self._chain(len(tokens)))

    def observe(self, block: Block, also: Sequence[int]) -> None:
        self._extend(block.ids)
