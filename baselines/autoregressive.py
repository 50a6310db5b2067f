"""The reference: one token a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from bench.decoding.decoder import Block, Decoder
from bench.decoding.sampling import Sampling
from bench.decoding.tree import TokenTree, Topology


class Autoregressive(Decoder):
    """Plain autoregressive decoding on the engine that every other method uses."""

    name: ClassVar[str] = "autoregressive"
    lossless: ClassVar[bool] = True

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        target, clock = self.target, self.target.clock
        root = Topology.of([-1], target.device)
        token = sampling.pick(target.prefill(prompt_ids).logits)  # [1]
        yield Block((int(token),))
        while True:
            with clock.phase("verify"):
                step = target.forward(target.place(TokenTree(token, root)))
            with clock.phase("accept"):
                token = sampling.pick(step.logits)
                target.commit_root()
                block = Block((int(token),), depth=0)
            yield block
