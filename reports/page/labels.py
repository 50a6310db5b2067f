"""Short labels of methods."""

from __future__ import annotations

from collections.abc import Iterable


def short(labels: Iterable[str]) -> dict[str, str]:
    """Each label without the parameters that all labels of its method share."""
    split = {name: _parameters(name) for name in labels}
    methods = [method for method, _ in split.values()]
    found = {}
    for name, (method, own) in split.items():
        others = [parts for other, parts in split.values() if other == method]
        kept = [part for part in own if not all(part in parts for parts in others)]
        kept = kept if methods.count(method) > 1 else []
        found[name] = f"{method}({','.join(kept)})" if kept else method
    return found


def _parameters(label: str) -> tuple[str, list[str]]:
    """The method's name and its parameters as they are written."""
    method, _, rest = label.partition("(")
    return method, rest.removesuffix(")").split(",") if rest else []
