"""A target on an engine: made, tried against plain forwards, or replaced by `eager`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.graph import WIDTHS
from bench.decoding.engines.registry import CLASSES, EAGER
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology

# Tokens before the tree: few, so that a lost row shows, with a path that crosses a part of the
# keys; and many parts of them.
CONTEXTS = (60, 600)
DEEPEST = 16  # levels of a tree that the trial leaves room for
# Relative error of a node's logits. Correct kernels in bfloat16 are at 0.004.
NEAR = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.01}


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
    kernel that needs more shared memory than the chip has), how far a node's logits are from those
    of plain forwards, or, where the engine promises it, a path whose logits are not those of one
    token at a time, bit for bit. None where they work.

    Every captured width is tried behind a short context and a long one.
    """
    plain = EagerTarget(target.model, target.name)
    for context in CONTEXTS:
        context = min(context, target.max_positions - DEEPEST)
        prompt = [(7 * i * i + i) % target.vocab_size for i in range(max(context, 1))]
        plain.reserve(len(prompt) + WIDTHS[-1])
        plain.prefill(prompt)
        for width in WIDTHS:
            tree = _tree(target, width)
            expected = plain.forward(tree).logits.float()
            try:
                target.reserve(len(prompt) + WIDTHS[-1])
                target.prefill(prompt)
                found = target.forward(target.pad(tree)).first(width).logits.clone()
                broken = None if not target.exact else _varying(target, tree, found)
            except Exception as error:  # whatever a compiler or the device raises
                said = str(error).strip().partition("\n")[0]
                return f"{type(error).__name__} at width {width}: {said}"
            off = ((found.float() - expected).norm(dim=1) / expected.norm(dim=1)).max()
            if not float(off) <= NEAR[target.dtype]:  # NaN is not
                return (
                    f"a node's logits at width {width}, context {len(prompt)}, are off by "
                    f"{float(off):.1%}"
                )
            if broken is not None:
                return f"{broken} at width {width}, context {len(prompt)}"
    return None


def _tree(target: TargetModel, width: int) -> TokenTree:
    """Two children a node, in an order that is not the cache's."""
    parents = [-1, *((node - 1) // 2 for node in range(1, width))]
    tokens = (torch.arange(width, device=target.device) * 31 + 5) % target.vocab_size
    return TokenTree(tokens, Topology.of(parents, target.device))


def _varying(target: TargetModel, tree: TokenTree, found: Tensor) -> str | None:
    """Where the path to the last node has other logits one token at a time; None: nowhere."""
    path = tree.topology.ancestors[-1].nonzero().squeeze(1).tolist()
    root = Topology.of([-1], target.device)
    for depth, node in enumerate(path):
        step = target.forward(target.pad(TokenTree(tree.tokens[node : node + 1], root)))
        if not torch.equal(step.logits[0], found[node]):
            return f"the logits {depth} levels down are not those of one token at a time"
        target.commit_root()
    return None
