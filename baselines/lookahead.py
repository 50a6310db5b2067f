"""Lookahead decoding (Fu et al., arXiv 2402.02057).

A window of W columns runs N-1 levels of Jacobi iterations in parallel with the sequence and adds W
n-grams to a pool at each step; the pool's n-grams that start with the newest token are verified.
Window and guesses form one token tree, so one masked forward computes both: the parent of level l,
column i is level l-1, column i, and the first level is a chain below the newest token.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar

from torch import Tensor

from bench.decoding.decoder import Block, Settings, TreeDecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology


@dataclass(frozen=True)
class LookaheadSettings(Settings):
    """Parameters.

    Attributes:
        n: n-gram size N; guesses have N-1 tokens.
        w: window size W.
        g: maximum number of guesses in a step, G, and the pool's size for each key token.
        prompt: whether the prompt's own n-grams are added to the pool.
    """

    n: int = 5
    w: int = 7
    g: int = 7
    prompt: bool = True

    def __post_init__(self) -> None:
        self.require("lookahead", n=3, w=1, g=1)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"w": (1, 2, 4, 7, 10, 15), "n": (3, 4, 5), "g": (2, 3, 5, 7)}


class NGramPool:
    """Up to `size` continuations of each key token; the least recently added is evicted first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._of: defaultdict[int, OrderedDict[tuple[int, ...], None]] = defaultdict(OrderedDict)

    def add(self, key: int, continuation: tuple[int, ...]) -> None:
        entries = self._of[key]
        entries[continuation] = None
        entries.move_to_end(continuation)
        if len(entries) > self._size:
            entries.popitem(last=False)

    def get(self, key: int) -> list[tuple[int, ...]]:
        """Continuations of `key`, the latest first."""
        return list(reversed(self._of[key])) if key in self._of else []


class Lookahead(TreeDecoder):
    """Window, pool and verification in one masked forward. The bonus token is kept."""

    name: ClassVar[str] = "lookahead"
    lossless: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = LookaheadSettings

    def __init__(self, target: TargetModel, settings: LookaheadSettings) -> None:
        super().__init__(target, settings)
        self.n, self.w, self.g = settings.n, settings.w, settings.g
        self._from_prompt = settings.prompt
        self.width = (self.n - 1) * (self.w + self.g) + self.n
        self._pool = NGramPool(self.g)
        self._newest = 0
        # The trajectory: level 0 without its first column, which is the newest token, then the
        # levels below it, up to n - 1 in all.
        self._levels: list[list[int]] = []
        self._deepest = slice(0)  # nodes of the deepest level in the last tree

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._pool = NGramPool(self.g)
        self._newest = token
        # Each of the n - 2 filling steps consumes one column.
        self._levels = [list(islice(cycle(prompt_ids), self.w + self.n - 3))]
        if self._from_prompt:
            known = [*prompt_ids, token]
            for i in range(len(known) - self.n + 1):
                self._pool.add(known[i], tuple(known[i + 1 : i + self.n]))

    def draft(self) -> TokenTree:
        tokens, parents = [self._newest], [-1]
        self._hang_guesses(tokens, parents)
        guesses = len(tokens)
        self._hang_window(tokens, parents)
        acceptable = [node < guesses for node in range(len(tokens))]
        topology = Topology.of(parents, self.target.device, acceptable)
        return TokenTree(self.target.tensor(tokens), topology)

    def _hang_guesses(self, tokens: list[int], parents: list[int]) -> None:
        """Add the pool's guesses as a trie below the root, so that shared prefixes run once."""
        node_of: dict[tuple[int, ...], int] = {(): 0}
        for guess in self._pool.get(self._newest):
            for k in range(1, len(guess) + 1):
                if guess[:k] not in node_of:
                    node_of[guess[:k]] = len(tokens)
                    tokens.append(guess[k - 1])
                    parents.append(node_of[guess[: k - 1]])

    def _hang_window(self, tokens: list[int], parents: list[int]) -> None:
        first, *rest = self._levels
        above = [0]  # nodes of the level above, by column
        for token in first:
            parents.append(above[-1])
            above.append(len(tokens))
            tokens.append(token)
        deepest = above[1:]
        for level in rest:
            deepest = list(range(len(tokens), len(tokens) + len(level)))
            tokens.extend(level)
            parents.extend(above[: len(level)])
            above = deepest
        self._deepest = slice(deepest[0], deepest[-1] + 1) if deepest else slice(0, 1)

    def also(self, step: Step) -> Tensor:
        return step.logits[self._deepest].argmax(dim=-1)

    def observe(self, block: Block, also: Sequence[int]) -> None:
        new, levels = list(also), self._levels
        if len(levels) < self.n - 1:  # filling: every level loses a column, a level is added
            self._levels = [level[1:] for level in levels]
            self._levels.append(new if len(levels) == 1 else new[1:])
        else:
            keys = [self._newest, *levels[0]]
            for key, *ngram in zip(keys, *levels[1:], new, strict=True):
                self._pool.add(key, tuple(ngram))
            self._levels = [levels[1][1:], *levels[2:], new]
        self._newest = block.ids[-1]
