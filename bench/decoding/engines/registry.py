"""The engines by name; imports no torch, so that settings, records and reports may read it."""

from __future__ import annotations

from types import MappingProxyType

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
