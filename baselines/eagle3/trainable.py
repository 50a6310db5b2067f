"""EAGLE-3's draft in training (an entry point of pyproject)."""

from __future__ import annotations

from typing import Final

from baselines.eagle3.model import Eagle3, Eagle3Config, tapped_layers
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts.trainable import TrainableDraft, known_size

VOCABULARY: Final = 16_384  # tokens that can be drafted; 32,000 in published drafts
HEAD: Final = 64  # size of an attention head


def eagle3_config(target: TargetInfo) -> Eagle3Config:
    """One layer of Llama's proportions, as wide as the target."""
    size, vocabulary = known_size(target.hidden_size), known_size(target.vocab_size)
    heads = max(size // HEAD, 1)
    return Eagle3Config(
        hidden_size=size,
        heads=heads,
        kv_heads=heads,
        head_dim=min(HEAD, size),
        ffn=64 * max(round(size * 8 / 3 / 64), 1),
        vocabulary=min(VOCABULARY, vocabulary),
        taps=tapped_layers(known_size(target.layers)),
        rope={"rope_type": "default", "rope_theta": 1e5},
    )


EAGLE3: Final = TrainableDraft(
    Eagle3, eagle3_config, 0.0, "a decoder layer unrolled over its own outputs, an LM head its own"
)
