"""Tuned parameters for the methods of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.decoding.decoder import TargetInfo
from bench.environment import device_kind
from bench.errors import UsageError
from bench.files import cache_root
from bench.records import tuned
from bench.records.tuned import Tuned, TunedFor, TunedMethod
from bench.run.methods import Method
from bench.targets import registry as targets
from bench.targets.registry import Target

SHIPPED = Path(__file__).with_name("tuned_files")


def cache() -> Path:
    """Where `bench.tune` keeps its results on this machine."""
    return cache_root() / "tuned"


def tuned_for(target: Target, engine: str, dtype: str, device: str) -> TunedFor:
    """What parameters are tuned for. UsageError for a missing device or an unknown model."""
    return TunedFor(device_kind(device), engine, target.name, targets.revision(target), dtype)


class TunedParameters:
    """Looks up the tuned parameters of each method: in the user's cache, else in the shipped files.

    Attributes:
        taken: the entries that the run uses.
    """

    def __init__(self, tuned_for: TunedFor, model: str, device: str) -> None:
        """`model` and `device` as the user gave them, for messages."""
        self.tuned_for = tuned_for
        self._called = f"--models {model}", f"--dtype {tuned_for.dtype} --device {device}"
        self.taken: dict[str, TunedMethod] = {}
        self._files: dict[str, Path] = {}
        self._missing: list[Method] = []

    def __call__(self, method: Method) -> Mapping[str, Any]:
        """Every parameter: as tuned, or as given where it came after the file.

        Empty for a method that cannot be tuned or cannot run here.
        """
        decoder, settings = method.decoder, method.settings
        info = TargetInfo(self.tuned_for.model)
        if decoder is None or not settings.grid() or decoder.unavailable(info, settings):
            return {}
        try:
            weights = decoder.weights_sha256(info, settings)
        except ValueError as error:
            raise UsageError(f"{method.name}: {error}") from error
        folders = (cache(), SHIPPED)
        found = tuned.find(self.tuned_for, method.name, method.params, weights, folders)
        if found is None:
            self._missing.append(method)
            return {}
        self.taken[method.name], self._files[method.name] = found
        return {**method.params, **found[0].params}

    def check(self) -> None:
        """UsageError, with the command to run, where no parameters were found for a method."""
        if not self._missing:
            return
        names = " ".join(dict.fromkeys(method.name for method in self._missing))
        weights = dict.fromkeys(
            f"{m.name}={m.settings.checkpoint}" for m in self._missing if m.settings.checkpoint
        )
        model, machine = self._called
        command = f"python -m bench.tune {model} --methods {names} --engine {self.tuned_for.engine}"
        command += f" {machine}" + (f" --checkpoint {' '.join(weights)}" if weights else "")
        others = tuned.dtypes(self.tuned_for, (cache(), SHIPPED))
        there = f" (there are some for {', '.join(others)}: pass --dtype)" if others else ""
        raise UsageError(
            f"no tuned parameters of {names} for {self.tuned_for}{there}; run {command}"
        )

    @property
    def text(self) -> str | None:
        """The entries used, as the text of a file; None where none were."""
        return Tuned(self.tuned_for, self.taken).text() if self.taken else None

    def describe(self) -> list[str]:
        """A line for each method with tuned parameters: which file they are from."""
        source = {SHIPPED: "shipped"}
        return [
            f"tuned       {name}: {source.get(path.parent, 'cached')} {path.name}"
            for name, path in self._files.items()
        ]
