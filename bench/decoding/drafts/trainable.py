"""The contract between training and a draft model, and the drafts that are installed.

A package registers a `TrainableDraft` under the entry point group `chimera_bench.drafts`; the entry
point's name is the draft's. `bench.training` finds it there, as `bench.run` finds decoders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, Self

from torch import Tensor, nn

from bench.decoding.decoder import TargetInfo
from bench.entry_points import load_entry_point
from bench.errors import UsageError, one_line

GROUP = "chimera_bench.drafts"


class DraftConfig(Protocol):
    """A draft's own settings, which its checkpoint carries."""

    @property
    def hidden_size(self) -> int:
        """d, the target's."""

    @property
    def depth(self) -> int:
        """Levels that can be drafted."""

    def to_dict(self) -> dict[str, object]:
        """The settings as JSON values."""


class Draft(nn.Module, ABC):
    """A draft model between the frozen embeddings and the frozen LM head of a target.

    Shapes: B sequences of T tokens, A anchors in each, hidden size d. An anchor t is the newest
    position whose hidden state h_t is known; level j drafts the token at t + 1 + j.
    """

    config: DraftConfig

    @classmethod
    @abstractmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """An untrained draft with the settings of `config.to_dict()`."""

    @property
    def taps(self) -> tuple[int, ...]:
        """The numbers of target layers after which the draft reads the residual stream."""
        return ()

    @property
    def own_head(self) -> nn.Parameter | None:
        """The draft's own LM head [V', d], for the V' most frequent tokens. It starts as the
        target's and is trained with the draft; None where the draft uses the target's."""
        return None

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Set the initial weights."""

    def standardise(self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor]) -> None:
        """Measure means and deviations before training, where the draft uses them.

        Args:
            embeddings, hidden: [n, d], of answer positions.
            taps: residual streams [n, d], in the order of `taps`.
        """

    @abstractmethod
    def forward(
        self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor], anchors: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Draft all levels from every anchor along the true tokens (teacher forcing).

        Args:
            embeddings: [B, T, d].
            hidden: [B, T, d], after the target's final norm.
            taps: residual streams [B, T, d], in the order of `taps`.
            anchors: int64 [B, A], t with 1 <= t < T - depth.

        Returns:
            (o, z), each [B, A, depth, d]. z goes through the LM head, the target's or `own_head`;
            o estimates the target's hidden states at t + 1 .. t + depth, None if the draft makes no
            estimate.
        """


@dataclass(frozen=True)
class TrainableDraft:
    """How a draft is built for a target and trained.

    Attributes:
        model: class of the draft model.
        configure: the settings for a target.
        distil: weight of the hidden-state loss; 0 leaves it out.
        note: one line for the card.
    """

    model: type[Draft]
    configure: Callable[[TargetInfo], DraftConfig]
    distil: float
    note: str

    def build(self, target: TargetInfo) -> Draft:
        """An untrained draft for `target`."""
        return self.model.from_dict(self.configure(target).to_dict())


def known_size(size: int | None) -> int:
    """A size of a `TargetInfo`. ValueError where it is not known."""
    if size is None:
        raise ValueError("the target's shape is not known")
    return size


def discover() -> dict[str, EntryPoint]:
    """Installed drafts by name. UsageError if two packages use the same name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        known = found.setdefault(point.name, point)
        if known.value != point.value:
            raise UsageError(f"draft {point.name!r} is both {known.value} and {point.value}")
    return dict(sorted(found.items()))


def load(name: str) -> TrainableDraft:
    """The installed draft `name`. UsageError if there is none or it cannot be imported."""
    known = discover()
    if name not in known:
        choice = f"choose from {', '.join(known)}" if known else "run `pip install -e .`"
        raise UsageError(f"unknown method {name!r}; {choice}")
    try:
        found = load_entry_point(known[name])
    except Exception as error:  # whatever another package's module raises
        raise UsageError(f"draft {name!r} cannot be imported: {one_line(error)}") from error
    if not isinstance(found, TrainableDraft):
        raise UsageError(f"draft {name!r}: {known[name].value} is not a TrainableDraft")
    return found
