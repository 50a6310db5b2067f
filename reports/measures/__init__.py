"""Every figure of the report, defined once: its definition in words beside the function."""

from typing import TypeAlias

Definitions: TypeAlias = tuple[tuple[str, str], ...]  # (term, its meaning), printed under tables
