"""What the engines take for models of several forms and sizes, on a GPU, and candidate tiles.

python benchmarks/forms.py [--models qwen2.5-0.5b ...] [--engines graph compile exact] [--sweep]
                           [--out FILE.json] [--processes 12]

1. forward: ms of a tree's forward behind 512 tokens, by engine and rows, random weights, bf16;
   the floor is the weights read once at BANDWIDTH.
2. products: µs of each of a layer's products and of the head, as the engine runs them, in a CUDA
   graph over so many sets of weights that none comes from the L2 cache.
3. --sweep: the same for every candidate tile of each kernel that could take the product, and for
   attention.

Before that, every engine passes its trial on two layers of each model, and kernels are compiled,
several at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from bench.decoding.engines import ops, shapes
from bench.decoding.engines import trial as engines
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.timing import timed
from bench.decoding.tree import TokenTree, Topology

BANDWIDTH = 4.3e12  # bytes a second that an H200 reads
CONTEXT = 512
ROWS = (1, 16, 32, 64)  # widths that are captured: 4 and 8 rows run in 16
SWEPT = (1, 16, 64)
CACHE = 200e6  # bytes of weights that no L2 cache holds
REPLAYS = 20
DTYPE = torch.bfloat16
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> transformers' classes, config
    "smollm2-135m": ("Llama", {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        "tie_word_embeddings": True,
    }),
    "qwen2.5-0.5b": ("Qwen2", {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
        "tie_word_embeddings": True,
    }),
    "qwen2.5-1.5b": ("Qwen2", {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
        "tie_word_embeddings": True,
    }),
    "qwen3-0.6b": ("Qwen3", {
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
        "vocab_size": 151936, "tie_word_embeddings": True,
    }),
    "llama-3.2-1b": ("Llama", {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
        "vocab_size": 128256, "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    }),
}  # fmt: skip


# Forwards


def model_of(name: str, layers: int | None = None) -> Any:
    """Random weights, with `layers` of its layers."""
    import transformers

    family, shape = MODELS[name]
    more = {} if layers is None else {"num_hidden_layers": layers}
    config = getattr(transformers, f"{family}Config")(
        **{**shape, **more}, max_position_embeddings=4096, eos_token_id=None, bos_token_id=None
    )
    with torch.device("cuda"):
        model = getattr(transformers, f"{family}ForCausalLM")._from_config(config, dtype=DTYPE)
    return model.requires_grad_(False).eval()


def floor_ms(model: Any) -> float:
    """The weights read once; a tied head is read, the embeddings are not."""
    read = sum(p.nbytes for p in model.parameters())
    if not model.config.tie_word_embeddings:
        read -= model.get_input_embeddings().weight.nbytes
    return float(read / BANDWIDTH * 1e3)


@torch.no_grad()
def forwards(model: Any, engine: str, replays: int = REPLAYS) -> dict[str, float]:
    """ms of a forward by number of rows."""
    kind = engines.load(engine, "cuda")
    target = kind(model)
    assert isinstance(target, GraphTarget)
    target.reserve(CONTEXT + 64)
    target.cache.length = 0
    target.cache.rows.normal_()
    target.cache.advance(CONTEXT)
    target.length.fill_(CONTEXT)
    found = {}
    for rows in ROWS:
        parents = [-1, *((node - 1) // 2 for node in range(1, rows))]
        topology = Topology.of(parents, target.device, lasting=True)
        tree = target.pad(TokenTree(torch.arange(rows, device="cuda"), topology))
        found[str(rows)] = median_ms(partial(target.forward, tree), replays)
    return found


def median_ms(function: Callable[[], object], replays: int) -> float:
    """Of single calls, after three that compile, capture and warm up."""
    for _ in range(3):
        function()
    cuda = torch.device("cuda")
    median: float = statistics.median(timed(cuda, function) for _ in range(replays))
    return 1e3 * median


# Products


class Product(NamedTuple):
    """A weight [n, k] as the engine multiplies by it."""

    name: str
    n: int  # rows of the weight
    k: int
    gated: bool = False
    normed: bool = False
    added: bool = False  # to the residual stream


def products_of(name: str) -> list[Product]:
    shape = MODELS[name][1]
    d, heads, kv_heads = (
        shape[f] for f in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    size, inner = shape.get("head_dim", d // heads), shape["intermediate_size"]
    return [
        Product("q k v", (heads + 2 * kv_heads) * size, d, normed=True),
        Product("o", d, heads * size, added=True),
        Product("gate up", 2 * inner, d, gated=True, normed=True),
        Product("down", d, inner, added=True),
        Product("head", shape["vocab_size"], d),
    ]


class Bench:
    """A product with enough weights, and its inputs."""

    def __init__(self, product: Product, rows: int) -> None:
        count = max(2, min(24, int(CACHE // (product.n * product.k * 2)) + 1))
        options = {"dtype": DTYPE, "device": "cuda"}
        scale = product.k**-0.5
        self.product, self.rows = product, rows
        self.weights = [
            torch.randn(product.n, product.k, **options) * scale  # type: ignore[call-overload]
            for _ in range(count)
        ]
        self.x = torch.randn(rows, product.k, **options)  # type: ignore[call-overload]
        self.residual = torch.randn(rows, product.n, **options)  # type: ignore[call-overload]
        self.norm = torch.ones(product.k, **options)  # type: ignore[call-overload]

    def fused(self, weight: Tensor) -> Tensor:
        """One kernel, with norm and residual."""
        p = self.product
        from bench.decoding.engines import kernels

        norm, residual = (self.norm if p.normed else None), (self.residual if p.added else None)
        return kernels.linear(self.x, weight, norm, 1e-6, p.gated, None, False, residual, None)

    def streamed(self, weight: Tensor) -> Tensor:
        """The streaming kernel and, where it has neighbours, the kernel for norm and sums."""
        from bench.decoding.engines import kernels
        from bench.decoding.engines.kernels.stream import stream

        p, x = self.product, self.x
        if p.normed:
            _, x = kernels.add_norm(x, None, self.norm, 1e-6)
        if not p.added:
            return stream(x, weight, p.gated)
        sums = stream(x, weight, split=True)
        return kernels.add_norm(self.residual, sums, self._ones(), 1e-6)[0]

    def library(self, weight: Tensor) -> Tensor:
        from bench.decoding.engines import kernels

        p, x = self.product, self.x
        if p.normed:
            _, x = kernels.add_norm(x, None, self.norm, 1e-6)
        out = kernels.gated(x, weight) if p.gated else torch.mm(x, weight.t())
        if not p.added:
            return out
        total: Tensor = kernels.add_norm(self.residual, out[None], self._ones(), 1e-6)[0]
        return total

    def as_run(self, weight: Tensor) -> Tensor:
        """What engine `compile` runs."""
        p = self.product
        if shapes.whole(self.rows, weight):
            return self.fused(weight)
        if p.added:
            sums = ops.parts(self.x, weight)
            return ops.add_norm(self.residual, sums, self._ones(), 1e-6)[0]
        x = ops.add_norm(self.x, None, self.norm, 1e-6)[1] if p.normed else self.x
        return ops.linear(x, weight, halves=p.gated)

    def _ones(self) -> Tensor:
        """The next norm's weight, [n]."""
        ones: Tensor = self.residual[0]
        return ones

    def us(self, function: Callable[[Tensor], object]) -> float:
        """Of one product, in a graph over all weights."""
        for weight in self.weights[:2]:
            function(weight)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for weight in self.weights:
                function(weight)
        return median_ms(graph.replay, 7) / len(self.weights) * 1e3


