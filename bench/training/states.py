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


@dataclass(frozen=True)
class DraftHead:
    """The target's LM head, reduced to a draft vocabulary.

    Attributes:
        weight: [V', d].
        index: int64 [V], each token's row of `weight`; -1 for tokens outside the vocabulary.
    """

    weight: Tensor
    index: Tensor

    @classmethod
    def of(cls, weight: Tensor, vocabulary: Tensor) -> DraftHead:
        """From the target's weight [V, d] and the vocabulary int64 [V']."""
        vocabulary = vocabulary.to(weight.device)
        index = torch.full((len(weight),), -1, device=weight.device)
        index[vocabulary] = torch.arange(len(vocabulary), device=weight.device)
        return cls(weight.detach()[vocabulary], index)

    def ranks(self, z: Tensor, true: Tensor) -> Tensor:
        """int64 [...]: ranks of the target's ids `true` [...] when z [..., d] is scored."""
        return ranks_of(z.to(self.weight.dtype) @ self.weight.T, self.index[true])
