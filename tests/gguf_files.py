"""Tiny GGUF files, written for tests, and the models that they hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM

END, START, STOP, CALL = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "12", END, START, STOP, CALL]
MERGES = ["h e", "l l", "1 2"]
UNUSED = [f"[PAD{i}]" for i in range(320 - len(TOKENS))]  # to a size that blocks of 32 divide
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Kind = gguf.GGMLQuantizationType


def model() -> Qwen2ForCausalLM:
    """Two layers, random weights."""
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=len(TOKENS) + len(UNUSED),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


def write(
    path: Path,
    *,
    quantised: bool = False,
    architecture: str = "qwen2",
    leave_out: Collection[str] = (),
    fields: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """A file with the weights of `model()`; returns them as a reader should give them.

    `quantised` stores the matrices as Q8_0. `leave_out` names tensors of the file; `fields` are
    further values of its metadata, text or int.
    """
    source = model()
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, source.config)
    for key, value in (fields or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    expected = {}
    for name, tensor in source.state_dict().items():
        data, kind = tensor.numpy(), Kind.F32
        if quantised and tensor.dim() == 2:
            kind = Kind.Q8_0
            data = gguf.quants.quantize(data, kind)
            tensor = torch.from_numpy(gguf.quants.dequantize(data, kind))
        expected[name] = tensor
        if _name(name) not in leave_out:
            writer.add_tensor(_name(name), np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _describe(writer: gguf.GGUFWriter, config: Qwen2Config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    kinds = dict.fromkeys([END, START, STOP], gguf.TokenType.CONTROL)
    kinds |= {CALL: gguf.TokenType.USER_DEFINED} | dict.fromkeys(UNUSED, gguf.TokenType.UNUSED)
    tokens = TOKENS + UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(tokens.index(STOP))
    writer.add_bos_token_id(tokens.index(END))
    writer.add_pad_token_id(tokens.index(END))
    writer.add_chat_template(TEMPLATE)


def _name(name: str) -> str:
    """The file's name for a parameter of transformers."""
    stem, _, kind = name.removeprefix("model.").rpartition(".")
    whole = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{BLOCK[rest]}.{kind}"
