"""Medusa's heads in training (an entry point of pyproject)."""

from __future__ import annotations

from typing import Final

from baselines.medusa.model import Medusa, MedusaConfig
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts.trainable import TrainableDraft, known_size

DEPTH: Final = 5  # heads of the shipped weights


def medusa_config(target: TargetInfo) -> MedusaConfig:
    """Residual heads that share the target's LM head."""
    return MedusaConfig(known_size(target.hidden_size), DEPTH)


MEDUSA: Final = TrainableDraft(Medusa, medusa_config, 0.0, "residual heads, the LM head shared")
