"""A target on an engine: made, tried against plain forwards, or replaced by `eager`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.registry import CLASSES, EAGER
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology

TRIED = (1, 16, 64)  # widths of the forwards that a new engine is tried on
NEAR = 0.2  # relative error of logits that half precision and many layers may leave


def make(model: Any, name: str, engine: str) -> tuple[TargetModel, str | None]:
    """(target on `engine`, None), or (target on `eager`, why `engine` cannot run here)."""
    kind = load(engine)
    reason = kind.unavailable(model)
    if reason is None:
        target = kind(model, name)
        reason = None if engine == EAGER else trial(target)
        if reason is None:
            return target, None
    return EagerTarget(model, name), f"{engine} cannot run here: {reason}"


def load(engine: str) -> type[TargetModel]:
    """The engine's class."""
    module, _, name = CLASSES[engine].partition(":")
    kind: type[TargetModel] = getattr(import_module(module), name)
    return kind


@torch.no_grad()
def trial(target: TargetModel) -> str | None:
    """Why the engine's forwards fail on this device, in one line: the error they raised (such as a
    kernel that needs more shared memory than the chip has), or how far their logits are from those
    of plain forwards; None where they work."""
    plain, vocabulary = EagerTarget(target.model, target.name), target.vocab_size
    prompt = [token % vocabulary for token in range(40)]
    plain.reserve(len(prompt) + max(TRIED))
    for width in TRIED:
        parents = [-1, *(node // 2 for node in range(width - 1))]
        tokens = torch.arange(width, device=target.device) % vocabulary
        tree = TokenTree(tokens, Topology.of(parents, target.device))
        plain.prefill(prompt)
        expected = plain.forward(plain.pad(tree)).logits.float()
        try:
            target.prefill(prompt)
            found = target.forward(target.pad(tree)).first(width).logits.float()
        except Exception as error:  # whatever a compiler or the device raises
            said = str(error).strip().partition("\n")[0]
            return f"{type(error).__name__} at width {width}: {said}"
        off = float((found - expected).norm() / expected.norm())
        if not off <= NEAR:  # NaN is not
            return f"logits at width {width} are off by {off:.0%}"
    return None
