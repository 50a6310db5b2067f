"""Hidden states of a model's last forward, read by hooks that go when their reader goes."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Taps:
    """Keeps hidden states of a transformers causal LM's last forward.

    The hooks hold the kept states and not this object, and are removed with it: a model outlives
    any number of its readers.

    Attributes:
        states: [B, T, d], the residual stream after k layers, for every k that was added.
    """

    def __init__(self, model: Any) -> None:
        self._base = model.base_model
        self._count: int = model.config.get_text_config().num_hidden_layers
        self._final: dict[str, Tensor] = {}
        self.states: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles)

    def add(self, *layers: int) -> None:
        """Keep the stream after k layers, 1 <= k <= the model's number of layers, for each k.
        ValueError where there is no such layer."""
        states = self.states
        for k in layers:
            if not 1 <= k <= self._count:
                raise ValueError(f"tap must lie in 1..{self._count}, not {k}")
            if k not in states:
                states[k] = torch.empty(0)
                hook = self._layers()[k - 1].register_forward_hook(
                    lambda _module, _args, output, k=k: states.__setitem__(k, _stream(output))
                )
                self._handles.append(hook)

    def add_final(self) -> None:
        """Keep what follows the final norm, too."""
        final = self._final
        hook = self._base.register_forward_hook(
            lambda _module, _args, output: final.__setitem__("hidden", output.last_hidden_state)
        )
        self._handles.append(hook)

    @property
    def hidden(self) -> Tensor:
        """[B, T, d], after the final norm; `add_final` first."""
        return self._final["hidden"]

    def _layers(self) -> nn.ModuleList:
        return layers(self._base, self._count)[1]


def layers(base: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """The name and the list of a base model's decoder layers, whatever the model calls it.
    ValueError where there is no list of `count` layers."""
    for name, module in base.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(f"{type(base).__name__} has no list of {count} layers")


def _stream(output: Any) -> Tensor:
    """A layer's hidden states; some models' layers return more."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
