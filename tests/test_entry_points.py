"""Entry points are loaded wherever a command runs."""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from bench.entry_points import load_entry_point

NAME = "decoder_in_its_own_folder"
POINT = EntryPoint("own", f"{NAME}:VALUE", "tests")


class Editable:
    """Finds the module as an editable install does: after the path."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._file) if name == NAME else None


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a decoder that has its module's name, installed editable, in the working
    directory, which is first on the path."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / f"{NAME}.py").write_text("VALUE = 'the decoder'\n")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable(folder / f"{NAME}.py")])
    monkeypatch.syspath_prepend("")
    yield folder
    sys.modules.pop(NAME, None)


@pytest.mark.parametrize("place", ["parent", "folder", "elsewhere"])
def test_a_folder_of_the_modules_name_hides_nothing(
    place: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"parent": project.parent, "folder": project, "elsewhere": Path("/")}
    monkeypatch.chdir(places[place])
    path = list(sys.path)
    assert load_entry_point(POINT) == "the decoder"
    assert sys.path == path


def test_a_module_of_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spaced_out").mkdir()  # a namespace package, which has no code of its own
    (tmp_path / "spaced_out" / "module.py").write_text("VALUE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    assert load_entry_point(EntryPoint("x", "spaced_out.module:VALUE", "tests")) == 1


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_entry_point(EntryPoint("x", "no_such_package:VALUE", "tests"))
