"""EAGLE-3's published checkpoints (https://github.com/SafeAILab/EAGLE).

A folder with `config.json` and `pytorch_model.bin` or `model.safetensors`:

    config.json    a Llama's shape of one layer, with draft_vocab_size V'
    fc.weight [d, 3d], norm.weight [d], lm_head.weight [V', d]
    midlayer.self_attn.{q,k,v}_proj.weight [., 2d], midlayer.self_attn.o_proj.weight
    midlayer.mlp.{gate,up,down}_proj.weight
    midlayer.{hidden_norm,input_layernorm,post_attention_layernorm}.weight [d]
    d2t int64 [V']   target id - draft id;  t2d bool [V]   tokens that can be drafted

Other trainers write `layers.0.` for `midlayer.`. Where V' = V both maps may be left out. Embeddings
are the target's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from baselines.eagle3.model import Eagle3, Eagle3Config, tapped_layers
from bench.decoding.drafts import checkpoint
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.norms import Standardise
from bench.decoding.drafts.weights import randomise
from bench.errors import one_line
from bench.files import json_of, sha256_of_files

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LAYER, OTHER = "midlayer.", "layers.0."
TO_TARGET, DRAFTABLE = "d2t", "t2d"
LAYERS = "eagle_aux_hidden_state_layer_ids"
VOCABULARY = 32_000  # of the published drafts
NEEDED = (
    *("hidden_size", "num_attention_heads", "intermediate_size", "rms_norm_eps"),
    *("vocab_size", "draft_vocab_size"),
)
KNOWN = (
    f"known layouts: {CONFIG} with draft_vocab_size, and {WEIGHTS[0]} or {WEIGHTS[1]} with "
    f"fc.weight, {LAYER}* or {OTHER}*, norm.weight, lm_head.weight, {TO_TARGET} and {DRAFTABLE}"
)


def locate(text: str) -> Path:
    """The checkpoint's folder, or that of a hub id, whose known files are fetched. CheckpointError
    where `text` is neither."""
    return checkpoint.locate(text, (CONFIG, *WEIGHTS))


def recognises(location: Path) -> bool:
    """Whether it is a folder or one of the known files."""
    return location.is_dir() or location.name in WEIGHTS


def files(location: Path) -> list[Path]:
    """The settings and the file with weights. CheckpointError where the latter is missing."""
    folder = location if location.is_dir() else location.parent
    names = WEIGHTS if location.is_dir() else (location.name,)
    for name in names:
        if (folder / name).is_file():
            return [folder / CONFIG, folder / name]
    found = sorted(path.name for path in folder.glob("*"))
    raise CheckpointError(
        f"{location.name} holds no EAGLE-3 draft: found {checkpoint.some(found)}; {KNOWN}"
    )


def check(
    location: Path, hidden_size: int, vocab_size: int, layers: int
) -> tuple[Eagle3Config, dict[str, Tensor], Tensor]:
    """(settings, tensors by the authors' names, vocabulary int64 [V']) of a checkpoint for a target
    of that shape: d, V and L. CheckpointError, one line that names what was found and the known
    layouts, where it is another's or not whole."""
    settings, file = files(location)
    try:
        config = _shape(_read(settings), hidden_size, vocab_size, layers)
        found = checkpoint.read(file)
        vocabulary = _vocabulary(file.name, found, config.vocabulary, vocab_size)
        tensors = _renamed(found)
        checkpoint.check(file.name, tensors, _shapes(config))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {KNOWN}") from error
    return config, tensors, vocabulary


def load(location: Path, hidden_size: int, vocab_size: int, layers: int) -> tuple[Eagle3, str]:
    """The draft of a folder, or of its file with weights, in the file's own precision, and the
    sha256 of its settings and weights. CheckpointError as `check` raises it."""
    config, tensors, vocabulary = check(location, hidden_size, vocab_size, layers)
    with torch.device("meta"):
        draft = Eagle3(config)
    identity = Standardise(3 * hidden_size).state_dict(prefix="tap_norm.")
    draft.load_state_dict(_joined(tensors) | identity, assign=True)
    draft.vocabulary = vocabulary
    return draft.requires_grad_(False).eval(), sha256_of_files(files(location))


def random(target: Any, device: torch.device, dtype: torch.dtype) -> tuple[Eagle3, str]:
    """A draft of the published shape with random weights, for a target's transformers config, to
    measure its cost; and a sha256 that identifies it."""
    heads = target.num_attention_heads
    config = Eagle3Config(
        hidden_size=target.hidden_size,
        heads=heads,
        kv_heads=getattr(target, "num_key_value_heads", None) or heads,
        head_dim=getattr(target, "head_dim", None) or target.hidden_size // heads,
        ffn=getattr(target, "intermediate_size", None) or 4 * target.hidden_size,
        vocabulary=min(VOCABULARY, target.vocab_size),
        taps=tapped_layers(target.num_hidden_layers),
    )
    with torch.device("meta"):
        draft = Eagle3(config)
    return draft, randomise(draft, device, dtype)


