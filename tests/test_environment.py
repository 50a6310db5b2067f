import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench import environment
from bench.environment import collect, device_name, git_state, gpu_state
from bench.errors import UsageError


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    else:
        yield value


def test_collect_names_what_figures_depend_on() -> None:
    facts = collect("cpu", {"datasets": {"mini": "ab" * 32}})
    packages, cpu = facts["packages"], facts["cpu"]
    assert isinstance(packages, dict)
    assert isinstance(cpu, dict)
    assert packages["torch"] == torch.__version__
    assert {"transformers", "datasets", "numpy", "triton", "chimera-bench"} <= packages.keys()
    assert cpu["torch_threads"] == torch.get_num_threads()
    assert cpu["logical_cores"] >= cpu["physical_cores"] >= 1
    assert facts["memory_bytes"] > 2**28  # type: ignore[operator]
    assert facts["cuda"] is None
    assert facts["datasets"] == {"mini": "ab" * 32}
    json.dumps(facts, allow_nan=False)


def test_collect_holds_no_path_user_or_host() -> None:
    texts = [leaf for leaf in leaves(collect("cpu", {})) if isinstance(leaf, str)]
    words = {word for text in texts for word in re.split(r"[\s,]+", text)}
    assert not any("/" in text or "\\" in text for text in texts)
    assert not {getuser(), socket.gethostname()} & words


def test_device_name_of_the_cpu_counts_its_threads() -> None:
    count = torch.get_num_threads()
    assert re.search(rf"\S, {count} threads?$", device_name("cpu"))
    assert collect("cpu", {})["device"] == device_name("cpu")


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"{device}.*use cpu"):
        device_name(device)
    with pytest.raises(UsageError, match=f"{device}.*use cpu"):
        collect(device, {})


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    nothing = {"commit": None, "dirty": None}
    assert git_state(tmp_path) == nothing

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init")
    assert git_state(tmp_path) == nothing
    source = tmp_path / "code" / "one.py"
    source.parent.mkdir()
    source.write_text("1\n")
    git("add", ".")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    assert git_state(source.parent) == nothing  # another project's checkout around ours

    results = tmp_path / "results" / "records.jsonl"
    results.parent.mkdir()
    results.write_text("{}\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    source.with_name("two.py").write_text("2\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    source.with_name("two.py").unlink()
    source.write_text("3\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


class FakeNvml(ModuleType):
    """One card, GPU-7, that has no ECC and does not tell its maximal memory clock."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.driver = driver
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-7":
            raise self.NVMLError
        return uuid

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetPersistenceMode(self, card: str) -> int:
        return 1

    def nvmlDeviceGetCurrentEccMode(self, card: str) -> int:
        raise self.NVMLError

    def nvmlDeviceGetClockInfo(self, card: str, clock: int) -> int:
        return {1: 345, 2: 3201}[clock]

    def nvmlDeviceGetMaxClockInfo(self, card: str, clock: int) -> int:
        if clock == self.NVML_CLOCK_MEM:
            raise self.NVMLError
        return 1980

    def nvmlDeviceGetPowerManagementLimit(self, card: str) -> int:
        return 700_000


def test_gpu_state_reads_every_figure() -> None:
    nvml = FakeNvml()
    assert gpu_state("GPU-7", nvml) == {
        "driver": "580.1",
        "persistence": "Enabled",
        "ecc": None,
        "sm_clock_mhz": 345.0,
        "memory_clock_mhz": 3201.0,
        "sm_clock_max_mhz": 1980.0,
        "memory_clock_max_mhz": None,
        "power_limit_w": 700.0,
    }
    assert set(gpu_state("GPU-8", nvml).values()) == {None}
    assert nvml.open == 0


def test_gpu_state_is_null_without_an_answer() -> None:
    state = gpu_state("GPU-7", FakeNvml(driver=False))
    assert {"driver", "power_limit_w"} <= state.keys()
    assert set(state.values()) == {None}
    assert set(gpu_state("GPU-none").values()) == {None}  # NVML itself, whatever this machine has


def test_code_is_a_hash_of_names_and_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "source_sha256", environment.source_sha256.__wrapped__)
    package = tmp_path / "guest"
    (package / "part").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part" / "decoder.py").write_text("a = 1\n")
    (tmp_path / "single.py").write_text("a = 1\n")

    def guest() -> str:
        return environment.code(["guest.part.decoder"])["guest"]

    assert environment.code(["single"]).keys() == {*environment.OWN, "single"}
    before = guest()
    (package / "notes.txt").write_text("not code")
    assert guest() == before
    (package / "part" / "decoder.py").write_text("a = 2\n")
    changed = guest()
    (package / "part" / "decoder.py").rename(package / "part" / "moved.py")
    assert len({before, changed, guest()}) == 3


def test_own_code_is_all_of_this_project() -> None:
    assert environment.code().keys() == {"baselines", "bench", "chimera"}
    assert environment.code(["bench.run.plan"]) == environment.code()
