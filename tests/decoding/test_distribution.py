"""Sampling end to end: three tokens of each decoder against the target's own joint law."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from bench.decoding.sampling import Sampling
from tests.decoding.cases import CASES, oracle, registered, with_costs
from tests.decoding.checks import check_drafts
from tests.decoding.known import Make, Verified, WatchedTarget, tiny_model
from tests.decoding.law import check_counts

VOCAB = 6
TOKENS = 3
# Guesses reach further than three tokens and are less often right than where the target is greedy:
# shorter and better ones leave enough of both, accepted and rejected.
DECODERS = CASES | {
    "lookahead": registered("lookahead(n=3,w=3,g=3)"),
    "prompt_lookup": registered("prompt_lookup(n=2,k=2)"),
    "draft_model": registered("draft_model(k=2)"),
    "suffix": registered("suffix(nodes=2)"),
    "token_recycling": registered("token_recycling(nodes=4,depth=2,k=2)"),
    "chimera_auto": with_costs(registered("chimera(nodes=auto,depth=2,beam=2)")),
    "dflash": registered("dflash(nodes=4,depth=2)"),
    "dflash_auto": with_costs(registered("dflash(nodes=auto,depth=2,beam=2)")),
    "dflash_dynamic": registered("dflash(nodes=4,depth=2,dynamic=true,beam=3)"),
    "eagle3": registered("eagle3(nodes=4,depth=2,beam=3)"),
    "eagle3_auto": with_costs(registered("eagle3(nodes=auto,depth=2,beam=2)")),
    "hydra": registered("hydra(nodes=4,depth=2)"),
    "medusa": registered("medusa(nodes=2)", tree="paper"),
    "chimera": registered("chimera(nodes=4,depth=2)"),
    "chimera_plus": registered("chimera_plus(nodes=4,depth=2)"),
    "chimera_block": registered("chimera_block(nodes=4,depth=2)"),
    "chimera_dynamic": registered("chimera(nodes=4,depth=2,dynamic=true,beam=3)"),
    "static_oracle": oracle(accuracy=0.95),
    "dynamic_oracle": oracle(accuracy=0.95, dynamic=True),
}
# One decoder for each way to accept, drafts from elsewhere being accepted alike; all of them are
# among the slow tests.
FAST = ("lookahead", "medusa", "sampling_drafter")
CUT_ONLY = ("dynamic_oracle", "draft_model")
DRAWS = 1_500
PLAIN = {"T=0.7": Sampling(0.7), "T=1.0": Sampling(1.0)}
CUT = Sampling(0.7, top_k=4, top_p=0.9)


@dataclass(frozen=True)
class Tiny:
    """A tiny model, and a prompt with every id and what the model says after it."""

    model: LlamaForCausalLM
    prompt: list[int]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    model = tiny_model(VOCAB, seed=2)
    prompt: list[int] = []
    for token in range(VOCAB):
        prompt.append(token)
        for _ in range(TOKENS):
            logits = model(input_ids=torch.tensor([prompt])).logits
            prompt.append(int(logits[0, -1].argmax()))
    return Tiny(model, prompt)


def exact_law(tiny: Tiny, sampling: Sampling) -> Tensor:
    """[V^3]: the joint law of the first three tokens, by plain forwards over every prefix."""
    law, prefixes = torch.ones(1), torch.tensor([tiny.prompt])
    for _ in range(TOKENS):
        logits = tiny.model(input_ids=prefixes, use_cache=False).logits[:, -1]
        law = (law[:, None] * sampling.probs(logits)).flatten()
        following = torch.arange(VOCAB).repeat(len(prefixes))[:, None]
        prefixes = torch.cat((prefixes.repeat_interleave(VOCAB, dim=0), following), dim=1)
    return law


def check_law(tiny: Tiny, make: Make, sampling: Sampling, draws: int) -> None:
    """`draws` answers of three tokens follow the exact law; AssertionError where they do not."""
    target = WatchedTarget(tiny.model)
    decoder = make(target)
    target.reserve(len(tiny.prompt) + TOKENS + decoder.width)
    seeded = replace(sampling, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(VOCAB**TOKENS, dtype=torch.int64)
    steps: list[Verified] = []
    with torch.inference_mode():
        for _ in range(draws):
            blocks = decoder.decode(tiny.prompt, seeded)
            ids: list[int] = []
            while len(ids) < TOKENS:
                ids += next(blocks).ids
            counts[ids[0] * VOCAB**2 + ids[1] * VOCAB + ids[2]] += 1
            steps += target.steps
    check_counts(counts, exact_law(tiny, sampling))
    check_drafts(decoder, steps)


@pytest.mark.parametrize("name", FAST)
def test_three_tokens_follow_the_target(tiny: Tiny, name: str) -> None:
    check_law(tiny, DECODERS[name], PLAIN["T=1.0"], DRAWS)


@pytest.mark.parametrize("name", CUT_ONLY)
def test_three_tokens_follow_a_target_cut_by_top_k_and_top_p(tiny: Tiny, name: str) -> None:
    check_law(tiny, DECODERS[name], CUT, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling", [*PLAIN.values(), CUT], ids=[*PLAIN.keys(), "T=0.7,top_k=4,top_p=0.9"]
)
@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS.keys())
def test_three_tokens_follow_the_target_over_20000_draws(
    tiny: Tiny, make: Make, sampling: Sampling
) -> None:
    check_law(tiny, make, sampling, draws=20_000)


def test_the_check_notices_a_law_that_is_a_little_off(tiny: Tiny) -> None:
    colder = exact_law(tiny, Sampling(0.8)).mul(DRAWS).round().long()
    with pytest.raises(AssertionError, match="chi-square"):
        check_counts(colder, exact_law(tiny, Sampling(1.0)))
