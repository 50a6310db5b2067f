"""Training by two processes follows that of one, and a resume may change their number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.distributed import World
from bench.errors import UsageError
from bench.training.distill import DistillConfig, share
from tests.training import drafts
from tests.training.drafts import PREDICTABLE

LAUNCHER = """
import json, os, socket, sys
from bench.training.train import main

def launch(size, flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            if size > 1:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
                os.environ["MASTER_PORT"] = str(port)
            os._exit(main(flags))
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

for size, flags in json.loads(sys.argv[1]):
    print(json.dumps(launch(size, flags)), flush=True)
"""


def launched(launches: list[tuple[int, list[str]]]) -> list[list[int]]:
    """The exit codes of each launch of so many processes with these flags."""
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCHER, json.dumps(launches)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in ended.stdout.splitlines() if line[:1] == "["]


def test_processes_share_a_batch_and_a_resume_may_change_their_number(tmp_path: Path) -> None:
    data = drafts.data(PREDICTABLE)
    flags = ["--method", "medusa", "--model", PREDICTABLE, "--data", str(data), "--device", "cpu"]
    flags += ["--steps", "6", "--tokens", str(9 * drafts.LENGTH), "--anchors", "6"]
    flags += ["--eval-every", "2", "--save-every", "3", "--warm-up", "2", "--vocabulary", "0"]
    one, two, both = (["--out", str(tmp_path / name)] for name in ("one", "two", "both"))
    codes = launched(
        [
            (1, [*flags, *one]),
            (2, [*flags, *two]),
            (2, [*flags, *both, "--stop-at", "3"]),
            (1, [*flags, *both]),
            (2, [*flags, *both, "--out", str(tmp_path / "few"), "--tokens", str(drafts.LENGTH)]),
        ]
    )
    assert codes == [[0], [0, 0], [0, 0], [0], [2, 2]]
    expected = drafts.log(tmp_path / "one")
    weights = load_file(tmp_path / "one/state-6/model.safetensors")
    for name in ("two", "both"):
        found = drafts.log(tmp_path / name)
        assert [entry["step"] for entry in found] == [2, 4, 6]
        for entry, same in list(zip(found, expected, strict=True)):
            loss, known = (e["methods"]["medusa-0"]["loss"] for e in (entry, same))
            if name == "two" or entry["step"] != 4:  # a resume logs the rest of the interval
                assert loss == pytest.approx(known, rel=1e-4)
        for key, tensor in load_file(tmp_path / name / "state-6/model.safetensors").items():
            assert (tensor - weights[key]).abs().max() < 1e-3 * weights[key].abs().max() + 1e-5


def test_processes_write_their_share_into_folders_of_their_own() -> None:
    whole = DistillConfig(out="data", sequences=7, seed=3, device="cpu")
    assert share(whole, World()) == whole
    parts = [share(whole, World(rank, 2, rank)) for rank in range(2)]
    assert [(p.out, p.sequences, p.seed) for p in parts] == [("data/0", 4, 6), ("data/1", 3, 7)]
    with pytest.raises(UsageError, match="--prompts are not split over processes"):
        share(DistillConfig(prompts="asked.jsonl"), World(0, 2, 0))