def candidates(product: Product, rows: int) -> Iterator[tuple[str, Sequence[int]]]:
    """(kernel, its tile) that could take the product; the tiles are those of `kernels.tiles`."""
    n, k = product.n // (1 + product.gated), product.k
    if rows == 1:
        for outputs in (1, 2, 4, 8):
            for columns in (512, 1024, 2048, 4096):
                for warps in (4, 8):
                    held = outputs * (1 + product.gated) * k / (32 * warps)
                    each = columns * outputs / (32 * warps)  # numbers of a thread's piece
                    if held <= 160 and 4 <= each <= 64 and columns < 2 * k:
                        yield "row", (outputs, columns, warps)
        return
    yield "library", ()
    if k <= 2560 and n <= 20000:
        for outputs in (16, 32):
            for parts, columns, warps in ((2, 128, 2), (4, 128, 4), (4, 64, 4), (8, 64, 8)):
                held = 2 * k * (outputs * (1 + product.gated) + 16) / (128 * warps)
                if held <= 170:
                    yield "few", (16, outputs, parts, columns, warps)
    if k <= 2560 and n * k <= 2**22:  # too small to stream
        return
    splits = (1,) if not product.added else (2, 4, 8)
    for split in splits:
        for outputs, columns, stages, warps in (
            (32, 128, 4, 4),
            (64, 64, 4, 4),
            (64, 128, 3, 4),
            (64, 128, 4, 4),
            (128, 64, 3, 4),
            (128, 128, 3, 8),
        ):
            yield "stream", (outputs, columns, split, stages, warps)


