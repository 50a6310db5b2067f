"""The engines by name; imports no torch, so that settings, records and reports may read it."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from bench.errors import UsageError

# name -> module and class of its target model, imported when a target is made on it
CLASSES = MappingProxyType(
    {
        "eager": "bench.decoding.engines.eager:EagerTarget",
        "graph": "bench.decoding.engines.graph:GraphTarget",
        "compile": "bench.decoding.engines.compile:CompiledTarget",
        "exact": "bench.decoding.engines.exact:ExactTarget",
    }
)
# where an engine has a form of its own without a GPU
ON_CPU = MappingProxyType({"compile": "bench.decoding.engines.cpu:CpuTarget"})
ENGINES = tuple(CLASSES)  # in the order of every table
EAGER, GRAPH = ENGINES[:2]  # where another engine cannot run, rows fall back to graph, then eager


def needs_gpu(engine: str, device: str) -> str | None:
    """Why the engine cannot run on a type of device, in one line, or None. `exact` runs without a
    GPU too, without CUDA graphs."""
    return "needs a GPU" if engine == GRAPH and device == "cpu" else None


def check_engines(parallel: str, engines: Sequence[str]) -> None:
    """UsageError where a model over several cards is to run on an engine that takes one."""
    one_card = [engine for engine in engines if engine != EAGER]
    if parallel != "none" and one_card:
        raise UsageError(
            f"engine {one_card[0]} takes one card; run --parallel {parallel} on {EAGER}"
        )
