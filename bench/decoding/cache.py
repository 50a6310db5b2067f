"""A static KV cache that can keep an accepted path.

transformers' caches choose the rows that a forward writes. Here every write goes to
explicit rows, attention reads the live rows only, and `keep` compacts the rows of an accepted
path in one copy over all layers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64  # live rows are rounded up to this many: aligned masks, few distinct shapes


def round_up(rows: int) -> int:
    """`rows` rounded up to a whole number of blocks."""
    return -(-rows // BLOCK) * BLOCK


def cache_argument(model: Any) -> str:
    """What the model's `forward` calls its cache: `cache` in newer versions of transformers,
    `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class TreeCache(Cache):
    """Keys and values of one sequence, or of a batch of equal lengths, all layers in one tensor.

    Attributes:
        length: committed rows; a forward writes behind them.
        live: rows that the next forward's attention reads, set by `begin`.
        write_to: int64 [w], the rows that the next forward writes, for engines that count on the
            device; attention then gets every row. None: behind the committed ones.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        batch: int = 1,
    ) -> None:
        self._shape = (layers, 2, batch, kv_heads)
        self._head_dim = head_dim
        self._options: dict[str, Any] = {"dtype": dtype, "device": device}
        super().__init__(layers=[_TreeCacheLayer(self) for _ in range(layers)])
        self.length = 0
        self.live = 0
        self.write_to: Tensor | None = None
        self._allocate(0)

    @classmethod
    def of(
        cls,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        batch: int = 1,
        layers: int | None = None,
        shards: int = 1,
    ) -> TreeCache:
        """An empty cache for a model with this text config: for so many of its `layers` (None: for
        all), and for one of `shards` equal parts of its key-value heads."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers if layers is None else layers,
            kv_heads=(getattr(config, "num_key_value_heads", None) or heads) // shards,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=dtype,
            device=device,
            batch=batch,
        )

    @property
    def capacity(self) -> int:
        """Allocated rows."""
        return self.rows.shape[-2]

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows; drops what was cached when it has to grow."""
        if rows > self.capacity:
            self._allocate(round_up(rows))
            self.length = 0

    def _allocate(self, rows: int) -> None:
        # Zeros, not garbage: a masked row still takes part in 0 * value.
        self.rows = torch.zeros(*self._shape, rows, self._head_dim, **self._options)
        for layer, views in zip(self.layers, self.rows.unbind(0), strict=True):
            layer.keys, layer.values = views.unbind(0)  # each [batch, kv_heads, rows, head_dim]

    def begin(self, width: int, exact: bool) -> None:
        """Announce a forward of `width` tokens behind the committed rows.

        `exact` gives attention exactly the written rows (no mask needed at width 1 and in
        prefill); otherwise they are rounded up to a block and the caller's mask hides the rest.
        """
        end = self.length + width
        if end > self.capacity:
            raise IndexError(f"the cache holds {self.capacity} rows, {end} are needed")
        self.live = end if exact else min(round_up(end), self.capacity)

    def advance(self, rows: int) -> None:
        """Commit the first `rows` rows of the last forward as they lie."""
        self.length += rows

    def keep(self, path: Tensor) -> None:
        """Commit the rows of `path`, int64 [k] node indices of the last forward, in order."""
        start, k = self.length, path.shape[0]
        self.rows[..., start : start + k, :] = self.rows.index_select(-2, path + start)
        self.length += k


class _TreeCacheLayer(CacheLayerMixin):
    """One layer's view of a TreeCache, in the form that transformers' attention calls."""

    keys: Tensor
    values: Tensor

    def __init__(self, cache: TreeCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: `TreeCache.reserve` allocates."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [batch, kv_heads, w, head_dim] behind the committed rows; return the live rows."""
        cache, keys, values = self._cache, self.keys, self.values
        if cache.write_to is not None:
            keys.index_copy_(2, cache.write_to, key_states)
            values.index_copy_(2, cache.write_to, value_states)
            return keys, values
        start, width = cache.length, key_states.shape[-2]
        keys.narrow(2, start, width).copy_(key_states)
        values.narrow(2, start, width).copy_(value_states)
        return keys.narrow(2, 0, cache.live), values.narrow(2, 0, cache.live)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(live rows, offset of the first): what transformers builds prefill's mask from."""
        return self._cache.length + query_length, 0

    def get_seq_length(self) -> int:
        return self._cache.length

    def get_max_length(self) -> int:
        return self._cache.capacity