def sweep(product: Product, rows: int, warm: bool = False) -> list[tuple[float, str]]:
    """(µs, kernel and tile) of the candidates, best first; `warm` compiles and runs each once."""
    from bench.decoding.engines.kernels import tiles

    bench = Bench(product, rows)
    if warm:
        bench.weights = bench.weights[:1]
    run = {
        "row": bench.fused,
        "few": bench.fused,
        "stream": bench.streamed,
        "library": bench.library,
    }
    found = []
    for kernel, tile in candidates(product, rows):
        with ExitStack() as stack:
            if kernel != "library":
                patched = mock.patch.object(tiles, kernel, return_value=tile)
                stack.enter_context(patched)
            if kernel in ("row", "few"):
                stack.enter_context(mock.patch.object(shapes, "whole", return_value=True))
            try:
                if warm:
                    run[kernel](bench.weights[0])
                else:
                    found.append((bench.us(run[kernel]), f"{kernel}{tuple(tile)}"))
            except Exception as error:  # too much shared memory, or too many registers
                found.append((float("inf"), f"{kernel}{tuple(tile)} {type(error).__name__}"))
    return sorted(found)


def attention_tiles(heads: int, kv_heads: int, rows: int) -> Iterator[tuple[int, ...]]:
    """Candidates of `kernels.tiles.attention`."""
    queries = rows * heads // kv_heads
    for m in (16, 32, 64):
        if m > 16 and queries <= m // 2:
            continue
        for keys in (32, 64):
            for parts in (4, 8, 15, 31, 63):
                if rows == 1 or parts < 63:
                    yield (m, keys, parts, keys, 2 if m == 16 and keys == 32 else 4, 2)


