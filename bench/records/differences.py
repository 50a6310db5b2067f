"""What differs between two sessions of one folder, in words: settings, and what figures need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from bench.errors import flat

SHOWN = 3  # differences whose values a message gives; of others the names alone
LONGEST = 60  # characters of a value
PREFIX = "provenance."  # what settings were resolved to
MISSING = "none"

# Of two environments: what makes their figures incomparable.
WATCHED = (
    ("packages", "torch"),
    ("packages", "transformers"),
    ("packages", "chimera-bench"),
    ("cpu", "model"),
    ("cpu", "torch_threads"),
    ("cuda", "name"),
    ("cuda", "driver"),
)


def of_settings(before: str, now: str) -> str | None:
    """How two YAML texts of settings differ: `dtype (float32, now bfloat16)`. None: not at all."""
    try:
        known = yaml.safe_load(before)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"its settings cannot be read ({flat(error)})"
    if not isinstance(known, Mapping):
        return "its settings cannot be read (no mapping)"
    then, here = dict(_leaves(known)), dict(_leaves(yaml.safe_load(now)))
    found: dict[str, str] = {}
    for path in dict.fromkeys([*here, *then]):
        a, b = then.get(path, MISSING), here.get(path, MISSING)
        if a != b:
            found.setdefault(path.removeprefix(PREFIX), f"{_said(a)}, now {_said(b)}")
    with_values = [f"{name} ({values})" for name, values in found.items()][:SHOWN]
    return ", ".join([*with_values, *[*found][SHOWN:]]) or None


def of_environments(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference that makes figures of two environments incomparable, or None."""
    gpu = before.get("cuda") and now.get("cuda")
    for group, name in WATCHED:
        if gpu and name == "torch_threads":  # torchrun sets them; nothing timed runs on them
            continue
        a, b = ((environment.get(group) or {}).get(name) for environment in (before, now))
        if a != b:
            return f"{group} {name} ({a}, now {b})"
    return None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _said(value: Any) -> str:
    if isinstance(value, list):
        text = " ".join(map(str, value)) or MISSING
    else:
        text = MISSING if value is None else str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:8]
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
