"""A person at a shell: the commands of the installed package, called from an empty folder."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SMALL = "--limit 2 --turns 1 --max-new-tokens 12 --repeats 1 --device cpu --dtype float32"


@dataclass(frozen=True)
class Shell:
    """Runs command lines in `folder`, with the commands of the environment of `python`.

    Attributes:
        settings: environment variables beside those of this process.
    """

    folder: Path
    python: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, line: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """What the command printed; an assertion fails where its exit code is not `code`."""
        path = os.pathsep.join([str(self.python.parent), os.environ["PATH"]])
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        ended = subprocess.run(
            shlex.split(line),
            cwd=self.folder,
            env={**inherited, **self.settings, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        said = f"{line}\nexit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert ended.returncode == code, said
        assert "Traceback" not in ended.stderr, said
        return ended

    def refused(self, line: str) -> str:
        """The one line by which invalid input is refused."""
        ended = self(line, code=2)
        assert ended.stdout == ""
        (only,) = ended.stderr.splitlines()
        assert only.startswith("error: ")
        return only


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell in an empty folder, without network; its caches start empty."""
    folder = tmp_path / "work"
    folder.mkdir()
    settings = {
        "CHIMERA_BENCH_CACHE": str(tmp_path / "cache"),
        "CHIMERA_BENCH_DATA": "",
        "COLUMNS": "120",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return Shell(folder, Path(sys.executable), settings)


@pytest.fixture
def small() -> str:
    """Flags of a run that takes seconds."""
    return SMALL
