"""DFlash in training (entry points of pyproject)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from baselines.dflash.model import DFlash, DFlashConfig
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts.trainable import TrainableDraft, known_size

DEPTH: Final = 7  # drafted positions: blocks of eight with the newest token
LAYERS: Final = 3
TAPS: Final = 5  # inner layers of the target, as in the paper
MARKOV: Final = 256  # rank of DSpark's table


def dflash_config(target: TargetInfo) -> DFlashConfig:
    """A draft of the target's hidden size; q_j that do not depend on each other."""
    size, layers = known_size(target.hidden_size), known_size(target.layers)
    return DFlashConfig(
        hidden_size=size,
        heads=max(size // 64, 1),
        ffn=64 * max(round(size * 8 / 3 / 64), 1),
        layers=LAYERS,
        depth=DEPTH,
        taps=spread(layers),
    )


def markov_config(target: TargetInfo) -> DFlashConfig:
    """The same with the table on the token before."""
    return replace(dflash_config(target), markov=MARKOV)


def spread(layers: int) -> tuple[int, ...]:
    """Up to TAPS of a target's layers, spread evenly from the second to the last but two, as the
    published drafts have them."""
    first, last = min(2, layers), max(layers - 2, 1)
    steps = [first + (last - first) * i / (TAPS - 1) for i in range(TAPS)]
    return tuple(sorted({round(step) for step in steps}))


DFLASH: Final = TrainableDraft(DFlash, dflash_config, 0.0, "blocks of masks in one pass")
DFLASH_MARKOV: Final = TrainableDraft(
    DFlash, markov_config, 0.0, "as dflash, with a table on the token before"
)
