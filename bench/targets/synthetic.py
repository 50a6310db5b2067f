"""Generated targets: published shapes with random weights, and a tiny predictable model.

Random weights are for measuring cost. Drafts on them are never accepted and test nothing, so
`predictable` sets a tiny Llama by hand: a table of next-token scores decides most greedy steps, and
attention to the last few tokens decides the others.
"""

import json
import math
import string
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bench.decoding.spread import layer_map
from bench.errors import UsageError
from bench.files import sha256_of_bytes

if TYPE_CHECKING:  # transformers takes seconds to import, and listing names needs none of it
    from transformers import (
        LlamaForCausalLM,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

RECIPE = 1  # raised when the weights of a name change
SEED = 11  # of the first dozen, the one whose predictable texts vary the most in length
PREFIX = "synthetic:"
EOS = "<eos>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _llama(hidden: int, layers: int, heads: int, feed_forward: int) -> dict[str, Any]:
    return {
        "vocab_size": 32000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": feed_forward,
        "max_position_embeddings": 8192,  # more than published, to measure cost at long contexts
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
    }


def _qwen2(hidden: int, layers: int, heads: int, feed_forward: int) -> dict[str, Any]:
    """Two key heads, biases of q, k and v, one matrix for embeddings and LM head."""
    return _llama(hidden, layers, heads, feed_forward) | {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "synthetic:llama-7b": _llama(4096, 32, 32, 11008),
    "synthetic:llama-13b": _llama(5120, 40, 40, 13824),
    "synthetic:llama-33b": _llama(6656, 60, 52, 17920),
    "synthetic:llama-70b": _llama(8192, 80, 64, 28672) | {"num_key_value_heads": 8},
    "synthetic:smollm2-135m": _llama(576, 30, 9, 1536)
    | {
        "vocab_size": 49152,
        "num_key_value_heads": 3,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "synthetic:qwen2.5-0.5b": _qwen2(896, 24, 14, 4864),
    "synthetic:qwen2.5-1.5b": _qwen2(1536, 28, 12, 8960),
    "synthetic:tiny": _llama(64, 2, 4, 128) | {"vocab_size": 512, "num_key_value_heads": 2},
}
PREDICTABLE = {"synthetic:predictable": 2, "synthetic:predictable-mha": 4}  # key-value heads, of 4
NAMES = (*SHAPES, *PREDICTABLE)


def build(
    name: str, device: str, dtype: torch.dtype, parallel: str = "none"
) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    """(model, tokenizer) of one of NAMES on `device` in `dtype`, always with the same weights;
    where `parallel` is layers, over all cards, with weights that depend on their number. UsageError
    for another way to split it."""
    if parallel != "none" and (parallel != "layers" or name not in SHAPES):
        raise UsageError(
            f"{name} is generated on one card; --parallel layers splits those of published shapes, "
            "and --parallel tp models with weights on disk"
        )
    if parallel == "layers":
        model = random_spread(config(name), dtype, torch.cuda.device_count())
    elif name in SHAPES:
        model = random(config(name), device, dtype)
    else:
        model = predictable(kv_heads=PREDICTABLE[name], dtype=dtype)[0].to(device)
    return model, tokenizer(model.config.vocab_size, model.config.max_position_embeddings)


def config(name: str) -> "PretrainedConfig":
    """The transformers config of one of NAMES."""
    if name in PREDICTABLE:
        return _predictable_config(64, PREDICTABLE[name])
    shape = dict(SHAPES[name])
    rope = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    return _config(shape.pop("vocab_size"), rope_parameters=rope, **shape)


def recipe(name: str) -> str:
    """sha256 of everything that determines the weights of `name`."""
    facts = {"name": name, "shape": SHAPES.get(name), "seed": SEED, "recipe": RECIPE}
    # Not canonical JSON: recorded runs have this hash.
    return sha256_of_bytes(json.dumps(facts, sort_keys=True).encode())


def random(
    config: "PretrainedConfig", device: str, dtype: torch.dtype, seed: int = SEED
) -> "PreTrainedModel":
    """A model with normal(0, 0.02) matrices and biases, made on `device` in `dtype`, without a copy
    in host memory.

    The row of EOS in the LM head is zero, so that runs for cost last their full length.
    """
    model = _empty(config, device, dtype)
    _fill(model, seed)
    return model


def random_spread(
    config: "PretrainedConfig", dtype: torch.dtype, cards: int, seed: int = SEED
) -> "PreTrainedModel":
    """The same over so many cards, as `spread.layer_map` says."""
    from accelerate import dispatch_model

    model = _empty(config, "meta", dtype)
    places = layer_map(model, cards)
    for name, card in places.items():
        model.get_submodule(name).to_empty(device=f"cuda:{card}")
    model.model.rotary_emb = _rotary(model, "cuda:0")
    _fill(model, seed)
    dispatched: PreTrainedModel = dispatch_model(model, places, skip_keys=["past_key_values"])
    return dispatched


def _fill(model: Any, seed: int) -> None:
    """Sets the weights, with a generator for each device that they are on."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in model.named_parameters():
        where = parameter.device
        if where not in generators:
            generators[where] = torch.Generator(where).manual_seed(seed + len(generators))
        if parameter.dim() == 1 and not name.endswith("bias"):
            parameter.fill_(1.0)  # norms
        else:
            parameter.normal_(0.0, 0.02, generator=generators[where])
    model.lm_head.weight[model.config.eos_token_id] = 0.0


def predictable(
    vocab: int = 64,
    kv_heads: int = 2,
    seed: int = SEED,
    dtype: torch.dtype = torch.float32,
    favourite: int | None = None,
) -> tuple["LlamaForCausalLM", torch.Tensor]:
    """A two-layer Llama on the CPU and its table [V, V]: entry [u, v] is the score of v after u.

    At the default size the table's argmax is right on two greedy steps in three and its second
    choice on one in five; attention to the last four positions decides the rest. EOS, id V - 1,
    ends two prompts in five within 64 tokens. `favourite` is an id to be chosen at one greedy
    step in ten or more.
    """
    generator = torch.Generator().manual_seed(seed)
    table = _table(vocab, generator, favourite)
    model: LlamaForCausalLM = _empty(_predictable_config(vocab, kv_heads), "cpu", dtype)
    hidden = model.config.hidden_size
    # Orthonormal directions of the residual stream: one a token, and one that is always on. Both
    # coordinates of an embedding are sqrt(hidden / 2) after the norm.
    directions = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))[0]
    tokens, always = directions[:vocab], directions[vocab]
    sharpness = 2 * math.log(vocab) / math.log(64)
    # Context adds noise to the scores; the largest of V values should match the table's margins.
    strength = 4.5 / (table.square().sum(0).mean() * 2 * math.log(vocab)).sqrt().item()

    model.model.embed_tokens.weight.copy_(tokens + always)
    for layer in model.model.layers:
        _read_context(layer, model.config, tokens, always, strength, generator)
    model.model.norm.weight.fill_(1.0)
    model.lm_head.weight.copy_(table.T @ tokens * (sharpness * math.sqrt(2 / hidden)))
    return model, table


def tokenizer(vocab: int, length: int) -> "PreTrainedTokenizerFast":
    """Any text to ids below `vocab`: UTF-8 bytes, or lower-case characters if there is no room."""
    from transformers import PreTrainedTokenizerFast

    if vocab > 256:
        ids = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        core = Tokenizer(models.BPE(vocab=ids, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        characters = " \n" + string.ascii_lowercase + string.digits + string.punctuation
        ids = {character: i for i, character in enumerate(characters[: vocab - 2])}
        ids |= {"<unk>": len(ids), EOS: vocab - 1}
        core = Tokenizer(models.WordLevel(vocab=ids, unk_token="<unk>"))
        core.normalizer = normalizers.Lowercase()
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=length,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _config(vocab: int, model_type: str = "llama", **settings: Any) -> "PretrainedConfig":
    from transformers import AutoConfig

    eos = 256 if vocab > 256 else vocab - 1  # as `tokenizer` has it
    ids = {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": eos}
    return AutoConfig.for_model(model_type, vocab_size=vocab, **ids, **settings)


def _predictable_config(vocab: int, kv_heads: int) -> "PretrainedConfig":
    hidden = max(96, 32 * math.ceil((vocab + 1) / 32))
    return _config(
        vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        # A small base: every frequency tells neighbouring positions apart.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=False,
    )


def _empty(config: "PretrainedConfig", device: str, dtype: torch.dtype) -> Any:
    """A model on `device` in `dtype` whose weights are not set; draws no random numbers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.to_empty(device=device).requires_grad_(False).eval()
    model.model.rotary_emb = _rotary(model, device)
    model.tie_weights()
    return model


def _rotary(model: Any, device: str) -> torch.nn.Module:
    """Its buffers are computed, not set."""
    with torch.device(device):
        module: torch.nn.Module = type(model.model.rotary_emb)(model.config)
    return module


def _table(vocab: int, generator: torch.Generator, favourite: int | None) -> torch.Tensor:
    """[V, V] scores: for each token a best successor and a second slightly below it, over noise.

    The best ones form one cycle over all ids but EOS, so that greedy text does not repeat soon.
    """
    best, second, noise, eos = 4.5, 3.5, 0.7, vocab - 1
    table = noise * torch.randn(vocab, vocab, generator=generator)
    shuffled = torch.randperm(vocab, generator=generator)
    table[shuffled, shuffled.roll(-1)] = second
    cycle = torch.randperm(eos, generator=generator)
    table[cycle, cycle.roll(-1)] = best
    table[eos, cycle[0]] = best
    table[cycle[::2][: max(1, vocab // 16)], eos] = second - 0.3
    if favourite is not None:
        table[cycle[1::3], favourite] = best + 0.5
        # Context decides what follows it: a fixed successor would soon lead back to it.
        table[favourite] = noise * torch.randn(vocab, generator=generator)
        table[favourite, favourite] = -3.0
    return table


def _read_context(
    layer: "LlamaDecoderLayer",
    config: "PretrainedConfig",
    tokens: torch.Tensor,  # [V, hidden]
    always: torch.Tensor,  # [hidden]
    strength: float,
    generator: torch.Generator,
) -> None:
    """Sets a layer that adds to the scores: head i mostly reads the token i positions back."""
    attention, mlp, hidden = layer.self_attn, layer.mlp, config.hidden_size
    query, key = _offsets(config)
    rows = config.num_key_value_heads * key.numel()

    def normal(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)

    def by_offset(vector: torch.Tensor) -> torch.Tensor:
        return torch.outer(vector, always) * math.sqrt(2 / hidden)

    by_content = math.sqrt(2)
    q, k = by_offset(query.flatten()), by_offset(key.repeat(config.num_key_value_heads))
    attention.q_proj.weight.copy_(q + by_content * normal(hidden, hidden))
    attention.k_proj.weight.copy_(k + by_content * normal(rows, hidden))
    attention.v_proj.weight.copy_(normal(rows, hidden) @ tokens.T @ tokens)
    attention.o_proj.weight.copy_(strength * tokens.T @ normal(len(tokens), hidden))
    mlp.gate_proj.weight.copy_(normal(2 * hidden, hidden))
    mlp.up_proj.weight.copy_(normal(2 * hidden, hidden))
    mlp.down_proj.weight.copy_(0.2 * strength * tokens.T @ normal(len(tokens), 2 * hidden))
    layer.input_layernorm.weight.fill_(1.0)
    layer.post_attention_layernorm.weight.fill_(1.0)


def _offsets(config: "PretrainedConfig") -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [heads, d] and a key [d]: after RoPE, head i scores 12 for the key i rows back."""
    heads, half = config.num_attention_heads, config.hidden_size // config.num_attention_heads // 2
    frequency = config.rope_parameters["rope_theta"] ** -(torch.arange(half) / half)
    angle = -frequency * torch.arange(heads).unsqueeze(1)
    scale = math.sqrt(12 * math.sqrt(2 * half) / half)
    query = torch.cat([angle.cos(), angle.sin()], dim=1)
    key = torch.cat([torch.ones(half), torch.zeros(half)])
    return scale * query, scale * key
