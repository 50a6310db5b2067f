"""Which forms of models the engines take, by their configs alone."""

from typing import Any

import pytest
import transformers
from transformers import PretrainedConfig

from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.forms import unsupported
from bench.decoding.engines.registry import ENGINES

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
    "original_max_position_embeddings": 4096,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
NOWHERE: list[tuple[PretrainedConfig, str]] = [
    (transformers.MistralConfig(), "sliding window"),
    (transformers.Gemma2Config(), "sliding window"),
    (transformers.GPTNeoConfig(), "sliding window"),
    (transformers.Llama4TextConfig(), "chunks"),
    (transformers.DeepseekV2Config(), "MLA"),
    (transformers.DeepseekV3Config(), "MLA"),
    (transformers.FalconConfig(alibi=True), "ALiBi"),
    (transformers.BloomConfig(), "ALiBi"),
    (transformers.MptConfig(), "ALiBi"),
    (transformers.MambaConfig(), "state space"),
    (transformers.JambaConfig(), "state space"),
    (transformers.FalconH1Config(), "state space"),
    (transformers.Lfm2Config(layer_types=["conv"] * 32), "convolution"),
    (transformers.Qwen3NextConfig(), "state space"),
    (transformers.RwkvConfig(), "state space"),
    (transformers.T5Config(), "encoder"),
    (transformers.Phi3Config(rope_parameters=LONGROPE), "longrope"),
    (transformers.LlamaConfig(rope_parameters=LONGROPE), "longrope"),
]
PLAIN: list[tuple[PretrainedConfig, str]] = [
    (transformers.GPT2Config(), "other than Llama"),
    (transformers.OPTConfig(), "other than Llama"),
    (transformers.Phi3Config(), "other than Llama"),
    (transformers.LlamaConfig(attention_bias=True), "biases"),
    (transformers.LlamaConfig(hidden_act="gelu"), "SiLU"),
    (
        transformers.LlamaConfig(
            rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        ),
        "dynamic",
    ),
]


EVERYWHERE: list[PretrainedConfig] = [
    transformers.LlamaConfig(),
    transformers.LlamaConfig(rope_parameters=LLAMA3),
    transformers.LlamaConfig(rope_parameters=YARN),
    transformers.Qwen2Config(),
    transformers.Qwen3Config(),
    transformers.MistralConfig(sliding_window=None),
]


def named(config: PretrainedConfig) -> str:
    return str(config.model_type)


@pytest.mark.parametrize(("config", "words"), NOWHERE, ids=[named(c) for c, _ in NOWHERE])
def test_what_no_engine_takes_says_why_in_one_line(config: Any, words: str) -> None:
    for engine in ENGINES:
        reason = unsupported(config, engine)
        assert reason is not None
        assert words in reason
        assert "no engine" in reason
        assert "\n" not in reason


@pytest.mark.parametrize("config", EVERYWHERE, ids=named)
def test_every_engine_takes_the_forms_of_today(config: Any) -> None:
    assert [unsupported(config, engine) for engine in ENGINES] == [None] * len(ENGINES)


@pytest.mark.parametrize(("config", "words"), PLAIN, ids=[named(c) for c, _ in PLAIN])
def test_what_has_no_fused_form_runs_on_the_others(config: Any, words: str) -> None:
    for engine in ENGINES:
        reason = unsupported(config, engine)
        if engine in ("eager", "graph"):
            assert reason is None
        else:
            assert reason is not None
            assert words in reason


def test_exact_takes_few_query_heads_for_a_key_head() -> None:
    shape = {"num_attention_heads": 64, "hidden_size": 512}
    config = transformers.LlamaConfig(num_key_value_heads=2, **shape)
    assert "query heads" in (unsupported(config, "exact") or "")
    assert unsupported(config, "compile") is None
    assert unsupported(transformers.LlamaConfig(num_key_value_heads=4, **shape), "exact") is None


def test_a_target_of_such_a_form_is_refused() -> None:
    config = transformers.MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config)
    with pytest.raises(ValueError, match="sliding window"):
        EagerTarget(model)
