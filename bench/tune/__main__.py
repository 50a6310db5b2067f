"""python -m bench.tune: which parameters of a method are fastest on this device and engine.

A setting's speedup is its accepted length / seconds of a step, times the reference's seconds of a
step. The accepted length depends on the drafts and their tree; the seconds depend on the machine,
the engine and the tree's width and depth. Both are measured by decoding answers to the question set
`tuning`, which no report evaluates on.

1. Search, one method at a time: coordinate descent from the method's defaults over the values that
   it declares (`Settings.grid`). The values of one parameter race: each answers the same questions,
   interleaved with the reference, and after each question those too far behind the leader drop out.
   A setting whose step costs too much for any possible accepted length is gone after its first
   short answer. The first parameter, the draft's size, depends most on the others: at the end the
   neighbours of its best value race once more.
2. Final: the best of every method, all interleaved with one reference, on other questions, so that
   no setting is chosen for its luck in the search. The fastest of each method is kept.

Answers are greedy. Orders are fixed; only the times vary from run to run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import distributed, environment
from bench.cli import Parser, add_arguments, run_command
from bench.decoding.decoder import TargetInfo
from bench.decoding.engines import trial as engines
from bench.distributed import World
from bench.entry_points import load_entry_point
from bench.errors import UsageError
from bench.records import tuned
from bench.records.runs import REFERENCE, label
from bench.records.tuned import Tuned
from bench.run import methods, preflight, tuning
from bench.run.methods import Method
from bench.targets import registry as targets
from bench.targets import synthetic
from bench.tune import config as tune_config
from bench.tune.config import TuneConfig
from bench.tune.tuner import Tuner


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.tune") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = Parser(
        prog=prog,
        description="Measure which parameters are fastest here, for bench.run --tree tuned.",
        allow_abbrev=False,
    )
    add_arguments(parser, TuneConfig)

    def run(flags: dict[str, Any]) -> int:
        config = TuneConfig(**flags)
        with distributed.measuring(config.split) as world:
            if world is not None:
                found, path = tune(config, world)
                if world.main:
                    print("\n".join(table(found)))
                    print(f"wrote {path}")
        return 0

    return run_command(parser, run, argv, stopped="stopped; nothing was written")


def tune(config: TuneConfig, world: World) -> tuple[Tuned, Path]:
    """What was found by all processes, and the file that it was written to."""
    with world.main_first():  # what is invalid is refused once
        device, dtype = environment.settled(config.device, config.dtype)
        target = targets.resolve(config.model, config.chat_template)
        targets.check(target)
        if target.name in synthetic.SHAPES:
            raise UsageError(
                f"{target.name} has random weights, which accept nothing; tune on a model"
            )
        named = methods.resolve(_names(config.methods), config.checkpoint)
        chosen = [m for m in named if m.name != REFERENCE]
        preflight.check_files(chosen, [target], None)
        tuned_for = tuning.tuned_for(target, config.engine, dtype, device)
        folder = Path(config.out) if config.out else tuning.cache()
        tuned.read(folder / tuned_for.file)  # reports a damaged file before the work
        able = list(_available(chosen, preflight.describe(target), told=world.main))
        share = world.share(able, "method", "methods")
    device = world.own_device(device)
    with world.main_first():
        loaded = targets.load(target, device, getattr(torch, dtype))
    model, reason = engines.make(loaded.model, target.name, config.engine)
    if reason is not None:
        raise UsageError(f"--engine {config.engine} cannot run here: {reason}")
    seen = environment.collect(device, {})
    effort = tune_config.EFFORT[config.engine]
    tuner = Tuner(model, loaded, effort, seen, shown=world.main)
    parts = world.gather(tuner.run(share))  # each method with the reference of its own card
    found = Tuned(tuned_for, {name: part[name] for part in parts for name in part})
    return found, world.from_main(lambda: tuned.write(folder, found))


def _names(given: Sequence[str]) -> list[str]:
    """Methods by name; those that can be tuned where none is given."""
    known = methods.discover()
    for text in given:
        if methods.parse(text)[1]:
            raise UsageError(f"--methods {text}: bench.tune chooses the parameters; name it alone")
    if given:
        return list(given)
    decoders = {name: load_entry_point(point) for name, point in known.items()}
    return [n for n, kind in decoders.items() if kind.lossless and kind.settings_type.grid()]


def _available(chosen: Sequence[Method], target: TargetInfo, told: bool) -> Iterator[Method]:
    """Those that can be tuned; the others are named on stderr if `told`. UsageError where none
    can."""
    left = False
    for method in chosen:
        if method.decoder is None or not method.settings.grid():
            raise UsageError(f"{method.name} has no parameters to tune")
        reason = method.decoder.unavailable(target, method.settings)
        if reason is None:
            left = True
            yield method
        elif told:
            print(f"{method.name} is left out: {reason}", file=sys.stderr)
    if not left:
        raise UsageError(f"none of the methods can run on {target.name}; choose other --methods")


def table(found: Tuned) -> list[str]:
    """The chosen parameters and their figures, as lines."""
    lines = [str(found.tuned_for)]
    lines.append(f"{'method':<16}{'width':>7}{'accepted':>10}{'ms/step':>9}{'speedup':>9}  95 %")
    for name, method in found.methods.items():
        point = method.chosen
        span = "" if point.low is None else f"[{point.low:.2f}, {point.high:.2f}]"
        lines.append(
            f"{name:<16}{point.width:>7.1f}{point.accepted:>10.2f}{1000 * point.step_s:>9.2f}"
            f"{point.speedup:>8.2f}x  {span}"
        )
        lines.append(f"  {label(name, method.params)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
