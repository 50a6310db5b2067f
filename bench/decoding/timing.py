"""Timing of a piece of work on its own: engines and drafts choose by it, no record holds it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP = 2  # runs: compilers and caches, then the capture of a graph
MOST, LEAST = 30, 5  # runs, the warm-up among them
ENOUGH = 1.0  # seconds after which the fewest runs do


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a few runs of `work` behind the first two, on the device's own clock."""
    seconds: list[float] = []
    started = time.perf_counter()
    while len(seconds) < LEAST or (len(seconds) < MOST and time.perf_counter() - started < ENOUGH):
        seconds.append(_on_gpu(work) if device.type == "cuda" else _on_host(work))
    median: float = statistics.median(seconds[WARM_UP:])
    return median


def _on_host(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _on_gpu(work: Callable[[], object]) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    work()
    last.record()
    last.synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds / 1e3
