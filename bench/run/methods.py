"""Decoding methods by name: found by entry point, with parameters as `name(key=value,...)`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args, get_type_hints

from bench import environment
from bench.cli import did_you_mean, without_paths
from bench.decoding.decoder import Decoder, Settings, TargetInfo
from bench.entry_points import load_entry_point
from bench.errors import UsageError
from bench.files import canonical_sha256
from bench.records.runs import REFERENCE, label
from bench.records.runs import STOCK as STOCK  # methods.STOCK: the one name without a decoder

GROUP = "chimera_bench.decoders"

_CALL = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Method:
    """A method and its settings.

    Attributes:
        name: of the entry point.
        decoder: the class; None for the stock row.
        settings: of the class's `settings_type`.
    """

    name: str
    decoder: type[Decoder] | None
    settings: Settings

    def unavailable(self, target: TargetInfo) -> str | None:
        """Why it cannot run on the target, or None."""
        return self.decoder.unavailable(target, self.settings) if self.decoder else None

    @property
    def lossless(self) -> bool:
        return self.decoder is None or self.decoder.lossless

    @cached_property
    def code_sha256(self) -> str:
        """Of the sources of this project and of the package that the decoder is in."""
        return canonical_sha256(environment.code([self.decoder.__module__] if self.decoder else []))

    @property
    def params(self) -> dict[str, Any]:
        """Every parameter, defaults included, in the declared order, without local paths."""
        parameters = self.settings.parameters()
        return {f.name: without_paths(getattr(self.settings, f.name)) for f in parameters}

    @cached_property
    def label(self) -> str:
        """The canonical form, the row's name in the report."""
        return label(self.name, self.params)


LARGEST = 2**20  # of a whole number: no vocabulary, tree or table of n-grams is larger

Chosen = Callable[[Method], Mapping[str, Any]]
"""A method as the user gave it -> values for the parameters that the user did not set."""


def discover() -> dict[str, EntryPoint]:
    """Installed decoders by name, of this and other packages. UsageError for a duplicate."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        known = found.setdefault(point.name, point)
        if known.value != point.value:
            raise UsageError(
                f"method {point.name!r} is both {known.value} and {point.value}; uninstall one"
            )
    if REFERENCE not in found:
        raise UsageError(f"no decoders are installed; run `pip install -e .` ({GROUP} is empty)")
    return dict(sorted(found.items()))


def resolve(
    texts: Sequence[str],
    checkpoints: Sequence[str] = (),
    tree: str | None = None,
    chosen: Chosen | None = None,
) -> list[Method]:
    """The methods of a run; the reference is added first if it is not named. UsageError for unknown
    and duplicate names."""
    known = discover()
    weights = _checkpoints(checkpoints, known)
    methods = [method(text, known, weights, tree, chosen) for text in texts]
    labels = [m.label for m in methods]
    if len(set(labels)) < len(labels):
        raise UsageError(f"--methods names {max(labels, key=labels.count)} twice")
    if REFERENCE not in labels:
        methods.insert(0, method(REFERENCE, known))
    for m in methods:
        if m.name in weights and not (m.decoder and m.decoder.takes_checkpoint):
            raise UsageError(f"--checkpoint: {m.name} takes no weights")
    unused = set(weights) - {m.name for m in methods}
    if unused:
        raise UsageError(f"--checkpoint names {min(unused)!r}, which is not among --methods")
    return methods


def method(
    text: str,
    known: Mapping[str, EntryPoint],
    weights: Mapping[str, str] | None = None,
    tree: str | None = None,
    chosen: Chosen | None = None,
) -> Method:
    """One method from `name` or `name(key=value,...)`; `chosen` gives the other parameters."""
    name, given = parse(text)
    if name == STOCK:
        if given:
            raise UsageError(f"{STOCK} takes no parameters")
        return Method(STOCK, None, Settings())
    if name not in known:
        raise UsageError(f"unknown method {name!r}{did_you_mean(name, [STOCK, *known])}")
    try:
        decoder: type[Decoder] = load_entry_point(known[name])
    except Exception as error:  # whatever another package's module raises
        raise UsageError(f"method {name!r} cannot be imported: {error}") from error
    kinds = get_type_hints(decoder.settings_type)
    parameters = {f.name: f for f in decoder.settings_type.parameters()}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in parameters:
            hint = did_you_mean(key, parameters) if parameters else "; it takes none"
            raise UsageError(f"{name} has no parameter {key!r}{hint}")
        values[key] = _value(value, kinds[key], f"{name}({key}={value})")
    missing = [k for k, f in parameters.items() if f.default is MISSING and k not in values]
    if missing:
        raise UsageError(f"{name} needs a value for {', '.join(missing)}")
    resources = {"checkpoint": (weights or {}).get(name), "tree": tree}
    try:
        found = Method(name, decoder, decoder.settings_type(**values, **resources))
        if chosen is None or values.keys() == parameters.keys():
            return found
        left = {key: value for key, value in chosen(found).items() if key not in values}
        return replace(found, settings=replace(found.settings, **left))
    except ValueError as error:
        raise UsageError(str(error)) from error


def parse(text: str) -> tuple[str, dict[str, str]]:
    """(name, raw parameters) of `name(key=value,...)`."""
    match = _CALL.fullmatch(text)
    if match is None:
        raise UsageError(f"cannot read the method {text!r}; write name or name(key=value,...)")
    given: dict[str, str] = {}
    for part in filter(None, map(str.strip, (match[2] or "").split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UsageError(f"cannot read {part!r} in {text!r}; write key=value")
        if key in given:
            raise UsageError(f"{text!r} sets {key!r} twice")
        given[key] = value
    return match[1], given


def _checkpoints(entries: Sequence[str], known: Mapping[str, EntryPoint]) -> dict[str, str]:
    weights: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (equals and value):
            raise UsageError(f"cannot read --checkpoint {entry!r}; write METHOD=PATH_OR_HUB_ID")
        if name not in known:
            raise UsageError(f"--checkpoint: unknown method {name!r}{did_you_mean(name, known)}")
        weights[name] = value
    return weights


def _value(text: str, kind: Any, where: str) -> Any:
    """`text` as an int, float, bool or str, or as a word that a Literal beside them allows."""
    words: tuple[str, ...] = ()
    if parts := get_args(kind):  # int | Literal["auto"]
        kind, words = parts[0], get_args(parts[1])
    if text in words:
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        if kind is int and abs(value) > LARGEST:
            raise UsageError(f"{where}: at most {LARGEST:,} is possible")
        return value
    except (ValueError, KeyError):
        needed = " or ".join((f"a value of type {kind.__name__}", *words))
        raise UsageError(f"{where}: {needed} is needed") from None
