"""The reference: one token a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor

from bench.decoding.decoder import Block, Decoder, Settings
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology


class Autoregressive(Decoder):
    """Plain autoregressive decoding on the engine that every other method uses."""

    name: ClassVar[str] = "autoregressive"
    lossless: ClassVar[bool] = True

    def __init__(self, target: TargetModel, settings: Settings) -> None:
        super().__init__(target, settings)
        self._argmax = target.capture(self._likeliest)

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        target, clock = self.target, self.target.clock
        root = Topology.of([-1], target.device)
        token = sampling.pick(target.prefill(prompt_ids).logits)  # [1]
        yield Block((int(token),))
        while True:
            with clock.phase("verify"):
                step = target.forward(target.pad(TokenTree(token, root)))
            with clock.phase("accept"):
                token = self._argmax(step) if sampling.greedy else sampling.pick(step.logits)
                target.commit_root()
                block = Block((int(token),), depth=0)
            yield block

    def _likeliest(self, step: Step) -> Tensor:
        return self.target.argmax(step.logits)
