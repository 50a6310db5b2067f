"""How much an answer repeats itself, from its token ids.

The share of repeated n-grams, seq-rep-n of Welleck et al. 2020 (Neural Text Generation with
Unlikelihood Training, arXiv 1908.04319), with n = 4.
"""

from __future__ import annotations

from collections.abc import Sequence

N = 4
REPEATING = 0.2  # an answer with a larger share of repeated n-grams repeats itself


def repetition(ids: Sequence[int]) -> float:
    """1 - distinct 4-grams / 4-grams; 0 for an answer too short to have any."""
    count = len(ids) - N + 1
    if count < 1:
        return 0.0
    return 1 - len(set(zip(*(ids[start:] for start in range(N)), strict=False))) / count
