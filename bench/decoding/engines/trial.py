"""Engines by name: how a target's forwards, drafts and acceptance are executed."""

from __future__ import annotations

from typing import Any

import torch

from bench.decoding.engines.compile import CompiledTarget, unsupported
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology

TRIED = (1, 16, 64)  # widths of the forwards that a new engine is tried on
NEAR = 0.2  # relative error of logits that half precision and many layers may leave


def make(model: Any, name: str, engine: str) -> tuple[TargetModel, str | None]:
    """(target on `engine`, None), or (target on `eager`, why `engine` cannot run here)."""
    if engine == "eager":
        return TargetModel(model, name), None
    reason = None
    if model.device.type != "cuda":
        reason = f"CUDA graphs need a GPU, not {model.device.type}"
    elif engine == "compile":
        reason = unsupported(model)
    if reason is None:
        target = (CompiledTarget if engine == "compile" else GraphTarget)(model, name)
        reason = trial(target)
        if reason is None:
            return target, None
    return TargetModel(model, name), f"{engine} cannot run here: {reason}"


@torch.no_grad()
def trial(target: TargetModel) -> str | None:
    """Why the engine's forwards fail on this device, in one line: what they raised, a kernel that
    asks for more than the chip has for one, or that their logits are not those of plain forwards;
    None where they work."""
    plain, vocabulary = TargetModel(target.model, target.name), target.vocab_size
    prompt = [token % vocabulary for token in range(40)]
    plain.reserve(len(prompt) + max(TRIED))
    for width in TRIED:
        parents = [-1, *(node // 2 for node in range(width - 1))]
        tokens = torch.arange(width, device=target.device) % vocabulary
        tree = TokenTree(tokens, Topology.of(parents, target.device))
        plain.prefill(prompt)
        expected = plain.forward(plain.place(tree)).logits.float()
        try:
            target.prefill(prompt)
            found = target.forward(target.place(tree)).first(width).logits.float()
        except Exception as error:  # whatever a compiler or the device raises
            said = str(error).strip().partition("\n")[0]
            return f"{type(error).__name__} at width {width}: {said}"
        off = float((found - expected).norm() / expected.norm())
        if not off <= NEAR:  # NaN is not
            return f"logits at width {width} are off by {off:.0%}"
    return None
