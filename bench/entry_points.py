"""What other packages register, loaded from wherever the command runs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any


def load_entry_point(point: EntryPoint) -> Any:
    """The object of an entry point; whatever its module raises.

    `python -m` puts the working directory first on the path. There a mere folder of the package's
    name, such as the one it was installed from, hides a package that an editable install finds
    later than the path: it is imported here without that folder.
    """
    package = point.module.partition(".")[0]
    if package not in sys.modules and _is_folder(package):
        with _without_working_directory():
            if not _is_folder(package):
                importlib.import_module(package)
    return point.load()


def _is_folder(package: str) -> bool:
    """Whether the name leads to nothing but folders without code of their own, or nowhere."""
    spec = importlib.util.find_spec(package)
    return spec is None or spec.origin is None


@contextmanager
def _without_working_directory() -> Iterator[None]:
    before = list(sys.path)
    here = Path.cwd()
    sys.path[:] = [entry for entry in before if Path(entry or ".").resolve() != here]
    try:
        yield
    finally:
        sys.path[:] = before
