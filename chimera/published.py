"""Chimera's published checkpoints (https://github.com/kafkayu/Chimera).

Two layouts are known, distinguished by the file of the decoder layer:

    trimlp.pt         0.linear.weight [3d, 3d], 0.linear.bias [3d], 1.weight [d, 3d]
    fast_layer1.pt    one LlamaDecoderLayer with the prefix `0.`
    chimera_head.pt   {i}.0.weight [V, 2d], of [h_t ; o]

and an older one with fast_layer0.pt and heads [V, d] of o alone. Both are Chimera without
standardised inputs and without a norm after the encoder; the heads compute logits themselves. The
number of heads is taken from the file. A folder with both layers holds another draft and is
refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.decoding.drafts import checkpoint
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.norms import Standardise
from bench.decoding.drafts.weights import randomise
from bench.files import sha256_of_files
from chimera.model import Chimera, ChimeraConfig

TRIGRAM, HEADS = "trimlp.pt", "chimera_head.pt"
DEPTH = 5  # levels of the paper's tree
LAYER, OLDER_LAYER = "fast_layer1.pt", "fast_layer0.pt"
FILES = (TRIGRAM, LAYER, OLDER_LAYER, HEADS)
KNOWN = (
    f"known layouts: {TRIGRAM} (0.linear.weight, 0.linear.bias, 1.weight), {LAYER} (one "
    f"LlamaDecoderLayer with the prefix '0.') and {HEADS} ({{i}}.0.weight [V, 2d]), or the same "
    f"with {OLDER_LAYER} and heads [V, d]"
)
FREQUENCIES = "0.self_attn.rotary_emb.inv_freq"  # of the target's config; old versions saved it


def locate(text: str) -> Path:
    """The checkpoint's folder, or that of a hub id, whose known files are fetched. CheckpointError
    where `text` is neither."""
    return checkpoint.locate(text, FILES)


def recognises(location: Path) -> bool:
    """Whether it is a folder: files are written by training."""
    return location.is_dir()


def files(location: Path) -> list[Path]:
    """The files with weights. CheckpointError where the folder is not a checkpoint."""
    return [location / name for name in (TRIGRAM, _layout(location)[0], HEADS)]


def load(location: Path, config: Any) -> tuple[Chimera, str]:
    """The draft for a target, in the files' own precision, and the files' sha256.

    Args:
        location: a folder.
        config: the target's transformers config: shape, rotary base and eps come from it.

    Raises CheckpointError, one line that names what was found and the known layouts.
    """
    try:
        layer, older = _layout(location)
        trigram, encoder, heads = (checkpoint.read(file) for file in files(location))
        encoder.pop(FREQUENCIES, None)
        found = _shape(config, heads, older)
        d = found.hidden_size
        head = (found.own_heads, d if older else 2 * d)
        checkpoint.check(TRIGRAM, trigram, _trigram_shapes(d))
        checkpoint.check(layer, encoder, _layer_shapes(d, found.ffn))
        checkpoint.check(HEADS, heads, {f"{i}.0.weight": head for i in range(found.depth)})
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {KNOWN}") from error
    with torch.device("meta"):
        chimera = Chimera(found)
    state = _renamed(trigram, encoder, heads) | _identities(chimera)
    chimera.load_state_dict(state, assign=True)
    return chimera.requires_grad_(False).eval(), sha256_of_files(files(location))


def random(config: ChimeraConfig, device: torch.device, dtype: torch.dtype) -> tuple[Chimera, str]:
    """A draft of that shape with random weights, to measure its cost, and a sha256 that identifies
    it."""
    with torch.device("meta"):
        chimera = Chimera(config)
    return chimera, randomise(chimera, device, dtype)


def _layout(location: Path) -> tuple[str, bool]:
    """(the layer's file, whether the layout is the older one)."""
    found = sorted(path.name for path in location.glob("*"))
    layers = [name for name in (LAYER, OLDER_LAYER) if name in found]
    if len(layers) != 1 or not {TRIGRAM, HEADS} <= set(found):
        raise CheckpointError(
            f"{location.name} is not a Chimera checkpoint with one decoder layer: "
            f"found {checkpoint.some(found)}"
        )
    return layers[0], layers[0] == OLDER_LAYER


def _shape(config: Any, heads: dict[str, Tensor], older: bool) -> ChimeraConfig:
    """The draft's settings. CheckpointError where the target is not a plain Llama."""
    attention = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or attention
    if groups != attention:
        raise CheckpointError(
            f"the target has {groups} key-value heads for {attention} attention heads, "
            "and published drafts are known for multi-head attention only"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    activation = getattr(config, "hidden_act", None)
    if rope.get("rope_type") != "default" or activation != "silu":
        raise CheckpointError(
            f"the target's layers are not plain Llama layers (positions {rope.get('rope_type')}, "
            f"activation {activation})"
        )
    depth = checkpoint.numbers(HEADS, heads, r"([0-9]{1,4})\..*")
    if not depth:
        raise CheckpointError(f"{HEADS} holds no 0.0.weight: found {checkpoint.some(heads)}")
    return shape(config, depth, older)


def shape(config: Any, depth: int = DEPTH, older: bool = False) -> ChimeraConfig:
    """The published draft's settings for a target's transformers config. CheckpointError for one
    that lacks what the draft takes from a Llama's."""
    needed = ("intermediate_size", "rms_norm_eps")
    lacking = [name for name in needed if getattr(config, name, None) is None]
    if lacking:
        raise CheckpointError(
            f"the published draft is for models of Llama's form, and {config.model_type} has no "
            f"{' and no '.join(lacking)}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    return ChimeraConfig(
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
        depth=depth,
        rope_theta=rope.get("rope_theta", ChimeraConfig.rope_theta),
        eps=config.rms_norm_eps,
        head_state=not older,
        out_norm=False,
        own_heads=config.vocab_size,
    )


def _trigram_shapes(d: int) -> dict[str, tuple[int, ...]]:
    return {
        "0.linear.weight": (3 * d, 3 * d),
        "0.linear.bias": (3 * d,),
        "1.weight": (d, 3 * d),
    }


def _layer_shapes(d: int, ffn: int) -> dict[str, tuple[int, ...]]:
    return {
        **{f"0.self_attn.{x}_proj.weight": (d, d) for x in "qkvo"},
        **{f"0.mlp.{x}_proj.weight": (ffn, d) for x in ("gate", "up")},
        "0.mlp.down_proj.weight": (d, ffn),
        "0.input_layernorm.weight": (d,),
        "0.post_attention_layernorm.weight": (d,),
    }


def _renamed(
    trigram: dict[str, Tensor], encoder: dict[str, Tensor], heads: dict[str, Tensor]
) -> dict[str, Tensor]:
    """By our names. The layer's one input norm is used for context and query."""
    layer = {name.removeprefix("0."): tensor for name, tensor in encoder.items()}
    q, k, v, o = (layer[f"self_attn.{x}_proj.weight"] for x in "qkvo")
    gate, up, down = (layer[f"mlp.{x}_proj.weight"] for x in ("gate", "up", "down"))
    return {
        "trigram.residual.weight": trigram["0.linear.weight"],
        "trigram.residual.bias": trigram["0.linear.bias"],
        "trigram.projection.weight": trigram["1.weight"],
        "encoder.context_norm.weight": layer["input_layernorm.weight"],
        "encoder.query_norm.weight": layer["input_layernorm.weight"],
        "encoder.ffn_norm.weight": layer["post_attention_layernorm.weight"],
        "encoder.q_proj.weight": q,
        "encoder.kv_proj.weight": torch.cat((k, v)),
        "encoder.o_proj.weight": o,
        "encoder.gate_up.weight": torch.cat((gate, up)),
        "encoder.down.weight": down,
        **{f"heads.heads.{i}.weight": heads[f"{i}.0.weight"] for i in range(len(heads))},
    }


def _identities(chimera: Chimera) -> dict[str, Tensor]:
    """Identity buffers for every `Standardise`: published drafts do not standardise."""
    size = chimera.config.hidden_size
    return {
        f"{module}.{name}": buffer
        for module, kind in chimera.named_modules()
        if isinstance(kind, Standardise)
        for name, buffer in Standardise(size).state_dict().items()
    }
