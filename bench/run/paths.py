"""Where runs and cost studies go by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.files import canonical_sha256

RESULTS = Path("results")


def folder_name(models: Sequence[str], facts: object) -> str:
    """The first model, how many more there are, and a hash of everything that defines the run."""
    first = models[0].replace(":", "-").replace("/", "-")
    more = f"-and-{len(models) - 1}-more" if len(models) > 1 else ""
    return f"{first}{more}-{canonical_sha256(facts)[:8]}"
