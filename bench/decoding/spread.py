"""A model spread over several cards: which layers lie where, and their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from bench.decoding.cache import TreeCache
from bench.decoding.taps import layers


def layer_map(model: Any, cards: int) -> dict[str, int]:
    """accelerate's device map of a causal LM: card by module. Equal runs of layers on each card;
    all that drafts read (embeddings, final norm, LM head) on the first."""
    base, count = model.base_model, model.config.get_text_config().num_hidden_layers
    prefix, (name, _) = model.base_model_prefix, layers(base, count)
    found = {f"{prefix}.{other}": 0 for other, _ in base.named_children() if other != name}
    found |= {other: 0 for other, module in model.named_children() if module is not base}
    return found | {f"{prefix}.{name}.{i}": i * cards // count for i in range(count)}


def spread(model: Any) -> bool:
    """Whether accelerate has put the model's layers on more than one device."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def cache_of(model: Any, dtype: torch.dtype, device: torch.device) -> TreeCache:
    """The cache of a model on one device, over several, or of one process's shard of it."""
    config = model.config.get_text_config()
    if not spread(model):
        return TreeCache.of(config, dtype, device, shards=model.tp_size or 1)
    _, found = layers(model.base_model, config.num_hidden_layers)
    devices = [next(layer.parameters()).device for layer in found]
    runs = [(where, len(list(run))) for where, run in groupby(devices)]
    return SpreadCache([TreeCache.of(config, dtype, where, layers=n) for where, n in runs])


class SpreadCache(TreeCache):
    """Caches of consecutive layers, each on its device, kept in step."""

    def __init__(self, parts: Sequence[TreeCache]) -> None:
        self._parts = list(parts)
        Cache.__init__(self, layers=[layer for part in parts for layer in part.layers])

    @property
    def length(self) -> int:
        return self._parts[0].length

    @length.setter
    def length(self, rows: int) -> None:
        for part in self._parts:
            part.length = rows

    @property
    def live(self) -> int:  # type: ignore[override]
        return self._parts[0].live

    @property
    def capacity(self) -> int:
        """Allocated rows."""
        return self._parts[0].capacity

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows; drops what was cached when it has to grow."""
        for part in self._parts:
            part.reserve(rows)

    def begin(self, width: int, exact: bool) -> None:
        """As of the parts."""
        for part in self._parts:
            part.begin(width, exact)

    def keep(self, path: Tensor) -> None:
        """As of the parts."""
        for part in self._parts:
            part.keep(path.to(part.rows.device))

    def advance(self, rows: int) -> None:
        """As of the parts."""
        for part in self._parts:
            part.advance(rows)
