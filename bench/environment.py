"""Provenance of a run: code, packages, processor and device; no path, user name or host name."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import psutil
import pynvml

from bench.errors import UsageError
from bench.files import canonical_sha256, sha256_of_file

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


BFLOAT16_UNITS = frozenset({"amx_bf16", "avx512_bf16"})  # Linux's names of processor features
OWN = ("baselines", "bench", "chimera")  # packages whose code every record depends on


def collect(device: str, extra: Mapping[str, object]) -> dict[str, object]:
    """What the figures of a run depend on, with `extra` at the top level.

    UsageError where this machine has no such device.
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
    """(device, dtype) with "auto" resolved: a GPU where there is one; bfloat16 on a GPU and on a
    CPU that multiplies it, else float32. By the processor's flags, not by a measurement: the dtype
    is part of a run's identity and must not change with the load of the machine."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        fast = device.startswith("cuda") or BFLOAT16_UNITS & cpu_flags()
        dtype = "bfloat16" if fast else "float32"
    return device, dtype


def dtype_reason(device: str) -> str:
    """What `auto` took as the dtype and why, for a settled device."""
    dtype = settled(device, "auto")[1]
    if device.startswith("cuda"):
        return f"{dtype}, a GPU's default"
    found = sorted(BFLOAT16_UNITS & cpu_flags())
    if found:
        return f"{dtype}, which this processor multiplies fast ({', '.join(found)})"
    return f"{dtype}: this processor has no fast products in bfloat16 (AMX or AVX512-BF16)"


def device_name(device: str) -> str:
    """`NVIDIA H200`, or `<processor>, 2 threads` on the CPU. UsageError without one."""
    import torch

    chosen = _device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"{cpu_model()}, {_threads()}"


def card(device: str) -> str | None:
    """The beginning of the card's UUID, `GPU-5f0c1a2b`, which tells cards of one kind apart; None
    on the CPU."""
    import torch

    chosen = _device(device)
    if chosen.type != "cuda":
        return None
    return f"GPU-{str(torch.cuda.get_device_properties(chosen).uuid)[:8]}"


def device_kind(device: str) -> str:
    """The device that parameters are tuned for: `NVIDIA H200`, or `cpu, 2 threads` on any CPU."""
    name = device_name(device)
    return name if _device(device).type == "cuda" else f"cpu, {_threads()}"


def _threads() -> str:
    import torch

    threads = torch.get_num_threads()
    return f"{threads} {'thread' if threads == 1 else 'threads'}"


def git_state(checkout: Path) -> dict[str, object]:
    """The commit, and whether files outside results are changed or new; null outside a checkout."""
    git = ("git", "--no-optional-locks", "-C", str(checkout))
    top = _output(*git, "rev-parse", "--show-toplevel")
    commit = _output(*git, "rev-parse", "--verify", "HEAD")
    if not top or not commit or Path(top).resolve() != checkout.resolve():
        return {"commit": None, "dirty": None}  # e.g. installed inside another project's checkout
    changes = _output(*git, "status", "--porcelain", "--", ":(exclude)results")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def gpu_state(uuid: str, nvml: ModuleType = pynvml) -> dict[str, object]:
    """The card's driver, modes, clocks and power limit as NVML reports them; null where it cannot.

    By the card's uuid, since CUDA_VISIBLE_DEVICES renumbers the cards for torch alone.
    """
    sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    queries: dict[str, Callable[[Any], object]] = {
        "driver": lambda _: nvml.nvmlSystemGetDriverVersion(),
        "persistence": lambda card: _mode(nvml.nvmlDeviceGetPersistenceMode(card)),
        "ecc": lambda card: _mode(nvml.nvmlDeviceGetCurrentEccMode(card)),
        "sm_clock_mhz": lambda card: float(nvml.nvmlDeviceGetClockInfo(card, sm)),
        "memory_clock_mhz": lambda card: float(nvml.nvmlDeviceGetClockInfo(card, memory)),
        "sm_clock_max_mhz": lambda card: float(nvml.nvmlDeviceGetMaxClockInfo(card, sm)),
        "memory_clock_max_mhz": lambda card: float(nvml.nvmlDeviceGetMaxClockInfo(card, memory)),
        "power_limit_w": lambda card: nvml.nvmlDeviceGetPowerManagementLimit(card) / 1000,
    }
    state: dict[str, object] = dict.fromkeys(queries)
    with suppress(nvml.NVMLError):  # no driver here, or no such card
        nvml.nvmlInit()
        try:
            card = nvml.nvmlDeviceGetHandleByUUID(uuid)
            for name, query in queries.items():
                with suppress(nvml.NVMLError):  # not supported by this card
                    state[name] = query(card)
        finally:
            nvml.nvmlShutdown()
    return state


def _mode(enabled: int) -> str:
    return "Enabled" if enabled else "Disabled"


def cpu_model() -> str:
    """The processor's name; the architecture's where the system gives none."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The processor's features as Linux names them; empty on another system."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


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


def code(modules: Iterable[str] = ()) -> dict[str, str]:
    """Hashes of the sources of this project's packages and of those that the modules are in."""
    packages = {*OWN, *(module.partition(".")[0] for module in modules)}
    return {package: source_sha256(package) for package in sorted(packages)}


@functools.cache  # a process keeps the code that it imported, whatever becomes of the files
def source_sha256(package: str) -> str:
    """Of the names and contents of an importable package's Python files."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise UsageError(f"the package {package} is not installed; run `pip install -e .`")
    roots = [Path(root) for root in found.submodule_search_locations or ()]
    files = {
        path.relative_to(root).as_posix(): sha256_of_file(path)
        for root in roots
        for path in root.rglob("*.py")
    }
    if not roots and found.origin:
        files[package] = sha256_of_file(Path(found.origin))
    return canonical_sha256(files)


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """A command's stripped output; None where the command is missing, fails or hangs."""
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
