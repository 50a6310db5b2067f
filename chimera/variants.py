"""Chimera's trainable variants: the shipped ones and the ablations (entry points of pyproject)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts.trainable import TrainableDraft, known_size
from chimera.model import Chimera, ChimeraConfig

DEPTH: Final = 6  # levels drafted by the shipped weights
WIDTH: Final = 512  # of the narrow drafts
DISTIL: Final = 5.0  # weight of the distillation loss


def chimera_config(target: TargetInfo, **changes: Any) -> ChimeraConfig:
    """Chimera for a target, within the paper's architecture."""
    hidden = known_size(target.hidden_size)
    size = changes.get("width") or hidden
    base: dict[str, Any] = {"hidden_size": hidden, "heads": max(size // 64, 1), "depth": DEPTH}
    base["ffn"] = 64 * round(size * 8 / 3 / 64)
    return ChimeraConfig(**(base | changes))


def chimera_plus_config(target: TargetInfo, width: int = 0) -> ChimeraConfig:
    """Chimera+ also reads two inner layers, a third and two thirds up, and h_t in its query."""
    layers, size = known_size(target.layers), width or known_size(target.hidden_size)
    taps = (max(round(layers / 3), 1), round(2 * layers / 3))
    ffn = 64 * round(size * 40 / 9 / 64)
    return chimera_config(target, taps=taps, query_state=True, ffn=ffn, width=width)


def chimera_block_config(target: TargetInfo) -> ChimeraConfig:
    """Chimera+ whose encoder runs once for all depths."""
    plus = chimera_plus_config(target)
    return replace(plus, one_pass=True, sequential=2 * plus.hidden_size)


def _changed(**changes: Any) -> Callable[[TargetInfo], ChimeraConfig]:
    return lambda target: chimera_config(target, **changes)


CHIMERA: Final = TrainableDraft(Chimera, chimera_config, DISTIL, "the paper's architecture")
CHIMERA_PLUS: Final = TrainableDraft(
    Chimera, chimera_plus_config, DISTIL, "inner layers in the context, h_t in the query"
)
CHIMERA_BLOCK: Final = TrainableDraft(
    Chimera, chimera_block_config, DISTIL, "as chimera_plus, one pass for all depths"
)
NARROW: Final = TrainableDraft(
    Chimera, _changed(width=WIDTH), DISTIL, f"the paper's architecture, {WIDTH} wide"
)
PLUS_NARROW: Final = TrainableDraft(
    Chimera,
    lambda target: chimera_plus_config(target, WIDTH),
    DISTIL,
    f"inner layers in the context, h_t in the query, {WIDTH} wide",
)
UNIGRAM: Final = TrainableDraft(Chimera, _changed(trigram=False), DISTIL, "no trigram encoder")
NO_CONTEXT: Final = TrainableDraft(
    Chimera, _changed(context=False), DISTIL, "no full-context encoder"
)
HEADS_O: Final = TrainableDraft(Chimera, _changed(head_state=False), DISTIL, "heads read o only")
NO_DISTIL: Final = TrainableDraft(Chimera, chimera_config, 0.0, "no distillation loss")
