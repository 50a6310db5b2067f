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
        self._root = Topology.of([-1], target.device, lasting=True)
        self._take = target.capture(self._take_likeliest)

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        target, clock = self.target, self.target.clock
        token = sampling.pick(target.prefill(prompt_ids).logits)  # [1]
        tree = target.pad(TokenTree(token.clone(), self._root))
        yield Block((int(token),))
        with clock.phase("verify"):
            step = target.forward(tree)
        while True:
            with clock.phase("accept"):
                if sampling.greedy:
                    token = self._take(tree, step)
                else:
                    token = target.keep_root(tree, sampling.pick(step.logits[:1]))
                reading = target.commit_root(token)
            if target.runs_ahead:  # the next forward is launched before the host reads the token
                clock.ahead()
                with clock.phase("verify"):
                    step = target.forward(tree)
            with clock.phase("accept"):
                block = Block(tuple(reading.wait().ids), depth=0)
            yield block
            if not target.runs_ahead:
                with clock.phase("verify"):
                    step = target.forward(tree)

    def _take_likeliest(self, tree: TokenTree, step: Step) -> Tensor:
        return self.target.keep_root(tree, self.target.argmax(step.logits[:1]))
