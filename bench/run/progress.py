"""When progress bars are shown."""

from __future__ import annotations


def hidden(count: int) -> bool | None:
    """tqdm's `disable` for a bar of `count` steps: True hides it, None shows it on a terminal."""
    return True if count == 0 else None
