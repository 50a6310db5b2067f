"""How many of a drafted tree's nodes to verify, chosen at every step by measured cost.

q_i is the draft's probability of the path to node i, likeliest first; V(n) are the measured seconds
of a forward over n nodes and the root, R those of a draft. A step verifies the n with the largest
number of tokens a second to be expected:

    (1 + c sum_{i <= n} q_i) / (R + V(n))

c calibrates the draft's confidence: the nodes accepted over those predicted, sums of q_i, in the
answer so far, with PRIOR added to both. Sequoia (arXiv 2402.12374) chooses the size of a static
tree by such a ratio.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.decoding.decoder import TreeDecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.timing import median_seconds
from bench.decoding.tree import TokenTree, Topology

SIZES = (3, 7, 15, 31, 63)  # n; with the root, widths that kernels are made for
PRIOR = 4.0  # nodes


class NodesWorth:
    """Chooses on the device, in static shapes."""

    def __init__(self, target: TargetModel) -> None:
        self._target = target
        self._sizes = target.tensor(SIZES)
        self._seconds = torch.ones(len(SIZES), device=target.device)  # R + V(n)
        self._counts = torch.full((2,), PRIOR, device=target.device)  # accepted, predicted
        self._paths = torch.zeros(SIZES[-1], device=target.device)  # q of the newest tree
        self._pick, self._count = target.fuse(self._picked), target.fuse(self._counted)

    @torch.inference_mode()
    def measure(self, decoder: TreeDecoder) -> None:
        """Time the engine's forwards and the decoder's draft behind one committed token."""
        target = self._target
        target.reserve(1 + decoder.width)
        decoder.begin([0], target.prefill([0]), 0, Sampling())
        drafting = median_seconds(decoder.draft, target.device)
        for place, nodes in enumerate(SIZES):
            chain = Topology.of(range(-1, nodes), target.device)
            tree = target.pad(TokenTree(target.tensor([0] * (nodes + 1)), chain))
            verifying = median_seconds(partial(target.forward, tree), target.device)
            self._seconds[place] = drafting + verifying

    def start(self) -> None:
        """A new answer."""
        self._counts.fill_(PRIOR)

    def choose(self, scores: Tensor) -> Tensor:
        """int64 [1]: the nodes to verify, the root counted.

        scores: [n], log-probabilities of the paths to a tree's drafted nodes, likeliest first.
        """
        paths, worth = self._pick(scores, self._counts)
        self._paths[: len(paths)].copy_(paths)
        return worth

    def learn(self, nodes: int, accepted: Tensor) -> None:
        """`accepted`, int64 [1], of the newest tree's first `nodes` drafted nodes were."""
        self._counts.add_(self._count(self._paths[:nodes], accepted))

    def _picked(self, scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        paths, nodes = scores.exp(), len(scores)
        predicted = paths.cumsum(0)[(self._sizes - 1).clamp(max=nodes - 1)]
        rate = (1 + counts[0] / counts[1] * predicted) / self._seconds
        return paths, self._sizes[rate.argmax(dim=0, keepdim=True)].clamp(max=nodes) + 1

    def _counted(self, paths: Tensor, accepted: Tensor) -> Tensor:
        return torch.cat((accepted.float(), paths.sum(dim=0, keepdim=True)))
