"""Drafters for tests: they know what the target is going to say and are wrong at a set rate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from bench.decoding.cache import TreeCache
from bench.decoding.decoder import Block, Settings, TreeDecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict, accept

DEPTH = 4
# Leaves at several depths, so that paths are of several lengths.
STATIC_PATHS = ((0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (1, 1), (2, 0))


@dataclass(frozen=True)
class OracleSettings(Settings):
    """Parameters.

    Attributes:
        accuracy: chance that a level of the tree holds the target's next token, if the level
            above did.
        seed: of the mistakes, which are the same each time that a sequence is run.
        dynamic: a new random topology each step, numbered depth first.
    """

    accuracy: float = 0.7
    seed: int = 0
    dynamic: bool = False


class NoisyOracle(TreeDecoder):
    """Trees with the target's own greedy continuation on a random path, and noise elsewhere."""

    name: ClassVar[str] = "noisy_oracle"
    lossless: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = OracleSettings

    def __init__(self, target: TargetModel, settings: OracleSettings) -> None:
        super().__init__(target, settings)
        self._accuracy, self._seed = settings.accuracy, settings.seed
        self._dynamic = settings.dynamic
        self._static = Topology.from_rank_paths(STATIC_PATHS, target.device)
        self.width = 1 + len(STATIC_PATHS) * DEPTH
        self._next = lru_cache(maxsize=None)(self._ask)  # a pure function of the ids
        self._rng = random.Random()
        self._ids: list[int] = []

    def _ask(self, ids: tuple[int, ...]) -> int:
        """The target's greedy choice after `ids`, by a plain forward."""
        logits = self.target.model(input_ids=self.target.tensor(ids)[None], use_cache=False).logits
        return int(logits[0, -1].argmax())

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._ids = [*prompt_ids, token]
        self._rng = random.Random(f"{self._seed} {self._ids}")

    def draft(self) -> TokenTree:
        topology = self._random_topology() if self._dynamic else self._static
        parents = topology.parents.tolist()
        tokens = [self._rng.randrange(self.target.vocab_size) for _ in parents]
        tokens[0] = self._ids[-1]
        node, path = 0, tuple(self._ids)
        while True:
            children = [child for child, parent in enumerate(parents) if parent == node]
            if not children or self._rng.random() >= self._accuracy:
                break
            node = self._rng.choice(children)
            tokens[node] = self._next(path)
            path = (*path, tokens[node])
        return TokenTree(self.target.tensor(tokens), topology)

    def _random_topology(self) -> Topology:
        ends = [
            tuple(self._rng.randrange(3) for _ in range(self._rng.randint(1, DEPTH)))
            for _ in range(self._rng.randint(0, len(STATIC_PATHS)))
        ]
        order = sorted({()} | {end[:k] for end in ends for k in range(len(end) + 1)})
        parents = [-1] + [order.index(path[:-1]) for path in order[1:]]
        return Topology.of(parents, self.target.device)

    def observe(self, block: Block, also: Sequence[int]) -> None:
        self._ids.extend(block.ids)


class CachedOracle(NoisyOracle):
    """A noisy oracle with a draft cache: for each verified position a tap and the hidden state.

    Attributes:
        memory: row i holds the residual stream after layer 1 as its key and the hidden state
            after the final norm as its value, of position i.
    """

    name: ClassVar[str] = "cached_oracle"

    def __init__(self, target: TargetModel, settings: OracleSettings) -> None:
        super().__init__(target, settings)
        target.tap(1)
        self.memory = TreeCache(1, 1, target.hidden_size, target.dtype, target.device)

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        super().begin(prompt_ids, step, token, sampling)
        self.memory.length = 0
        self.memory.reserve(self.target.cache.capacity)
        self._write(step)
        self.memory.advance(len(prompt_ids))

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._step = step

    def observe(self, block: Block, also: Sequence[int]) -> None:
        super().observe(block, also)
        self._write(self._step)
        self.memory.keep(self.target.tensor([0, *block.path]))

    def _write(self, step: Step) -> None:
        self.memory.begin(step.hidden.shape[0], exact=True)
        self.memory.layers[0].update(step.taps[1][None, None], step.hidden[None, None])


class SamplingDrafter(TreeDecoder):
    """Draws siblings without replacement from a q of its own and hands q to the rule.

    q after a token is the target's distribution with that token as the whole context.
    """

    name: ClassVar[str] = "sampling_drafter"
    lossless: ClassVar[bool] = True

    def __init__(self, target: TargetModel, settings: Settings) -> None:
        super().__init__(target, settings)
        every = torch.arange(target.vocab_size, device=target.device)[:, None]
        logits = target.model(input_ids=every, use_cache=False).logits[:, 0]  # [V, V]
        self._q = logits.float().softmax(dim=-1)
        self._topology = Topology.from_rank_paths(((0, 0), (0, 1), (1, 0), (2,)), target.device)
        self.width = self._topology.width
        self._generator: torch.Generator | None = None
        self._newest = 0

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        # The drafts are random too: lossless holds over both, so they share the randomness.
        self._generator = sampling.generator or torch.Generator().manual_seed(0)
        self._newest = token

    def draft(self) -> TokenTree:
        root = self.target.tensor([self._newest])
        tokens = draw_tree(self._topology, root, self._q, self._generator)
        return TokenTree(tokens[0], self._topology)

    def accept(self, tree: TokenTree, step: Step, sampling: Sampling) -> Verdict:
        return accept(tree, step.logits, sampling, draft_probs=self._q[tree.tokens])

    def observe(self, block: Block, also: Sequence[int]) -> None:
        self._newest = block.ids[-1]


def draw_tree(
    topology: Topology, root: Tensor, q: Tensor, generator: torch.Generator | None
) -> Tensor:
    """int64 [n, w]: n trees below `root`, int64 [n].

    The children of a node with token t are drawn from `q[t]`, [V, V], without replacement.
    """
    tokens = root[:, None].repeat(1, topology.width)
    for node in range(topology.width):
        children = (topology.parents == node).nonzero().squeeze(1)
        rates = q[tokens[:, node]]  # [n, V]
        # Exponential clocks: the order in which they ring is a draw without replacement.
        clocks = -torch.rand(rates.shape, generator=generator).log() / rates
        tokens[:, children] = clocks.argsort(dim=-1)[:, : len(children)]
    return tokens
