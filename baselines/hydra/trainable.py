"""Hydra's heads in training (an entry point of pyproject)."""

from __future__ import annotations

from typing import Final

from baselines.hydra.model import Hydra, HydraConfig
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts.trainable import TrainableDraft, known_size

DEPTH: Final = 5  # heads, as many as Medusa's


def hydra_config(target: TargetInfo) -> HydraConfig:
    """Sequential heads that share the target's LM head."""
    return HydraConfig(known_size(target.hidden_size), DEPTH)


HYDRA: Final = TrainableDraft(Hydra, hydra_config, 0.0, "sequential heads, the LM head shared")
