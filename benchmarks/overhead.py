"""What the harness costs, as ratios of interleaved repeats in one process.

python benchmarks/overhead.py [--repeats 15] [--device cuda --engine compile --clock-only]

1. contract: the reference through contract and runner / a bare loop of the same forward, tiny
   target. Bar: 1.15.
2. stock: stock generate / the reference on SmolLM2, decoding alone. Bar: 1 or more.
3. rows: a width-64 step with 2,048 cache rows allocated / with 512. Bar: about 1.
4. clock: the decode loop with the phase clock's marks / without, on any device and engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from baselines.autoregressive import Autoregressive
from bench.decoding.decoder import Settings
from bench.decoding.engines import trial as engines
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.run.runner import run_stock, run_turn
from bench.targets.registry import load, resolve

PROMPT = list(range(5, 37))


def ratio(above: Callable[[], float], below: Callable[[], float], repeats: int) -> str:
    """Median and quartiles of paired ratios; both run once unmeasured, the order alternates."""
    above(), below()
    ratios = []
    for repeat in range(repeats):
        first, second = (above, below) if repeat % 2 else (below, above)
        a, b = first(), second()
        ratios.append(a / b if repeat % 2 else b / a)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}], {repeats} pairs"


def target_of(name: str, dtype: torch.dtype) -> TargetModel:
    return EagerTarget(load(resolve(name), "cpu", dtype).model)


def contract(repeats: int, tokens: int = 256) -> str:
    target = target_of("synthetic:tiny", torch.float32)
    decoder = Autoregressive(target, Settings())
    root = Topology.of([-1])

    def bare() -> float:
        target.reserve(len(PROMPT) + tokens + 1)
        with torch.inference_mode():
            token = target.prefill(PROMPT).logits.argmax(-1)
            started = time.perf_counter()
            for _ in range(tokens - 1):
                tree = TokenTree(token, root)
                token = target.forward(tree).logits.argmax(-1)
                target.commit_root(target.keep_root(tree, token)).wait()
            return time.perf_counter() - started

    def through() -> float:
        return run_turn(decoder, PROMPT, Sampling(), tokens, ()).decode_s

    return ratio(through, bare, repeats)


def stock(repeats: int, dtype: torch.dtype, tokens: int = 48) -> str:
    target = target_of("smollm2-135m", dtype)
    decoder = Autoregressive(target, Settings())

    def ours() -> float:
        return run_turn(decoder, PROMPT, Sampling(), tokens, ()).decode_s

    def theirs() -> float:
        return run_stock(target.model, PROMPT, Sampling(), 0, tokens, ()).decode_s

    return ratio(theirs, ours, repeats)


def clock(repeats: int, device: str, engine: str, tokens: int = 64) -> str:
    loaded = load(resolve("smollm2-135m"), device, torch.bfloat16)
    target, reason = engines.make(loaded.model, "smollm2-135m", engine)
    if reason is not None:
        return reason
    decoder = Autoregressive(target, Settings())

    def turn(quiet: bool) -> Callable[[], float]:
        def run() -> float:
            return run_turn(decoder, PROMPT, Sampling(), tokens, (), not quiet).decode_s

        return run

    turn(quiet=False)()  # compiles and captures
    return ratio(turn(quiet=False), turn(quiet=True), repeats)


def rows(repeats: int, dtype: torch.dtype) -> str:
    targets = [target_of("smollm2-135m", dtype) for _ in range(2)]
    tree = TokenTree(torch.arange(64), Topology.of([-1, *[0] * 63]))

    def step(target: TargetModel, rows: int) -> Callable[[], float]:
        def run() -> float:
            target.reserve(rows)
            with torch.inference_mode():
                target.prefill(PROMPT * 8)
                started = time.perf_counter()
                for _ in range(3):
                    target.forward(tree)
                return time.perf_counter() - started

        return run

    return ratio(step(targets[0], 2048), step(targets[1], 512), repeats)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="of the phase clock's cost")
    parser.add_argument("--engine", default="eager", help="of the phase clock's cost")
    parser.add_argument("--clock-only", action="store_true", help="nothing but that")
    given = parser.parse_args(argv)
    repeats = given.repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    cost = clock(repeats, given.device, given.engine)
    print(f"loop with the phase clock / without, SmolLM2, {given.device}, {given.engine}: {cost}")
    if given.clock_only:
        return
    print(f"contract / bare loop, tiny, float32: {contract(repeats)}")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"stock generate / reference, SmolLM2, {dtype}: {stock(repeats, dtype)}")
        print(f"2,048 rows / 512 rows, width 64, {dtype}: {rows(repeats, dtype)}")


if __name__ == "__main__":
    main()
