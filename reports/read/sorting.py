"""Sort keys: natural order, and the order in which settings name things."""

from __future__ import annotations

import re
from typing import Any


def positions(names: Any) -> dict[Any, int]:
    """The position of each of a setting's values; none where the setting is not a list."""
    values = names if isinstance(names, list) else []
    return {value: at for at, value in enumerate(values) if isinstance(value, str | float | int)}


def natural(value: Any) -> tuple[Any, ...]:
    """A key by which null, numbers and names sort, and names by the numbers in them."""
    if value is None:
        return (0,)
    if not isinstance(value, str):
        return (1, value)
    parts = re.split(r"([0-9]{1,18})", value)
    return (2, [(int(part), "") if at % 2 else (0, part) for at, part in enumerate(parts)], value)
