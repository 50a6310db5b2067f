"""Provenance of a run: code, packages, processor and device, with no path, user or host name."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bench.errors import UsageError
from bench.records.journal import Folder

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "chimera-bench",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "tokenizers",
    "numpy",
    "pandas",
    "matplotlib",
    "jinja2",
    "triton",
)

# Our name for each figure of the card, and nvidia-smi's.
SMI_TEXTS = {
    "driver": "driver_version",
    "persistence": "persistence_mode",
    "ecc": "ecc.mode.current",
}
SMI_NUMBERS = {
    "sm_clock_mhz": "clocks.current.sm",
    "memory_clock_mhz": "clocks.current.memory",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_max_mhz": "clocks.max.memory",
    "power_limit_w": "power.limit",
}


def collect(device: str, extra: Mapping[str, object]) -> dict[str, object]:
    """What a figure of this run depends on, `extra` added at the top level.

    UsageError where the device is not there.
    """
    import torch

    chosen = _device(device)
    return {
        "git": git_state(Path(__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "cpu": {
            "model": cpu_model(),
            "physical_cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "torch_interop_threads": torch.get_num_interop_threads(),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "device": device_name(device),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": _cuda_state(chosen) if chosen.type == "cuda" else None,
        **extra,
    }


def settled(device: str, dtype: str) -> tuple[str, str]:
    """(device, dtype) with "auto" replaced: a GPU where there is one, bfloat16 on it alone."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    return device, dtype


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing that makes figures of two environments incomparable, or None."""
    watched = (
        ("packages", "torch"),
        ("packages", "transformers"),
        ("packages", "chimera-bench"),
        ("cpu", "model"),
        ("cpu", "torch_threads"),
        ("cuda", "name"),
        ("cuda", "driver"),
    )
    for group, name in watched:
        a, b = ((environment.get(group) or {}).get(name) for environment in (before, now))
        if a != b:
            return f"{group} {name} ({a}, now {b})"
    return None


def stamp(folder: Folder, name: str, settings: str, now: Mapping[str, Any]) -> None:
    """Write the settings as the file `name`, and environment.json.

    UsageError where the folder holds records of other settings or of another environment.
    """
    known, before = folder.read(name), folder.read("environment.json")
    if known not in (None, settings):
        raise UsageError(
            f"{folder.path} holds a run of other settings (see its {name}); choose another --out"
        )
    if before is not None and folder.begun:
        difference = changed(json.loads(before), json.loads(json.dumps(now)))
        if difference:
            raise UsageError(
                f"{folder.path} was recorded with another {difference}; choose another --out"
            )
    elif known is None or before is None or json.loads(before) != now:
        folder.write_once("environment.json", json.dumps(now, indent=1) + "\n")
    folder.write_once(name, settings)


def device_name(device: str) -> str:
    """`NVIDIA H200`, or `<processor>, 2 threads` on the CPU. UsageError where it is not there."""
    import torch

    chosen = _device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"{cpu_model()}, {_threads()}"


def device_kind(device: str) -> str:
    """What parameters are tuned for: `NVIDIA H200`, or `cpu, 2 threads` whatever the processor."""
    name = device_name(device)
    return name if _device(device).type == "cuda" else f"cpu, {_threads()}"


def _threads() -> str:
    import torch

    threads = torch.get_num_threads()
    return f"{threads} {'thread' if threads == 1 else 'threads'}"


def git_state(checkout: Path) -> dict[str, object]:
    """The commit, and whether anything but results is changed or new; null outside a checkout."""
    git = ("git", "--no-optional-locks", "-C", str(checkout))
    top = _answer(*git, "rev-parse", "--show-toplevel")
    commit = _answer(*git, "rev-parse", "--verify", "HEAD")
    if not top or not commit or Path(top).resolve() != checkout.resolve():
        return {"commit": None, "dirty": None}  # installed below another project's checkout, say
    changes = _answer(*git, "status", "--porcelain", "--", ":(exclude)results")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def gpu_state(uuid: str) -> dict[str, object]:
    """The card's driver, clocks, limits and modes as nvidia-smi tells them; null what it does not.

    By the card's uuid, since CUDA_VISIBLE_DEVICES renumbers the cards for torch alone.
    """
    fields = SMI_TEXTS | SMI_NUMBERS
    answer = _answer(
        "nvidia-smi",
        f"--id={uuid}",
        f"--query-gpu={','.join(fields.values())}",
        "--format=csv,noheader,nounits",
    )
    values = [value.strip() for value in (answer or "").split(",")]
    if len(values) != len(fields):
        return dict.fromkeys(fields)
    said = {
        name: None if value.startswith("[") else value  # [N/A], [Not Supported]
        for name, value in zip(fields, values, strict=True)
    }
    return {name: _number(value) if name in SMI_NUMBERS else value for name, value in said.items()}


def cpu_model() -> str:
    """The processor's name; the architecture's where the system gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _device(device: str) -> torch.device:
    import torch

    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}; use cpu or cuda") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is not supported; use cpu or cuda")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} is not on this machine; use cpu or another index")
    return chosen


def _cuda_state(device: torch.device) -> dict[str, object]:
    import torch

    card = torch.cuda.get_device_properties(device)
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "memory_bytes": card.total_memory,
        **gpu_state(f"GPU-{card.uuid}"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _answer(*command: str) -> str | None:
    """A command's stripped output; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
