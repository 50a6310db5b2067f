"""The built package, installed without the checkout, runs from any folder."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import environment
from tests import harness

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("baselines", "bench", "chimera", "reports")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
FLAGS = (
    *("--models", "synthetic:predictable", "--methods", "prompt_lookup", "--limit", "1"),
    *("--turns", "1", "--repeats", "1", "--max-new-tokens", "8", "--device", "cpu"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a folder of its own, so that the checkout gets no build files."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, "-c", BUILD, "."], cwd=source, check=True, stdout=subprocess.DEVNULL
    )
    (found,) = source.glob("*.whl")
    return found


def test_the_wheel_holds_all_files_of_its_packages(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("no checkout")
    documents = {name for name in listed if name.endswith(".md")}
    assert {name for name in listed if (ROOT / name).exists()} - documents <= held


def test_it_runs_from_any_folder_and_a_second_run_adds_nothing(wheel: Path, tmp_path: Path) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--no-compile", "--target", str(installed), str(wheel)], check=True)
    for name in ("reports", "chimera", "results"):  # folders like those of a checkout
        (work / name).mkdir(parents=True)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        settings = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        return subprocess.run(
            [*command, *FLAGS],
            cwd=work,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        )

    first = run(str(installed / "bin" / "chimera-bench"), "run")
    (folder,) = (work / "results").iterdir()
    place = Path("results") / folder.name
    assert _notes(first) == ["plan: 4 turns on 1 model", f"records: {place}"]
    assert first.stderr.endswith(f"report: {place / 'index.html'}\n")
    assert "\n  prompt_lookup " in first.stdout
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "</style>" in page
    assert "</script>" in page
    found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert found["git"] == {"commit": None, "dirty": None}, "not the checkout's code"
    assert found["code"] == environment.code()
    assert not list((work / "reports").iterdir())
    before = harness.contents(work)
    second = run(sys.executable, "-m", "bench.run")
    done = "synthetic:predictable: 4 of 4 turns done already"
    assert _notes(second) == ["plan: 4 turns on 1 model", done, f"records: {place}"]
    assert second.stdout == first.stdout
    assert harness.contents(work) == before


def _notes(ended: subprocess.CompletedProcess[str]) -> Sequence[str]:
    """Standard error but the dtype, the estimate and the report's path."""
    lines = ended.stderr.splitlines()
    others = (" left, about ", "report: ", "dtype: ")
    return [line for line in lines if not any(other in line for other in others)]
