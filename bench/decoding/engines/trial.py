"""A target on an engine: made, tried against plain forwards, or replaced by a simpler one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.decoding.engines import forms
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.graph import WIDTHS
from bench.decoding.engines.registry import CLASSES, EAGER, GRAPH, ON_CPU
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology

# Tokens before the tree: few, so that a lost row shows, with a path that crosses a part of the
# keys; and many parts of them.
CONTEXTS = (60, 600)
DEEPEST = 16  # levels of a tree that the trial leaves room for
NOISE_WIDTH = 64
WORST = 5  # times as much as all nodes together, one node may be off
# Relative error of a tree's logits; correct kernels in bfloat16 are at 0.004. Where plain forwards
# differ from themselves by more, a tree of NOISE_WIDTH nodes against one token at a time, as those
# of random weights do, twice that.
NEAR = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.01}


def make(model: Any, name: str, engine: str) -> tuple[TargetModel, str | None]:
    """(target on `engine`, None), or (target on `graph` or else on `eager`, why those before it
    cannot run here)."""
    reasons: list[str] = []
    for tried in dict.fromkeys((engine, GRAPH, EAGER)):
        if tried == EAGER:
            break
        kind = load(tried, model.device.type)
        made = kind.unavailable(model) or _tried(kind, model, name)
        if not isinstance(made, str):
            return made, "; ".join(reasons) or None
        reasons.append(f"{tried} cannot run here: {made}")
    return EagerTarget(model, name), "; ".join(reasons) or None


def beside(target: TargetModel, model: Any, name: str) -> TargetModel:
    """Another model on the engine of `target`, tried as that was. ValueError, one line, where it
    cannot run there."""
    made = forms.unsupported(model.config, target.engine) or _tried(type(target), model, name)
    if isinstance(made, str):
        raise ValueError(
            f"{name} cannot run on engine {target.engine}: {made}; choose another --engine or draft"
        )
    return made


def _tried(kind: type[TargetModel], model: Any, name: str) -> TargetModel | str:
    """The target after its trial, or why it failed it."""
    target = kind(model, name)
    reason = None if kind.engine == EAGER else trial(target, *_extent(target))
    if reason is None:
        target.choose_root_width()
        return target
    return reason


def _extent(target: TargetModel) -> tuple[Sequence[int], Sequence[int]]:
    """(widths, contexts) to try: all that are captured on a GPU. Elsewhere every width runs the
    same code, and a long trial would cost more than the run."""
    if target.device.type == "cuda":
        return WIDTHS, CONTEXTS
    return WIDTHS[:2], CONTEXTS[:1]


def load(engine: str, device: str) -> type[TargetModel]:
    """The engine's class on a type of device."""
    found = CLASSES if device != "cpu" else {**CLASSES, **ON_CPU}
    module, _, name = found[engine].partition(":")
    kind: type[TargetModel] = getattr(import_module(module), name)
    return kind


@torch.no_grad()
def trial(
    target: TargetModel, widths: Sequence[int] = WIDTHS, contexts: Sequence[int] = CONTEXTS
) -> str | None:
    """Why the engine's forwards fail on this device, in one line: the error they raised (such as a
    kernel that needs more shared memory than the chip has), how far a node's logits are from those
    of plain forwards, or, where the engine promises it, a path whose logits are not those of one
    token at a time, bit for bit. None where they work.

    Every width is tried behind every context; products of kernels are compared with float64 at
    every width.
    """
    plain = EagerTarget(target.model, target.name)
    for width in widths:
        why = _or_error(partial(target.faulty_product, width))
        if why is not None:
            return f"{width} rows: {why}"
    for tokens in contexts:
        tokens = max(min(tokens, target.max_positions - DEEPEST), 1)
        prompt = [(7 * i * i + i) % target.vocab_size for i in range(tokens)]
        plain.reserve(len(prompt) + WIDTHS[-1])
        plain.prefill(prompt)
        expected = {width: plain.forward(_tree(plain, width)).logits for width in widths}
        widest = min(NOISE_WIDTH, max(widths))
        path = _one_at_a_time(plain, _tree(plain, widest))
        noise = max(_off(logits, expected[widest][node]) for node, logits in path)
        near = max(NEAR[target.dtype], 2 * noise)
        for width in widths:
            why = _or_error(partial(_try, target, prompt, expected[width], near))
            if why is not None:
                return f"width {width}, context {len(prompt)}: {why}"
    return None


def _or_error(check: Callable[[], str | None]) -> str | None:
    """What the check says, or the first line of what a compiler or the device raised in it."""
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _try(target: TargetModel, prompt: Sequence[int], expected: Tensor, near: float) -> str | None:
    """Why a tree's forward behind `prompt` fails; expected: [w, V], plain logits of its nodes."""
    tree = _tree(target, expected.shape[0])
    target.reserve(len(prompt) + WIDTHS[-1])
    target.prefill(prompt)
    found = target.forward(target.pad(tree)).first(tree.width).logits.clone()
    for what, off, most in (
        ("logits are", _off(found, expected), near),
        ("a node's logits are", max(map(_off, found, expected)), WORST * near),
    ):
        if not off <= most:  # NaN is not
            return f"{what} off by {off:.1%}, {most:.1%} may be rounding"
    if target.exact:
        for depth, (node, logits) in enumerate(_one_at_a_time(target, tree)):
            if not torch.equal(logits, found[node]):
                return f"the logits {depth} levels down are not those of one token at a time"
    return None


def _tree(target: TargetModel, width: int) -> TokenTree:
    """Two children a node, in an order that is not the cache's."""
    parents = [-1, *((node - 1) // 2 for node in range(1, width))]
    tokens = (torch.arange(width, device=target.device) * 31 + 5) % target.vocab_size
    return TokenTree(tokens, Topology.of(parents, target.device))


def _one_at_a_time(target: TargetModel, tree: TokenTree) -> Iterator[tuple[int, Tensor]]:
    """(node, its logits [V]) along the path to the last node, each token committed before the
    next."""
    root = Topology.of([-1], target.device)
    for node in tree.topology.ancestors[-1].nonzero().squeeze(1).tolist():
        token = tree.tokens[node : node + 1].clone()
        padded = target.pad(TokenTree(token.clone(), root))
        yield node, target.forward(padded).logits[0]
        target.commit_root(target.keep_root(padded, token)).wait()


def _off(found: Tensor, expected: Tensor) -> float:
    """Relative error of logits, [V] or [w, V]."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())
