"""Every figure of the report, one module each: the function and its definition in words."""

from typing import TypeAlias

Definitions: TypeAlias = tuple[tuple[str, str], ...]  # (term, its meaning), printed under tables
