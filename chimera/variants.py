"""What can be trained: a draft model with its losses, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, runtime_checkable

from torch import Tensor, nn

from baselines.medusa.model import Medusa, MedusaConfig
from bench.decoding.decoder import TargetInfo
from chimera.model import Chimera, ChimeraConfig

DEPTH: Final = 6  # levels drafted by the shipped Chimeras
MEDUSA_DEPTH: Final = 5


@runtime_checkable
class DraftConfig(Protocol):
    """A draft's own settings; `depth` levels can be drafted."""

    @property
    def depth(self) -> int: ...

    def to_dict(self) -> dict[str, object]: ...


class Draft(Protocol):
    """A trainable draft. `forward` gives (o or None, z), each [B, A, depth, d]: z goes through the
    target's LM head, o estimates its hidden states."""

    config: Any

    def initialise(self, seed: int) -> None: ...
    def standardise(self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor]) -> None: ...
    def parameters(self) -> Any: ...


@dataclass(frozen=True)
class Arm:
    """How a draft is built and trained.

    Attributes:
        make: for a target's shape.
        distil: weight of the hidden-state loss; 0 leaves it out.
        note: one line for the card.
    """

    make: Callable[[TargetInfo], nn.Module]
    distil: float
    note: str


def chimera_config(target: TargetInfo, **changes: Any) -> ChimeraConfig:
    """Chimera for a target, within the paper's architecture."""
    size = _size(target.hidden_size)
    heads = max(size // 64, 1)
    base: dict[str, Any] = {"hidden_size": size, "heads": heads, "depth": DEPTH}
    base["ffn"] = 64 * round(size * 8 / 3 / 64)
    return ChimeraConfig(**(base | changes))


def chimera_plus_config(target: TargetInfo) -> ChimeraConfig:
    """Chimera+ reads two inner layers besides, a third and two thirds up, and h_t in its query."""
    layers, size = _size(target.layers), _size(target.hidden_size)
    taps = (max(round(layers / 3), 1), round(2 * layers / 3))
    ffn = 64 * round(size * 40 / 9 / 64)
    return chimera_config(target, taps=taps, query_state=True, ffn=ffn)


def _size(value: int | None) -> int:
    if value is None:
        raise ValueError("the target's shape is not known")
    return value


def _chimera(**changes: Any) -> Callable[[TargetInfo], nn.Module]:
    return lambda target: Chimera(chimera_config(target, **changes))


DISTIL: Final = 5.0
ARMS: Final[Mapping[str, Arm]] = MappingProxyType(
    {
        "chimera": Arm(_chimera(), DISTIL, "the paper's architecture"),
        "chimera_plus": Arm(
            lambda target: Chimera(chimera_plus_config(target)),
            DISTIL,
            "inner layers in the context, h_t in the query",
        ),
        "medusa": Arm(
            lambda target: Medusa(MedusaConfig(_size(target.hidden_size), MEDUSA_DEPTH)),
            0.0,
            "residual heads, the LM head shared",
        ),
        "chimera_unigram": Arm(_chimera(trigram=False), DISTIL, "no trigram encoder"),
        "chimera_no_context": Arm(_chimera(context=False), DISTIL, "no full-context encoder"),
        "chimera_heads_o": Arm(_chimera(head_state=False), DISTIL, "heads read o only"),
        "chimera_no_distil": Arm(_chimera(), 0.0, "no distillation loss"),
    }
)
