"""Timing of a piece of work on its own; the clock of a decode loop is in `phases.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP = 2  # runs: compilers and caches, then the capture of a graph
MOST, LEAST = 30, 5  # runs, the warm-up among them
ENOUGH = 1.0  # seconds after which the fewest runs do


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one call on an idle device, its state after the host read of a decoding step:
    between two CUDA events on a GPU, by the host's clock elsewhere."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    first.record()
    work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of a few runs of `work` behind the first two."""
    seconds: list[float] = []
    started = time.perf_counter()
    while len(seconds) < LEAST or (len(seconds) < MOST and time.perf_counter() - started < ENOUGH):
        seconds.append(timed(device, work))
    median: float = statistics.median(seconds[WARM_UP:])
    return median
