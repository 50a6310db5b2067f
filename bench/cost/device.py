"""What costs are compared with: memory bandwidth and the bytes to read."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch

from bench.decoding.target import weight_bytes
from bench.decoding.timing import timed
from bench.targets import registry as targets
from bench.targets.registry import Target

BUFFER_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}  # far more than caches hold
BUFFER_PASSES = 10


class Bandwidth(NamedTuple):
    """Bytes a second of a device's memory; a copy counts what it reads and what it writes."""

    copy: float
    read: float


def bandwidth(device: torch.device) -> Bandwidth:
    """The fastest of a few copies of a large buffer, and of a few sums over it."""
    size = BUFFER_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    buffer = torch.ones(size // 4, device=device)
    copy = torch.empty_like(buffer)
    size = buffer.numel() * buffer.element_size()
    copied = min(timed(device, partial(copy.copy_, buffer)) for _ in range(BUFFER_PASSES))
    read = min(timed(device, buffer.sum) for _ in range(BUFFER_PASSES))
    return Bandwidth(2 * size / copied, size / read)


def facts(model: Any) -> dict[str, int]:
    """parameters; weight_bytes, what one forward reads of them; row_bytes, keys and values of one
    position."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "weight_bytes": weight_bytes(model),
        "row_bytes": 2 * config.num_hidden_layers * groups * width * model.dtype.itemsize,
    }


def shortage(
    target: Target, device: torch.device, dtype: torch.dtype, cards: int = 1
) -> str | None:
    """Why the weights do not fit into the free memory of the device, or of so many cards; None
    where they fit, or where the model's shape is unknown until it is fetched."""
    from transformers import AutoModelForCausalLM

    config = targets.config(target)
    if config is None:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    needed = sum(weight.nbytes for weight in model.parameters())
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        places = range(cards) if cards > 1 else [device]
        free = sum(torch.cuda.mem_get_info(place)[0] for place in places)
    if needed <= free:
        return None
    return f"the weights need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"


def free(device: str) -> None:
    """Release the memory of the last session's model."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
