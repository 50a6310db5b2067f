"""Engines by name: how a target's forwards, drafts and acceptance are executed."""

from __future__ import annotations

from typing import Any

from bench.decoding.fused import CompiledTarget, unsupported
from bench.decoding.static import GraphTarget
from bench.decoding.target import TargetModel


def make(model: Any, name: str, engine: str) -> tuple[TargetModel, str | None]:
    """(target on `engine`, None), or (target on `eager`, why `engine` cannot run here)."""
    if engine == "eager":
        return TargetModel(model, name), None
    reason = None
    if model.device.type != "cuda":
        reason = f"CUDA graphs need a GPU, not {model.device.type}"
    elif engine == "compile":
        reason = unsupported(model)
    if reason is not None:
        return TargetModel(model, name), f"{engine} cannot run here: {reason}"
    return (CompiledTarget if engine == "compile" else GraphTarget)(model, name), None
