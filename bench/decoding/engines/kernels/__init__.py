"""Triton kernels of the engine `compile`, for few rows against large weights and long caches.

Each has its definition in plain torch in `bench.decoding.ops`, under the same name. On Hopper and
later a kernel is launched while the one before still runs (programmatic dependent launch): it reads
its weights at once and waits before it reads what others wrote.
"""

from bench.decoding.engines.kernels.attention import attend, attend_rotated, rotate_rows
from bench.decoding.engines.kernels.choice import top
from bench.decoding.engines.kernels.invariant import ancestors, attend_in_order, rotate
from bench.decoding.engines.kernels.products import add_norm, gated, linear
from bench.decoding.engines.kernels.steps import embed, move, sprout
from bench.decoding.engines.kernels.stream import parts

__all__ = [
    "add_norm",
    "ancestors",
    "attend",
    "attend_in_order",
    "attend_rotated",
    "embed",
    "gated",
    "linear",
    "move",
    "parts",
    "rotate",
    "rotate_rows",
    "sprout",
    "top",
]
