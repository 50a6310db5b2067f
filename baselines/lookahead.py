"""Lookahead decoding (Fu et al., arXiv 2402.02057).

A window of W columns runs N-1 levels of Jacobi iterations in parallel with the sequence and adds W
n-grams to a pool at each step; the pool's n-grams that start with the newest token are verified.
Window and guesses form one token tree, so one masked forward computes both: the parent of level l,
column i is level l-1, column i, and the first level is a chain below the newest token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.decoding.decoder import Settings, TreeDecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict

EMPTY = -1  # in the pool, where there is no n-gram
CHUNK = 32  # n-grams of the prompt that are added at once


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
    """Up to G continuations of N-1 tokens for each key token, the latest first; the least recently
    added is evicted first.

    Attributes:
        entries: int32 [V, G, N-1], EMPTY behind the last one.
    """

    def __init__(self, target: TargetModel, g: int, n: int) -> None:
        shape = target.vocab_size, g, n - 1
        self.entries = torch.full(shape, EMPTY, dtype=torch.int32, device=target.device)
        self._listed = target.fuse(self._with)

    def add_prompt(self, ids: Tensor) -> None:
        """Add all n-grams of ids int64 [m], in their order; pieces of any length are not worth
        compiling for."""
        size = self.entries.shape[2] + 1
        if len(ids) >= size:
            for part in torch.split(ids.unfold(0, size, 1), CHUNK):  # [m, N]
                keys = part[:, 0]
                lists = self._with(self.entries[keys], keys, part[:, 1:])
                self.entries.index_copy_(0, keys, lists)

    def add(self, keys: Tensor, ngrams: Tensor) -> None:
        """Add n-grams int64 [m, N-1] behind keys int64 [m], in this order."""
        # Rows of the same key get the same list, whichever is written last.
        self.entries.index_copy_(0, keys, self._listed(self.entries[keys], keys, ngrams))

    def _with(self, old: Tensor, keys: Tensor, ngrams: Tensor) -> Tensor:
        """[m, G, N-1]: the lists of the keys afterwards; old: the same before."""
        (m, g, size), device = old.shape, old.device
        # What each list may hold, best first: the new ones, the latest of them first, and the old.
        new = ngrams.to(old.dtype).flip(0)[None].expand(m, -1, -1)
        listed = torch.cat((new, old), dim=1)  # [m, m + G, N-1]
        valid = torch.cat((keys[:, None] == keys.flip(0), old[..., 0] != EMPTY), dim=1)
        same = (listed[:, :, None] == listed[:, None]).all(dim=-1) & valid[:, None]
        again = same.tril(diagonal=-1).any(dim=-1)  # [m, m + G]: comes earlier in the list
        stays = valid & ~again
        place = stays.cumsum(dim=1) - 1
        place = torch.where(stays, place, g).clamp(max=g)  # the last place is cut off
        lists = torch.full((m, g + 1, size), EMPTY, dtype=old.dtype, device=device)
        return lists.scatter(1, place[..., None].expand(-1, -1, size), listed)[:, :g]


class Lookahead(TreeDecoder):
    """Window, pool and verification in one masked forward. The bonus token is kept.

    In the first N-2 steps, the stages 0 to N-3, the window gains a level at each step. In stage s
    it has s + 1 levels: level 0 without its first column, which is the newest token, and those
    below it.
    """

    name: ClassVar[str] = "lookahead"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = LookaheadSettings

    def __init__(self, target: TargetModel, settings: LookaheadSettings) -> None:
        super().__init__(target, settings)
        self.n, self.w, self.g = settings.n, settings.w, settings.g
        self._from_prompt = settings.prompt
        self.width = (self.n - 1) * (self.w + self.g) + self.n
        self._pool = NGramPool(target, self.g, self.n)
        self._newest = target.tensor([0])
        shape = self.n - 1, self.w + self.n - 2
        self._window = torch.zeros(shape, dtype=torch.long, device=target.device)
        self._shapes = [_Stage(self, stage) for stage in range(self.n - 1)]
        self._drafts = [partial(self._tree, stage) for stage in self._shapes]
        self._follows = [partial(self._observe, stage) for stage in self._shapes]
        # The last stage lasts; the others have one step an answer, too few to be worth a capture.
        self._drafts[-1] = target.capture(self._drafts[-1])
        self._follows[-1] = target.capture(self._follows[-1])
        self._hang = target.fuse(self._trie)
        self._stage = 0

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._pool.entries.fill_(EMPTY)
        self._newest.fill_(token)
        self._stage = 0
        seed = list(islice(cycle(prompt_ids), self._shapes[0].columns[0]))
        self._window[0, : len(seed)] = self.target.tensor(seed)
        if self._from_prompt:
            self._pool.add_prompt(self.target.tensor((*prompt_ids, token)))

    def draft(self) -> TokenTree:
        tree = self._drafts[self._stage]()
        window = sum(self._shapes[self._stage].columns)
        return tree if self.target.runs_ahead else self._without_empty(tree, window)

    def _tree(self, stage: _Stage) -> TokenTree:
        guesses = self._pool.entries[self._newest][0].long()  # [G, N-1]
        parents, acceptable, ancestors = self._hang(guesses, stage.parents, stage.ancestors)
        levels = [row[:m] for row, m in zip(self._window, stage.columns, strict=False)]
        tokens = torch.cat((self._newest, guesses.clamp(min=0).flatten(), *levels))
        topology = Topology(parents, acceptable, height=stage.height)
        topology.__dict__.update(ancestors=ancestors, depths=stage.depths)
        return TokenTree(tokens, topology)

    def _without_empty(self, tree: TokenTree, window: int) -> TokenTree:
        """Without the nodes that are neither guessed tokens nor of the window, which is last."""
        flags = tree.topology.acceptable
        assert flags is not None
        stays = flags.clone()
        stays[-window:] = True
        nodes = stays.nonzero().squeeze(1)
        place = {node: i for i, node in enumerate(nodes.tolist())}
        parents = [-1, *(place[node] for node in tree.topology.parents[nodes[1:]].tolist())]
        topology = Topology.of(parents, self.target.device, flags[nodes].tolist())
        return TokenTree(tree.tokens[nodes], topology)

    def _trie(
        self, guesses: Tensor, parents: Tensor, ancestors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(parents, acceptable, ancestors) of the tree in which guesses share their prefixes.

        guesses: int64 [G, N-1]; parents, ancestors: where each of them is a chain of its own.
        """
        g, size = guesses.shape
        there = guesses[:, 0] != EMPTY
        same = (guesses[:, None] == guesses[None]).int().cumprod(dim=-1).bool()  # [G, G, N-1]
        owner = same.int().argmax(dim=1)  # [G, N-1], the first guess with the same prefix
        own = owner == torch.arange(g, device=guesses.device)[:, None]
        level = torch.arange(size, device=guesses.device)
        node = 1 + owner * size + level
        above = torch.cat((torch.zeros_like(node[:, :1]), node[:, :-1]), dim=1)
        inner = slice(1, 1 + g * size)
        parents = torch.cat((parents[:1], above.flatten(), parents[inner.stop :]))
        acceptable = torch.zeros_like(parents, dtype=torch.bool)
        acceptable[:1] = True
        acceptable[inner] = (own & there[:, None]).flatten()
        # A node sees its prefix, each token at the guess that owns it, and itself.
        nodes = torch.arange(g * size, device=guesses.device)
        path = (node - 1)[..., None] == nodes  # [G, N-1, G(N-1)]
        itself = nodes[:, None] == nodes
        ancestors = ancestors.clone()
        ancestors[inner, inner] = path.cumsum(dim=1).bool().flatten(0, 1) | itself
        return parents, acceptable, ancestors

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follows[self._stage](step, verdict)
        self._stage = min(self._stage + 1, self.n - 2)

    def _observe(self, stage: _Stage, step: Step, verdict: Verdict) -> None:
        window, w = self._window, self.w
        deepest = step.logits[step.logits.shape[0] - stage.columns[-1] :]
        new = self.target.argmax(deepest)  # [columns]
        if stage.fills:  # every level loses a column, a level is added
            level = len(stage.columns)
            window[:level] = window[:level].roll(-1, dims=1)
            new = new if level == 1 else new[1:]
            window[level, : len(new)] = new
        else:
            keys = torch.cat((self._newest, window[0, : w - 1]))
            levels = torch.cat((window[1:, :w], new[None]))  # [N-1, W]
            self._pool.add(keys, levels.t())
            window[0, : w - 1] = levels[0, 1:]
            window[1:, :w] = levels[1:]
        self._newest.copy_(verdict.bonus.view(1))


class _Stage:
    """The shape of the tree in one stage, with every guess a chain of its own.

    Attributes:
        columns: of each level of the window, without the newest token.
        fills: whether the window gains a level in it.
        parents, depths: int64 [w]; ancestors: bool [w, w]; height: levels below the root.
    """

    def __init__(self, decoder: Lookahead, stage: int) -> None:
        n, w, g = decoder.n, decoder.w, decoder.g
        self.fills = stage < n - 2
        first = w + n - 3 - stage
        self.columns = [first] + [first + 1] * stage
        parents = [-1]
        for _ in range(g):
            start = len(parents)
            parents += [0, *range(start, start + n - 2)]
        above = [0, *range(len(parents), len(parents) + first)]  # the first row, newest token first
        parents += above[:-1]
        for columns in self.columns[1:]:
            start = len(parents)
            parents += above[:columns]
            above = list(range(start, start + columns))
        topology = Topology.of(parents, decoder.target.device)
        self.parents, self.depths = topology.parents, topology.depths
        self.ancestors, self.height = topology.ancestors, topology.height
