"""Today's forms of models on the engines with fused projections, in their plain definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from baselines.autoregressive import Autoregressive
from bench.decoding.decoder import Settings
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.cpu import CpuTarget
from bench.decoding.engines.exact import ExactTarget
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.run.methods import discover, method
from bench.run.runner import run_turn
from tests.decoding.test_forms import LLAMA3, YARN

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FORMS: dict[str, transformers.PretrainedConfig] = {
    "llama3": transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "yarn": transformers.LlamaConfig(**SHAPE, rope_parameters=YARN),
    "qwen2": transformers.Qwen2Config(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=16),
    "mistral": transformers.MistralConfig(**SHAPE, sliding_window=None, tie_word_embeddings=True),
}
ENGINES: dict[str, type[TargetModel]] = {
    "graph": GraphTarget,
    "compile": CompiledTarget,
    "exact": ExactTarget,
    "cpu": CpuTarget,
}
PROMPT = tuple(7 * i % 61 for i in range(70))  # longer than llama3's original context
TOKENS = 24


def model(form: str) -> Any:
    """Random weights, biases and norms too, in float32."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(FORMS[form]).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return made


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
def test_greedy_ids_are_those_of_generate(form: str, engine: str) -> None:
    made = model(form)
    ids = torch.tensor([PROMPT])
    answer = made.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
    )
    expected = answer[0, len(PROMPT) :].tolist()
    target = ENGINES[engine](made)
    found = run_turn(Autoregressive(target, Settings()), PROMPT, Sampling(), TOKENS, ())
    assert found.output_ids == expected
    for text in ("medusa(nodes=6)", "chimera(nodes=6)"):
        chosen = method(text, discover(), {text.partition("(")[0]: "random"})
        assert chosen.decoder is not None
        decoder = chosen.decoder(target, chosen.settings)
        assert run_turn(decoder, PROMPT, Sampling(), TOKENS, ()).output_ids == expected


@torch.no_grad()
@pytest.mark.parametrize("form", ["qwen2", "qwen3"])
def test_a_nodes_logits_on_exact_are_those_of_its_token_alone(form: str) -> None:
    target = ExactTarget(model(form).bfloat16())
    target.reserve(128)
    rows = []
    for width in (1, 5):
        target.prefill(PROMPT)
        tree = TokenTree(
            torch.tensor([3, 9, 4, 1, 8][:width]), Topology.of([-1, 0, 0, 1, 1][:width])
        )
        rows.append(target.forward(target.pad(tree)).logits[0].clone())
    assert torch.equal(*rows)