def _read(path: Path) -> dict[str, Any]:
    """`config.json`. CheckpointError where it is not that of a draft."""
    try:
        raw = json_of(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{CONFIG} is missing beside the weights; fetch it") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{CONFIG} cannot be read ({one_line(error)}); fetch it") from error
    lacking = [key for key in NEEDED if not isinstance(raw, dict) or raw.get(key) is None]
    if lacking:
        raise CheckpointError(f"{CONFIG} lacks {checkpoint.some(lacking)}")
    return dict(raw)


def _shape(raw: dict[str, Any], hidden_size: int, vocab_size: int, layers: int) -> Eagle3Config:
    """The draft's settings. CheckpointError where they are not for this target, or of another form
    than the one layer that is computed here."""
    own, target = raw["hidden_size"], raw.get("target_hidden_size") or raw["hidden_size"]
    for name, value, expected in (
        ("hidden size", own, hidden_size),
        ("a target of hidden size", target, hidden_size),
        ("a vocabulary of", raw["vocab_size"], vocab_size),
    ):
        if value != expected:
            raise CheckpointError(f"{CONFIG} is for {name} {value}, and the target has {expected}")
    if raw.get("hidden_act", "silu") != "silu" or raw.get("attention_bias"):
        raise CheckpointError(f"{CONFIG} is not of a plain Llama layer (activation or biases)")
    taps = tapped_layers(layers)
    asked = raw.get(LAYERS) or (raw.get("eagle_config") or {}).get(LAYERS)
    # Some trainers count the layers that run before a tap, some name the layer whose output it is.
    if asked and list(asked) not in (list(taps), [k - 1 for k in taps]):
        raise CheckpointError(f"{CONFIG} reads layers {asked}, and {list(taps)} are known")
    try:
        llama = LlamaConfig(**raw)
        return Eagle3Config(
            hidden_size=own,
            heads=llama.num_attention_heads,
            kv_heads=llama.num_key_value_heads,
            head_dim=llama.head_dim,
            ffn=llama.intermediate_size,
            vocabulary=raw["draft_vocab_size"],
            taps=taps,
            rope=dict(llama.rope_parameters),
            eps=llama.rms_norm_eps,
        )
    except Exception as error:  # transformers validates with types of its own
        raise CheckpointError(f"{CONFIG} is no Llama's ({one_line(error)})") from error


def _vocabulary(where: str, found: dict[str, Tensor], draft: int, target: int) -> Tensor:
    """int64 [V'], target ids of the head's rows, from the two maps, which are taken out of
    `found`. CheckpointError where they do not fit each other or the sizes."""
    offsets, draftable = found.pop(TO_TARGET, None), found.pop(DRAFTABLE, None)
    if offsets is None and draftable is None and draft == target:
        return torch.arange(target)
    for name, tensor, size in ((TO_TARGET, offsets, draft), (DRAFTABLE, draftable, target)):
        if tensor is None:
            raise CheckpointError(f"{where} lacks {name}")
        if list(tensor.shape) != [size] or tensor.is_floating_point():
            raise CheckpointError(
                f"{where} has {name} of {list(tensor.shape)} ({tensor.dtype}) where whole numbers "
                f"of [{size}] are expected"
            )
    assert offsets is not None
    assert draftable is not None
    ids = torch.arange(draft) + offsets.long()
    expected = draftable.bool().nonzero().squeeze(1)
    if not torch.equal(ids.sort().values, expected):
        raise CheckpointError(f"{where}: {TO_TARGET} and {DRAFTABLE} name different tokens")
    return ids


def _renamed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the authors' prefix of the layer, where all of its names have the other trainers'."""
    if any(name.startswith(LAYER) for name in found):
        return found
    return {
        LAYER + name.removeprefix(OTHER) if name.startswith(OTHER) else name: tensor
        for name, tensor in found.items()
    }


def _shapes(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Of the tensors as published."""
    d, inner = config.hidden_size, config.heads * config.head_dim
    shared = config.kv_heads * config.head_dim
    layer = {
        "self_attn.q_proj": (inner, 2 * d),
        "self_attn.k_proj": (shared, 2 * d),
        "self_attn.v_proj": (shared, 2 * d),
        "self_attn.o_proj": (d, inner),
        "mlp.gate_proj": (config.ffn, d),
        "mlp.up_proj": (config.ffn, d),
        "mlp.down_proj": (d, config.ffn),
        "hidden_norm": (d,),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    outside = {"fc": (d, 3 * d), "norm": (d,), "lm_head": (config.vocabulary, d)}
    named = {LAYER + name: shape for name, shape in layer.items()} | outside
    return {f"{name}.weight": shape for name, shape in named.items()}


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By our names: projections that read the same input are one matrix."""
    of = {name.removeprefix(LAYER).removesuffix(".weight"): t for name, t in tensors.items()}
    joined = {
        "qkv": torch.cat([of.pop(f"self_attn.{x}_proj") for x in "qkv"]),
        "gate_up": torch.cat([of.pop(f"mlp.{x}_proj") for x in ("gate", "up")]),
        "o_proj": of.pop("self_attn.o_proj"),
        "down": of.pop("mlp.down_proj"),
    }
    return {f"{name}.weight": tensor for name, tensor in (of | joined).items()}
