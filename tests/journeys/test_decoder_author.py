"""An author writes the documented decoder in a folder of its own, installs it and runs it."""

from __future__ import annotations

import re
import sys
import sysconfig
import tomllib
import venv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.journeys.conftest import Shell

pytestmark = pytest.mark.journeys

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs/add-a-decoder.md"
GROUP = "chimera_bench.decoders"


def block(language: str, word: str) -> str:
    """The document's code block of a language that holds `word`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (found,) = (code for code in blocks if word in code)
    return str(found)


def own_environment(folder: Path) -> Path:
    """The Python of a new environment that sees the packages of this one, so that what the author
    installs stays out of it."""
    venv.create(folder)
    inner = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=inner))
    outer = sysconfig.get_path("purelib")
    (site / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    return folder / "bin" / Path(sys.executable).name


def test_an_author_runs_a_decoder_from_the_parent_of_its_folder(
    shell: Shell, small: str, tmp_path: Path
) -> None:
    package = block("toml", GROUP)
    (entry,) = tomllib.loads(package)["project"]["entry-points"][GROUP].items()
    name, (module, _, _) = entry[0], entry[1].partition(":")
    folder = shell.folder / module
    folder.mkdir()
    (folder / f"{module}.py").write_text(block("python", "(TreeDecoder)"), encoding="utf-8")
    (folder / "pyproject.toml").write_text(package, encoding="utf-8")
    run = (
        f"python -m bench.run --models synthetic:predictable --methods '{name}(k=4)' '{name}(k=8)' "
        f"{small} --out out"
    )
    assert f"unknown method '{name}'" in shell.refused(run)

    author = replace(shell, python=own_environment(tmp_path / "author"))
    author(f"python -m pip install --quiet --no-index --no-build-isolation -e {module}")
    ended = author(run)
    assert f"\n  {name}(k=4)" in ended.stdout
    assert f"\n  {name}(k=8)" in ended.stdout
    assert f"{name}(k=8)" in (shell.folder / "out/index.html").read_text(encoding="utf-8")
    assert "no violations" in author("python -m bench.records check out").stdout

    unknown = author.refused(run.replace("(k=8)", "(width=8)"))
    assert unknown == f"error: {name} has no parameter 'width'; choose one of k"
