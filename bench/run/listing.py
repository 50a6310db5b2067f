"""What can be run here: models, methods and question sets, each with what it lacks."""

from __future__ import annotations

from pathlib import Path

from bench import environment
from bench.decoding.engines import forms
from bench.decoding.engines.registry import ENGINES, needs_gpu
from bench.errors import UsageError
from bench.questions import registry
from bench.questions import sets as question_sets
from bench.records import tuned
from bench.run import methods
from bench.run.config import RunConfig
from bench.run.preflight import describe
from bench.targets import registry as targets


def listing(config: RunConfig) -> str:
    """A line for each; methods as they are on the first model of `config`."""
    lines = ["models"]
    for target in targets.TARGETS.values():
        detail = ", ".join(filter(None, [target.size, target.licence]))
        lines.append(_line(target.name, detail, targets.status(target)))
    lines += ["", *_engines(config), "", *_methods(config), "", "question sets"]
    data_dir = Path(config.data_dir) if config.data_dir else None
    for name, entry in registry.REGISTRY.items():
        detail = f"{entry.questions} questions, {entry.licence}"
        lines.append(_line(name, detail, question_sets.status(name, data_dir)))
    return "\n".join(lines)


def _engines(config: RunConfig) -> list[str]:
    """By the device and the model's form; a trial on the device decides when they are made."""
    target = targets.resolve(config.models[0])
    shape = targets.config(target)
    device, _ = environment.settled(config.device, config.dtype)
    reasons = {
        engine: needs_gpu(engine, device)
        or (forms.unsupported(shape, engine) if shape is not None else None)
        for engine in ENGINES
    }
    return [f"engines, on {target.name}", *(_line(e, "", why) for e, why in reasons.items())]


def _methods(config: RunConfig) -> list[str]:
    target = targets.resolve(config.models[0])
    info = describe(target)
    lines = [f"methods, on {target.name}"]
    known = methods.discover()
    tree = None if config.tree == tuned.TREE else config.tree
    for name in [methods.STOCK, *known]:
        try:
            method = methods.method(name, known, {}, tree)
        except UsageError as error:
            lines.append(_line(name, "", str(error)))
            continue
        reason = method.unavailable(info)
        kind = "lossless" if method.lossless else "lossy"
        lines.append(_line(method.label, kind, reason))
    return lines


def _line(name: str, detail: str, reason: str | None) -> str:
    return f"  {name:<36} {detail:<38} {'ready' if reason is None else reason}"
