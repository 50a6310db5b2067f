"""The registered decoders on a real model, where its weights are at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from transformers import GenerationConfig

from baselines.autoregressive import Autoregressive
from bench.decoding.decoder import Settings
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.questions import chat
from bench.questions import sets as prompts
from bench.run.runner import run_turn
from bench.targets import registry as targets
from tests.decoding.cases import LOSSLESS, registered

MODEL = "smollm2-135m"
TOKENS = 16
PARAMETERS = {"lookahead": "lookahead(n=4,w=3,g=3)"}  # small enough for a test on a CPU


@dataclass(frozen=True)
class Answered:
    """A prompt and the reference's greedy answer, ids both."""

    prompt: list[int]
    answer: list[int]


@pytest.fixture(scope="module")
def loaded() -> targets.Loaded:
    target = targets.resolve(MODEL)
    reason = targets.status(target)
    if reason is not None:
        pytest.skip(f"{target.name}: {reason}")
    return targets.load(target, "cpu", torch.float32)


@pytest.fixture(scope="module")
def answered(loaded: targets.Loaded) -> list[Answered]:
    """Both turns of a question."""
    return list(_answered(loaded))


def _answered(loaded: targets.Loaded) -> Iterator[Answered]:
    reference = Autoregressive(EagerTarget(loaded.model), Settings())
    questions = prompts.spread(prompts.load("mini", None), 1).dataset
    for turns in questions["turns"]:
        messages: list[chat.Message] = []
        for text in turns:
            messages.append({"role": "user", "content": text})
            ids = chat.render(loaded.tokenizer, messages, loaded.target.chat_template)
            answer = run_turn(reference, ids, Sampling(), TOKENS, loaded.eos_ids).output_ids
            yield Answered(ids, answer)
            said = loaded.tokenizer.decode(answer, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": said})


def test_the_reference_equals_generate(loaded: targets.Loaded, answered: list[Answered]) -> None:
    config = GenerationConfig(
        max_new_tokens=TOKENS, do_sample=False, eos_token_id=sorted(loaded.eos_ids)
    )
    for known in answered:
        ids = torch.tensor([known.prompt])
        output = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        assert known.answer == output[0, len(known.prompt) :].tolist()


@pytest.mark.parametrize("name", [name for name in LOSSLESS if name != Autoregressive.name])
def test_ids_equal_the_reference(
    loaded: targets.Loaded, answered: list[Answered], name: str
) -> None:
    decoder = registered(PARAMETERS.get(name, name), MODEL)(EagerTarget(loaded.model, MODEL))
    for known in answered:
        turn = run_turn(decoder, known.prompt, Sampling(), TOKENS, loaded.eos_ids)
        assert turn.output_ids == known.answer
