"""Targets whose greedy answers are known, and a target that notes what is verified."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from baselines.autoregressive import Autoregressive
from bench.decoding.decoder import Decoder, Settings
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import Committed, Step, TargetModel
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict
from bench.run.runner import run_turn
from bench.targets.synthetic import predictable

Make = Callable[[TargetModel], Decoder]


@dataclass(frozen=True)
class Verified:
    """One verify step of a drafting decoder."""

    tree: TokenTree
    kept: Committed


class WatchedTarget(EagerTarget):
    """Notes, for the sequence in hand, its trees, what was kept of them and the forwards."""

    def __init__(self, model: Any, name: str = "") -> None:
        super().__init__(model, name)
        self.steps: list[Verified] = []
        self.forwards = 0

    def prefill(self, prompt_ids: Sequence[int]) -> Step:
        self.steps, self.forwards = [], 0
        return super().prefill(prompt_ids)

    def forward(self, tree: TokenTree) -> Step:
        self.forwards += 1
        return super().forward(tree)

    def commit(self, tree: TokenTree, verdict: Verdict, also: Tensor | None = None) -> Committed:
        kept = super().commit(tree, verdict, also).wait()
        self.steps.append(Verified(tree, kept))
        return kept


class Known:
    """A model, prompts for it and its greedy answers, by the reference and by transformers.

    Attributes:
        prompts: of one length. Each repeats what the model says after its first tokens, with a few
            changes, so that methods that copy from the context are right at times, and wrong.
    """

    def __init__(self, model: LlamaForCausalLM, prompts: int = 4) -> None:
        model.generation_config.eos_token_id = None  # answers run their whole length
        self.model = model
        self.vocab: int = model.config.vocab_size
        self.expected = lru_cache(maxsize=None)(self._expected)
        self.prompts = [self._prompt(random.Random(seed)) for seed in range(prompts)]

    def fresh(self) -> WatchedTarget:
        """A target of its own copy of the model: taps and hooks of one test end with it."""
        return WatchedTarget(copy.deepcopy(self.model))

    def generate(self, prompt: Sequence[int], tokens: int, eos: int | None = None) -> list[int]:
        """What transformers' own greedy `generate` answers."""
        ids = torch.tensor([prompt])
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=eos, pad_token_id=eos
        )
        output: Tensor = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        return output[0, len(prompt) :].tolist()

    def _expected(self, prompt: tuple[int, ...], tokens: int) -> list[int]:
        reference = Autoregressive(self.fresh(), Settings())
        ids = run_turn(reference, prompt, Sampling(), tokens, eos_ids=()).output_ids
        assert ids == self.generate(prompt, tokens), "the reference differs from generate"
        return ids

    def _prompt(self, rng: random.Random) -> tuple[int, ...]:
        head = [rng.randrange(self.vocab - 1) for _ in range(8)]
        said = self.generate(head, 28)
        changed = [rng.randrange(self.vocab) if rng.random() < 0.05 else token for token in said]
        return (*head, *changed, *head)


def known_predictable(kv_heads: int, favourite: int | None = None) -> Known:
    """The predictable target, with `kv_heads` of its 4 heads."""
    return Known(predictable(kv_heads=kv_heads, favourite=favourite)[0])


def tiny_model(vocab: int, seed: int = 0, layers: int = 1) -> LlamaForCausalLM:
    """Hidden size 32, random weights large enough that the context matters."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.requires_grad_(False).eval()
