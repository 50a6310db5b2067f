"""Short labels of methods."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from reports.read.defaults import Parameter, parameters


def short(labels: Iterable[str], defaults: Collection[Parameter]) -> dict[str, str]:
    """Each label without the parameters that have their default; labels that would then be equal
    keep those in which they differ."""
    split = {label: parameters(label) for label in dict.fromkeys(labels)}
    kept = {
        label: [part for part in parts if (method, part) not in defaults]
        for label, (method, parts) in split.items()
    }
    alike: dict[str, list[str]] = defaultdict(list)
    for label, parts in kept.items():
        alike[_joined(split[label][0], parts)].append(label)
    for group in alike.values():
        common = set.intersection(*(set(split[label][1]) for label in group))
        for label in group if len(group) > 1 else ():
            kept[label] = [p for p in split[label][1] if p in kept[label] or p not in common]
    return {label: _joined(split[label][0], parts) for label, parts in kept.items()}


def _joined(method: str, parts: Iterable[str]) -> str:
    text = ",".join(parts)
    return f"{method}({text})" if text else method
