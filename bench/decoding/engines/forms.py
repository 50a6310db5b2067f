"""Which forms of models each engine takes, from a transformers config alone; imports no torch.

One table for `--dry-run` and `--list`, for a run before weights load, and for the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.decoding.engines.registry import EAGER
from bench.decoding.engines.shapes import TILE

PLAIN = ("eager", "graph")  # run the model's own modules
FUSED = (*PLAIN, "compile")
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")  # `layers.layer` reads their weights


@dataclass(frozen=True)
class Form:
    """A property of a model that not every engine takes.

    Attributes:
        text: what it is, in a message.
        found: whether a text config has it.
        engines: those that take it.
    """

    text: str
    found: Callable[[Any], bool]
    engines: Collection[str] = ()


def unsupported(config: Any, engine: str) -> str | None:
    """Why `engine` cannot run a model with this config, in one line, or None."""
    text = config.get_text_config()
    form = next((f for f in FORMS if engine not in f.engines and f.found(text)), None)
    if form is None:
        return None
    if EAGER not in form.engines:
        return f"{form.text} is supported by no engine; choose a decoder with full attention"
    return f"{form.text} runs on {', '.join(form.engines)} only"


def _layer_kinds(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


def _hybrid(config: Any) -> bool:
    """Layers that keep another state than keys and values of every position."""
    other = _layer_kinds(config) - {"full_attention", "sliding_attention", "chunked_attention"}
    return bool(other) or getattr(config, "num_attention_heads", None) is None


def _windowed(config: Any) -> bool:
    kinds = _layer_kinds(config) | set(getattr(config, "attention_layers", None) or ())
    return bool(
        kinds & {"sliding_attention", "chunked_attention", "local"}
        or getattr(config, "sliding_window", None)
    )


def _latent(config: Any) -> bool:
    return getattr(config, "kv_lora_rank", None) is not None


def _alibi(config: Any) -> bool:
    return bool(getattr(config, "alibi", False)) or config.model_type in ("bloom", "mpt")


def _rotary(*kinds: str) -> Callable[[Any], bool]:
    return lambda config: any(kind in kinds for kind in _rotary_kinds(config))


def _rotary_kinds(config: Any) -> Iterator[str]:
    """Of the config, or of each kind of its layers."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None) or {}
        for place in (found, *(v for v in found.values() if isinstance(v, Mapping))):
            yield str(place.get("rope_type", place.get("type", "default")))


def _not_llama_like(config: Any) -> bool:
    return config.model_type not in LLAMA_LIKE


def _rotates_part(config: Any) -> bool:
    """Rotary positions on some of a head's numbers alone."""
    found = getattr(config, "rope_parameters", None) or {}
    return bool(found.get("partial_rotary_factor", 1.0) != 1.0)


def _quantised(config: Any) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _biased(config: Any) -> bool:
    """Elsewhere than on q, k and v alone, where Qwen2 has them whatever its config says."""
    return any(getattr(config, name, False) for name in ("attention_bias", "mlp_bias"))


def _not_silu(config: Any) -> bool:
    return bool(config.hidden_act != "silu")


def _widely_shared(config: Any) -> bool:
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return bool(heads // shared > TILE)


# The first that is found is named, so the general ones come first.
FORMS = (
    Form("an encoder with a decoder", lambda c: bool(getattr(c, "is_encoder_decoder", False))),
    Form("a model with layers other than attention (state space, convolution)", _hybrid),
    Form("attention to a sliding window or chunks", _windowed),
    Form("latent attention (MLA)", _latent),
    Form("ALiBi (positions as a bias of attention)", _alibi),
    Form("longrope (rotary positions that depend on the length)", _rotary("longrope")),
    Form("a model other than Llama, Mistral, Qwen2 and Qwen3", _not_llama_like, PLAIN),
    Form("a model with quantised weights", _quantised, PLAIN),
    Form("a model with biases of other projections than q, k and v", _biased, PLAIN),
    Form("another activation than SiLU", _not_silu, PLAIN),
    Form("dynamic rotary positions", _rotary("dynamic"), PLAIN),
    Form("rotary positions on a part of each head", _rotates_part, PLAIN),
    Form(f"more than {TILE} query heads for a key head", _widely_shared, FUSED),
)
