"""What a frozen target gives to a draft in training: states, embeddings, LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.decoding.drafts.ranks import ranks_of
from bench.decoding.taps import Taps


class TargetStates:
    """The frozen target's states of whole sequences."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._taps = Taps(model)

    def tap(self, *layers: int) -> None:
        """Also return the residual stream after k layers, for each k."""
        self._taps.add(*layers)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """(h [B, T, d] after the final norm, residual streams [B, T, d] by tap) of ids [B, T]."""
        output = self._model.base_model(input_ids=ids, use_cache=False)
        return output.last_hidden_state, dict(self._taps.states)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """[B, T, d]."""
        embedded: Tensor = self._model.get_input_embeddings()(ids)
        return embedded


class KeptStates:
    """The target's states of training sequences, computed when first asked for; as many as fit into
    a number of bytes are kept for later epochs."""

    def __init__(self, states: TargetStates, most_bytes: float) -> None:
        self._states = states
        self._left = most_bytes
        self._taps: tuple[int, ...] = ()
        # By group: h and residual streams of its first sequences, [n, 1 + taps, T, d], and which of
        # all its sequences are in there, bool on the host.
        self._kept: dict[int, Tensor] = {}
        self._known: dict[int, Tensor] = {}

    def __call__(
        self, group: int, count: int, rows: Tensor, ids: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As `TargetStates`, of the sequences `rows`, int64 [B] on the host, of a group of `count`
        sequences; ids [B, T]."""
        known = self._known.get(group, torch.zeros(count, dtype=torch.bool))[rows]
        if not known.any():
            found = self._states(ids)
            self._keep(group, count, rows, found)
            return found
        kept, device = self._kept[group], ids.device
        stacked = kept.new_empty(len(rows), *kept.shape[1:])
        here = known.nonzero().squeeze(1)
        stacked[here.to(device)] = kept[rows[here].to(device)]
        if len(here) < len(rows):
            rest = (~known).nonzero().squeeze(1)
            found = self._states(ids[rest.to(device)])
            self._keep(group, count, rows[rest], found)
            stacked[rest.to(device)] = _stacked(found)
        parts = stacked.unbind(dim=1)
        return parts[0], dict(zip(self._taps, parts[1:], strict=True))

    def _keep(
        self, group: int, count: int, rows: Tensor, found: tuple[Tensor, dict[int, Tensor]]
    ) -> None:
        """Store what fits of the states of `rows`."""
        if self._left <= 0 and group not in self._kept:
            return
        stacked = _stacked(found)  # [B, 1 + taps, T, d]
        if group not in self._kept:
            self._taps = tuple(found[1])
            each = stacked[0].nbytes
            fit = min(count, int(self._left // each))
            self._left -= fit * each
            self._kept[group] = stacked.new_empty(fit, *stacked.shape[1:])
            self._known[group] = torch.zeros(count, dtype=torch.bool)
        kept = self._kept[group]
        fits = (rows < len(kept)).nonzero().squeeze(1)
        kept[rows[fits].to(kept.device)] = stacked[fits.to(kept.device)]
        self._known[group][rows[fits]] = True


def _stacked(states: tuple[Tensor, dict[int, Tensor]]) -> Tensor:
    """h and residual streams [B, T, d] as [B, 1 + taps, T, d]."""
    return torch.stack([states[0], *states[1].values()], dim=1)


@dataclass(frozen=True)
class DraftHead:
    """The target's LM head, reduced to a draft vocabulary, and the draft's own where it has one.

    Attributes:
        weight: [V', d], the target's.
        index: int64 [V], each token's row of `weight`; -1 for tokens outside the vocabulary.
        own: [V', d], the draft's.
    """

    weight: Tensor
    index: Tensor
    own: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, vocabulary: Tensor, own: Tensor | None = None) -> DraftHead:
        """From the target's weight [V, d] and the vocabulary int64 [V'], of which an own head has
        the first tokens."""
        vocabulary = vocabulary[: None if own is None else len(own)].to(weight.device)
        index = torch.full((len(weight),), -1, device=weight.device)
        index[vocabulary] = torch.arange(len(vocabulary), device=weight.device)
        return cls(weight.detach()[vocabulary], index, own)

    def ranks(self, z: Tensor, true: Tensor) -> Tensor:
        """int64 [...]: ranks of the target's ids `true` [...] when z [..., d] is scored."""
        scored = self.weight if self.own is None else self.own
        return ranks_of(z.to(scored.dtype) @ scored.T, self.index[true])
