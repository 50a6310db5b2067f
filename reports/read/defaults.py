"""Parameters that runs left at their defaults, as their settings tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from reports.read.companions import RunInfo

Parameter: TypeAlias = tuple[str, str]  # (method, "name=value")


def parameters(label: str) -> tuple[str, list[str]]:
    """The method of a label and its parameters as they are written: "name=value"."""
    method, _, rest = label.partition("(")
    return method.strip(), [
        part.strip() for part in rest.strip().removesuffix(")").split(",") if part
    ]


def defaults(runs: Iterable[RunInfo]) -> frozenset[Parameter]:
    """The parameters that a run's `methods` do not set, with the values they were resolved to.

    Runs with tuned parameters tell none: what they do not set was chosen by tuning.
    """
    return frozenset(found for run in runs for found in _of_run(run.settings))


def _of_run(settings: Mapping[str, Any]) -> Iterator[Parameter]:
    provenance = settings.get("provenance")
    if not isinstance(provenance, Mapping) or "tuned_sha256" in provenance:
        return
    asked: dict[str, list[list[str]]] = defaultdict(list)
    for text in _texts(settings.get("methods")):
        method, given = parameters(text)
        asked[method].append(given)
    for text in _texts(provenance.get("methods")):  # the same methods in the same order
        method, resolved = parameters(text)
        if asked[method]:
            given = {part.partition("=")[0].strip() for part in asked[method].pop(0)}
            yield from ((method, p) for p in resolved if p.partition("=")[0] not in given)


def _texts(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