def sweep_attention(name: str, rows: int, warm: bool = False) -> dict[str, list[tuple[float, str]]]:
    """By context: (µs, tile) of attention with its combination, best first; what runs is named."""
    from bench.decoding.engines import kernels
    from bench.decoding.engines.kernels import tiles

    shape = MODELS[name][1]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    size = shape.get("head_dim", shape["hidden_size"] // heads)
    caches = [torch.randn(2, kv_heads, 4500, size, dtype=DTYPE, device="cuda") for _ in range(8)]
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * size, dtype=DTYPE, device="cuda")
    cos, sin = (torch.rand(4500, size // 2, device="cuda") for _ in range(2))
    depths = torch.arange(rows, device="cuda")
    visible = torch.ones(rows, rows, dtype=torch.bool, device="cuda").tril()
    result: dict[str, list[tuple[float, str]]] = {}
    usual = tuple(tiles.attention(rows * heads // kv_heads, kv_heads, size, 2))
    every = [("as it is ", usual), *(("", t) for t in attention_tiles(heads, kv_heads, rows))]
    for context in (CONTEXT, 4096):
        length = torch.tensor([context], device="cuda")
        found = []
        for label, tile in every:
            with mock.patch.object(tiles, "attention", return_value=tile):

                def attend(cache: Tensor, length: Tensor = length) -> Tensor:
                    keys, values = cache.unbind()
                    places = (cos, sin, depths, length, visible)
                    return kernels.attend_rotated(qkv, heads, None, keys, values, *places)

                try:
                    attend(caches[0])
                    if warm:
                        continue
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        for cache in caches:
                            attend(cache)
                    us = median_ms(graph.replay, 7) / len(caches) * 1e3
                    found.append((us, label + str(tile)))
                except Exception as error:
                    found.append((float("inf"), f"{label}{tile} {type(error).__name__}"))
        result[str(context)] = sorted(found)
        if warm:
            break
    return result


# The command


class Job(NamedTuple):
    kind: str  # trial, sweep or attention
    name: str
    work: Callable[..., Any]


def jobs_of(given: argparse.Namespace) -> Iterator[Job]:
    for name in given.models:
        for engine in given.engines:
            if engine != "graph":
                yield Job("trial", f"{name} {engine}", partial(trial, name, engine))
    for name in given.sweep:
        for rows in SWEPT:
            for product in products_of(name):
                key = f"{name}, {product.name}, {rows} rows"
                yield Job("sweep", key, partial(sweep, product, rows))
            yield Job("attention", f"{name}, {rows} rows", partial(sweep_attention, name, rows))


def trial(name: str, engine: str, warm: bool = True) -> str | None:
    """Why the engine's trial fails on two layers of the model, or None."""
    del warm
    return engines.trial(engines.load(engine, "cuda")(model_of(name, layers=2)))


@torch.no_grad()
def prepare(job: Job) -> Any:
    """Run the job in a process of its own: compiled kernels stay in Triton's cache."""
    return job.work(warm=True)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="*", default=["graph", "compile", "exact"])
    parser.add_argument("--sweep", nargs="*", choices=MODELS, default=[], metavar="MODEL")
    parser.add_argument("--out", type=Path, help="JSON with every figure")
    parser.add_argument("--processes", type=int, default=12, help="that compile beforehand")
    parser.add_argument("--seconds", type=float, default=165, help="after which no sweep starts")
    given = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("a CUDA GPU is needed")
    started = time.perf_counter()
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "trial": {},
        "forward": {},
        "products": {},
        "sweep": {},
        "attention": {},
    }

    def save() -> None:
        if given.out is not None:
            given.out.write_text(json.dumps(result, indent=1))

    jobs = list(jobs_of(given))
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        for job, done in [(job, pool.submit(prepare, job)) for job in jobs]:
            try:
                found = done.result()
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
                print(f"{job.kind} {job.name}: {found}", file=sys.stderr)
            if job.kind == "trial":
                result["trial"][job.name] = found
    print(f"compiled in {time.perf_counter() - started:.0f} s", flush=True)

    for name in given.models:
        model = model_of(name)
        result["forward"][name] = {"floor": floor_ms(model)}
        for engine in given.engines:
            try:
                result["forward"][name][engine] = forwards(model, engine)
            except Exception as error:
                result["forward"][name][engine] = f"{type(error).__name__}: {error}"
        result["products"][name] = {
            f"{product.name}, {rows} rows": measured(product, rows)
            for product in products_of(name)
            for rows in (1, 16, 64)
        }
        del model
        torch.cuda.empty_cache()
        save()
    for job in jobs:
        if job.kind == "trial":
            continue
        if time.perf_counter() - started > given.seconds:
            print("out of time: the last sweeps are left out")
            break
        result[job.kind][job.name] = job.work()
        save()
    print_tables(result)
    print(f"{time.perf_counter() - started:.0f} s in all")


def measured(product: Product, rows: int) -> dict[str, float | str]:
    floor = product.n * product.k * 2 / BANDWIDTH * 1e6
    try:
        bench = Bench(product, rows)
        return {"floor": floor, "us": bench.us(bench.as_run)}
    except Exception as error:
        return {"floor": floor, "error": f"{type(error).__name__}: {error}"}


def print_tables(result: Mapping[str, Any]) -> None:
    for key, found in result["sweep"].items():
        print(f"{key}: " + "; ".join(f"{us:.2f} {tile}" for us, tile in found[:3]))
    for key, contexts in result["attention"].items():
        for context, found in contexts.items():
            usual = next(us for us, tile in found if tile.startswith("as it is"))
            best = "; ".join(f"{us:.2f} {tile}" for us, tile in found[:3])
            print(f"attention, {key}, context {context}: {best}; as it is {usual:.2f}")
    for name, products in result["products"].items():
        for key, us in products.items():
            print(f"{name}, {key}: {us.get('us', us.get('error'))} us, floor {us['floor']:.2f}")
    for name, why in result["trial"].items():
        print(f"trial of {name}: {why or 'passed'}")
    print(f"\n{'ms of a forward':<24}{'floor':>8}" + "".join(f"{rows:>8}" for rows in ROWS))
    for name, row in result["forward"].items():
        for engine, found in row.items():
            if engine == "floor":
                continue
            if isinstance(found, str):
                print(f"{name} {engine}: {found}")
                continue
            cells = "".join(f"{found[str(rows)]:>8.3f}" for rows in ROWS)
            ratio = found["1"] / row["floor"]
            print(f"{name + ' ' + engine:<24}{row['floor']:>8.3f}{cells}  {ratio:.2f} x floor")


if __name__ == "__main__":
    main()
