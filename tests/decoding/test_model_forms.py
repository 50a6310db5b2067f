"""Tiny models of today's forms on every engine; without a GPU the engines run the plain-torch
definitions of their kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from bench.decoding.decoder import TreeDecoder
from bench.decoding.drafts.checkpoint import RANDOM
from bench.decoding.engines import layers
from bench.decoding.engines import trial as engines
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.cpu import CpuTarget
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.exact import ExactTarget
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.run.methods import discover, method
from tests.decoding.cases import registered
from tests.decoding.known import Known, Make
from tests.decoding.test_engines import TOKENS, Ahead, turns
from tests.decoding.test_forms import LLAMA3, YARN

FUSED: dict[str, type[TargetModel]] = {
    "compile": CompiledTarget,
    "exact": ExactTarget,
    "compile on a CPU": CpuTarget,
}
ENGINES: dict[str, type[TargetModel]] = {"eager": EagerTarget, "graph": GraphTarget, **FUSED}
# name: (transformers' class of configs, what differs from SHAPE)
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 16}),  # heads of more numbers than the hidden size
    "mistral": ("Mistral", {"sliding_window": None}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
}
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,  # three query heads for a key head, no power of two
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
each_form = pytest.mark.parametrize("form", FORMS)
each_fused = pytest.mark.parametrize("engine", FUSED.values(), ids=FUSED.keys())


def random_model(family: str, **shape: Any) -> PreTrainedModel:
    """Weights large enough that the context matters; biases and norms other than transformers'
    zeros and ones."""
    config: PretrainedConfig = getattr(transformers, f"{family}Config")(**shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        model.requires_grad_(False).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def model_of(form: str) -> PreTrainedModel:
    family, more = FORMS[form]
    return random_model(family, **SHAPE, **more)


@cache
def known(form: str) -> Known:
    return Known(model_of(form), prompts=1)


@each_form
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
def test_greedy_ids_equal_generate(form: str, engine: type[TargetModel]) -> None:
    prompts = known(form).prompts
    target = engine(model_of(form))
    (turn,) = turns(target, registered("prompt_lookup(k=3)"), prompts, 0.0)
    assert turn.output_ids == known(form).generate(prompts[0], TOKENS)
    assert max(turn.accept_lengths or ()) > 1  # trees were accepted too


@each_form
@each_fused
def test_the_trial_passes(form: str, engine: type[TargetModel]) -> None:
    assert engines.trial(engine(model_of(form)), (1, 16), (60,)) is None


def lost(change: Callable[[layers.Layer], layers.Layer]) -> Callable[[Any], layers.Layer]:
    """Reads a layer without something of its form."""
    read = layers.layer
    return lambda module: change(read(module))


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("qwen2", lambda layer: replace(layer, qkv_bias=None)),
        ("qwen3", lambda layer: replace(layer, head_norms=None)),
    ],
    ids=["biases", "head norms"],
)
@pytest.mark.parametrize("engine", [CompiledTarget, ExactTarget])
def test_a_form_read_in_part_fails_the_trial(
    form: str,
    change: Callable[[layers.Layer], layers.Layer],
    engine: type[TargetModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "layer", lost(change))
    found = engines.trial(engine(model_of(form)), (1,), (60,))
    assert found is not None
    assert "logits are off by" in found


@each_form
def test_exact_has_the_same_bits_at_every_width(form: str) -> None:
    """The same node among more and more others, and alone."""
    target = ExactTarget(model_of(form).bfloat16())
    target.reserve(100)
    tokens = (torch.arange(40) * 7 + 3) % 50
    logits: list[Tensor] = []
    for width in (1, 2, 16, 17, 40):
        target.prefill([3, 1, 4, 1, 5, 9, 2, 6])
        topology = Topology.of([-1, *((node - 1) // 2 for node in range(1, width))])
        step = target.forward(target.pad(TokenTree(tokens[:width], topology)))
        logits.append(step.logits[:width].clone())
    for narrow, wide in pairwise(logits):
        assert torch.equal(narrow, wide[: len(narrow)])


def with_random_weights(text: str) -> Make:
    name = text.partition("(")[0]

    def make(target: TargetModel) -> Any:
        chosen = method(text, discover(), {name: RANDOM})
        assert chosen.decoder is not None
        return chosen.decoder(target, chosen.settings)

    return make


@torch.inference_mode()  # as turns run
def first_draft(target: TargetModel, make: Make, prompt: Sequence[int]) -> list[int]:
    """The root and what follows it in the first tree."""
    decoder = make(target)
    assert isinstance(decoder, TreeDecoder)
    target.reserve(len(prompt) + decoder.width)
    decoder.begin(list(prompt), target.prefill(prompt), 7, Sampling())
    tokens: list[int] = decoder.draft().tokens[:10].tolist()
    return tokens


@pytest.mark.parametrize("form", ["qwen2", "qwen3"])
@each_fused
@pytest.mark.parametrize("name", ["chimera", "chimera_plus", "chimera_block", "hydra", "medusa"])
def test_drafts_on_these_forms(form: str, engine: type[TargetModel], name: str) -> None:
    """Random ones: hardly ever accepted, so the drafted tokens are compared as well."""
    make, prompts = with_random_weights(f"{name}(nodes=9)"), known(form).prompts
    target, plain = engine(model_of(form)), Ahead(model_of(form))
    (turn,), (expected,) = (turns(t, make, prompts, 0.0) for t in (target, plain))
    assert turn.output_ids == known(form).generate(prompts[0], TOKENS)
    assert turn.accept_lengths == expected.accept_lengths
    found, tree = (first_draft(t, make, prompts[0]) for t in (target, plain))
    assert found == tree
    assert len(set(tree)) > 3


OTHERS: dict[str, dict[str, Any]] = {
    "GPT2": {
        "vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256,
        "bos_token_id": 0, "eos_token_id": 0,
    },
    "Phi": SHAPE,
    "Gemma": {**SHAPE, "head_dim": 8, "pad_token_id": None},
}  # fmt: skip
NOT_TAKEN = "a model other than Llama, Mistral, Qwen2 and Qwen3 runs on eager, graph only"


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`graph` is available, and `compile` is the GPU's."""
    monkeypatch.setattr(GraphTarget, "unavailable", classmethod(lambda *_: None))
    monkeypatch.setattr(engines, "ON_CPU", {})


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("family", OTHERS)
def test_other_models_fall_back_to_graph_on_a_gpu(family: str) -> None:
    for engine in ("compile", "exact"):
        target, reason = engines.make(random_model(family, **OTHERS[family]), "tiny", engine)
        assert type(target) is GraphTarget
        assert reason == f"{engine} cannot run here: {NOT_TAKEN}"


@pytest.mark.parametrize("family", OTHERS)
def test_other_models_fall_back_to_eager_on_a_cpu(family: str) -> None:
    target, reason = engines.make(random_model(family, **OTHERS[family]), "tiny", "compile")
    assert type(target) is EagerTarget
    assert reason is not None
    assert f"compile cannot run here: {NOT_TAKEN}; graph cannot run here: " in reason


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_graph_that_fails_its_trial_falls_back_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphTarget, "run", lambda *_: 1 / 0)
    target, reason = engines.make(random_model("GPT2", **OTHERS["GPT2"]), "tiny", "compile")
    assert type(target) is EagerTarget
    assert reason is not None
    assert reason.startswith(f"compile cannot run here: {NOT_TAKEN}; graph cannot run here: ")
    assert "ZeroDivisionError" in reason
