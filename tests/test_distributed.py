"""Several processes of one launch: the same records as one process gives, whatever is killed."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from bench import distributed
from bench.cost import __main__ as cost
from bench.distributed import World, world
from bench.errors import UsageError
from bench.questions import sets
from bench.records import costs, validation
from bench.records import runs as records
from bench.records.runs import PARTS, RunFolder
from bench.run import parts
from bench.run.parts import Part
from bench.targets.synthetic import predictable, tokenizer
from bench.tune import __main__ as tune
from tests import harness
from tests.test_records import failure, turn


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.work_in(tmp_path, monkeypatch)


LAUNCHER = """
import json, os, random, signal, socket, sys, time
from pathlib import Path
from bench.run.__main__ import main

def start(flags, rank, size, port):
    child = os.fork()
    if child == 0:
        if size > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            code = main(flags)
        except SystemExit as error:
            code = error.code
        os._exit(code)
    return child

def lines(out):
    return sum(p.read_bytes().count(b"\\n") for p in Path(out).rglob("records.jsonl"))

def launch(flags, out, size, victim, number, *more):
    \"\"\"Kills a process once so many records are there; the others are told to end, or not.\"\"\"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [*flags, "--out", out, *more]
    alive = {start(flags, rank, size, port): rank for rank in range(size)}
    codes, killed = [None] * size, float("inf")
    chance = random.Random(number)
    while alive:
        for child, rank in list(alive.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
                del alive[child]
        if victim is not None and lines(out) >= number:
            time.sleep(chance.uniform(0, 0.05))
            for child, rank in alive.items():
                if rank == victim:
                    os.kill(child, signal.SIGKILL)
                elif number % 2:
                    os.kill(child, signal.SIGTERM)
            victim, killed = None, time.monotonic()
        if time.monotonic() - killed > 5:  # as a launcher does: one may be waiting for the start
            for child in alive:
                os.kill(child, signal.SIGTERM)
        time.sleep(0.002)
    return codes

flags, launches = json.loads(sys.argv[1])
assert main([*flags, "--out", "whole"]) == 0  # and all that is slow to import is there
for out, *how in launches:
    codes = launch(flags, out, *how)
    print(json.dumps([codes, lines(out)]), flush=True)
"""

Launch = tuple[str, int, int | None, int, *tuple[str, ...]]
"""The run folder, how many processes, which of them is killed, after how many records, flags."""

KILLS: list[Launch] = [("killed", *how) for how in [(2, 1, 3), (3, 0, 14), (2, 1, 26), (1, 0, 31)]]


def launched(launches: list[Launch], *flags: str) -> list[tuple[list[int], int]]:
    """The processes' exit codes, and how many records there are then. The same run by one process
    is in `whole`."""
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCHER, json.dumps([[*harness.QUICK, *flags], launches])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in ended.stdout.splitlines() if line[:2] == "[["]


def test_processes_of_a_launch_record_what_one_does_whichever_is_killed() -> None:
    split = ("--models", save("saved"), "--parallel", "tp", "--methods", "lookahead", "medusa")
    with RunFolder("used"):
        used, two, split_over_two, split_over_three, *kills, last = launched(
            [
                ("used", 2, None, 0),
                ("two", 2, None, 0),
                ("split", 2, None, 0, *split),
                ("three", 3, None, 0, *split),
                *KILLS,
                ("killed", 2, None, 0),
            ]
        )
    assert used == ([2, 2], 0)  # as one process is refused
    assert two[0] == last[0] == [0, 0]
    same_as_one_process("two")
    same_as_one_process("killed")
    one_turn_at_most(KILLS, kills)
    assert {r["prompt_id"]: r["rank"] for r in records.read("two")} == {"1": 0, "2": 1, "3": 0}
    assert {r["rank"] for r in records.read("whole")} == {0}
    assert {r["card"] for r in records.read("two")} == {None}
    assert split_over_two[0] == [0, 0]
    same_answers_from_one_model("split")
    assert split_over_three == ([2, 2, 2], 0)  # the model has two key-value heads


def save(folder: str) -> str:
    """Saves the predictable target; its path."""
    predictable()[0].save_pretrained(folder)
    tokenizer(64, 2048).save_pretrained(folder)
    return f"./{folder}"


def same_answers_from_one_model(out: str) -> None:
    """A model split over two processes, which answer every question together."""
    expected = {
        (r["prompt_id"], r["turn"], r["repeat"], r["method"]): r["output_ids"]
        for r in harness.kept("whole", None)
    }
    found = [r for r in harness.kept(out, None) if r["status"] == "ok"]
    assert len(found) == 2 * 2 * harness.TURNS
    for r in found:
        assert r["output_ids"] == expected[r["prompt_id"], r["turn"], r["repeat"], r["method"]]
        assert r["device"].startswith("2 x ")
        assert r["device"].endswith(", tp")
    assert [r["status"] for r in harness.of(out, "medusa", None)] == ["skipped"]
    assert validation.check(out) == []


@pytest.mark.slow
def test_twenty_killed_processes_cost_one_turn_each_at_most() -> None:
    chance = random.Random(1)
    numbers = sorted(chance.sample(range(1, 80), 20))
    kills: list[Launch] = [("killed", 2, chance.randrange(2), number) for number in numbers]
    *found, last = launched([*kills, ("killed", 2, None, 0)], "--temperature", "0", "1")
    assert last[0] == [0, 0]
    one_turn_at_most(kills, found)
    same_as_one_process("killed")


def same_as_one_process(out: str) -> None:
    expected = harness.outputs("whole")
    assert harness.outputs(out) == expected
    found = records.read(out)
    assert sorted(r["key"] for r in found) == sorted(expected)  # every turn once
    assert validation.check(out) == []
    assert not Path(out, PARTS).exists()
    for name in ("history.jsonl", "prompts.jsonl"):
        one, two = (Path(folder, name).read_text().splitlines() for folder in ("whole", out))
        assert sorted(one) == sorted(two)


def one_turn_at_most(kills: list[Launch], found: list[tuple[list[int], int]]) -> None:
    for (_, _, victim, number, *_), (codes, count) in zip(kills, found, strict=True):
        assert victim is not None
        assert codes[victim] in (-9, 0)  # 0: it had ended
        assert count >= number
    counts = [count for _, count in found]
    assert counts == sorted(counts)


def test_questions_are_dealt_whole_whatever_is_done() -> None:
    asked = [sets.load("mini", None), sets.load(str(harness.ask(Path("own.jsonl"))), None)]
    whole = [(q.name, name) for q in asked for name in q.dataset["question_id"]]
    for size in (1, 2, 3, 5):
        dealt = [
            [
                (q.name, name)
                for q in parts.deal(asked, World(rank, size))
                for name in q.dataset["question_id"]
            ]
            for rank in range(size)
        ]
        assert sorted(chain.from_iterable(dealt)) == sorted(whole)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert all(dealt[i % size][i // size] == question for i, question in enumerate(whole))
    (own,) = parts.deal(asked[1:], World(1, 2))
    assert own.sha256 == asked[1].sha256  # keys of records name the whole set
    assert parts.deal(asked[1:], World(3, 4)) == []


def test_parts_are_absorbed_once_in_order_of_rank() -> None:
    first, second, third = (turn(prompt_id=number) for number in (1, 2, 3))
    failed = failure(prompt_id=4)
    with RunFolder("run") as folder:
        folder.append(first)
        for rank, record in ((10, third), (2, second)):
            with Part(Path("run"), rank) as part:
                assert part.done() == {first["key"]}
                part.append(record)
                part.append(failed)
                Path(part.path, "history.jsonl").write_text(f"{rank}\ntorn")
        folder.absorb([second])  # as a kill between writing and removing leaves it
        parts.absorb(folder)
        parts.absorb(folder)
        assert folder.done() == {record["key"] for record in (first, second, third)}
        with pytest.raises(ValueError, match="already done"):
            folder.append(third)
    assert records.read("run") == [first, second, failed, third]
    assert Path("run/history.jsonl").read_text() == "2\n10\n"
    assert not Path("run", PARTS).exists()


def test_a_part_in_use_is_not_absorbed() -> None:
    with RunFolder("run") as folder, Part(Path("run"), 1) as part:
        part.append(turn())
        with pytest.raises(UsageError, match=r"parts/1 is in use by process \d+; wait for it"):
            parts.absorb(folder)
    assert records.read("run/parts/1") == [turn()]


def test_each_process_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    assert World().device("cuda:1") == "cuda:1"
    assert World(1, 2, 1).device("cpu") == "cpu"
    assert World(3, 4, 1).device("cuda") == "cuda:1"
    assert taken == [1]
    with pytest.raises(UsageError, match="one card for 2 processes; pass --device cuda"):
        World(0, 2, 0).device("cuda:0")
    with pytest.raises(UsageError, match="there are 2; launch at most one process for each"):
        World(2, 3, 2).device("cuda")


def test_the_launcher_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert world() == World(1, 2, 0)
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UsageError, match="must be whole numbers"):
        world()


MEASURING = """
import json, os, socket, sys
from pathlib import Path
from bench.cost import device
from bench.cost.__main__ import main as cost
from bench.tune import config
from bench.tune.__main__ import main as tune

small = config.Effort(1, 4, 1, 6, warm_up_tokens=2, finalists=1)
config.EFFORT = dict.fromkeys(config.EFFORT, small)
device.BUFFER_BYTES = {"cpu": 2**20}

warm = ["--models", "synthetic:tiny", "--device", "cpu", "--methods", "suffix", "--out", "warm"]
warm += ["--widths", "1", "--contexts", "8", "--repeats", "1", "--turns", "1", "--no-report"]
assert cost(warm) == 0  # and all that is slow to import is there

def launch(name, flags, size):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            said = os.open(f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            try:
                code = {"cost": cost, "tune": tune}[name](flags)
            except SystemExit as error:
                code = error.code
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, [Path(f"said-{rank}.txt").read_text() for rank in range(size)]

for name, flags, size in json.loads(sys.argv[1]):
    print(json.dumps(launch(name, flags, size)), flush=True)
"""
COST = (
    *("--models", "synthetic:tiny", "--engine", "eager", "compile", "--device", "cpu"),
    *("--methods", "prompt_lookup", "--widths", "1", "3", "--contexts", "16"),
    *("--repeats", "1", "--turns", "1", "--max-new-tokens", "3", "--no-report"),
)
TUNE = (
    *("--model", "synthetic:predictable", "--device", "cpu", "--engine", "eager"),
    *("--methods", "prompt_lookup", "suffix"),
)


def measured(*launches: tuple[str, list[str], int]) -> list[tuple[list[int], list[str]]]:
    """The processes' exit codes and what each said, launch by launch."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURING, json.dumps(launches)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in ended.stdout.splitlines() if line[:2] == "[["]


@pytest.mark.parametrize("command", [cost.main, tune.main], ids=["cost", "tune"])
def test_without_split_the_main_process_measures_alone(
    command: Callable[[list[str]], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert command(["--out", "new"]) == 0
    assert capsys.readouterr().err == (
        "process 1 of 2 measures nothing, since cards differ; --split deals the work to all of "
        "them\n"
    )
    assert not Path("new").exists()
    monkeypatch.setenv("RANK", "0")
    with distributed.measuring(split=False) as main:
        assert main == World()  # and waits for nobody


def test_measurements_are_split_over_processes_where_asked() -> None:
    torn = Path("split", PARTS, "1")
    torn.mkdir(parents=True)  # as a killed launch leaves it
    (torn / costs.COSTS).write_bytes(b'{"schema": "1.')
    split, again, too_many, tuned = measured(
        ("cost", [*COST, "--out", "split", "--split"], 2),
        ("cost", [*COST, "--out", "split"], 1),
        ("cost", [*COST, "--out", "new", "--split"], 3),
        ("tune", [*TUNE, "--out", "tuned", "--split"], 2),
    )
    assert (split[0], again[0], tuned[0]) == ([0, 0], [0], [0, 0])
    found = costs.read("split")
    assert len({r["key"] for r in found}) == len(found) == 10  # the second launch measured nothing
    assert {r["engine"] for r in found} == {"eager", "compile"}
    assert {r["status"] for r in found} == {"ok"}
    assert validation.check("split") == []
    assert not Path("split", PARTS).exists()
    assert too_many[0] == [2, 2, 2]
    assert too_many[1] == [
        "error: --split has 2 models on engines to deal to 3 processes; launch at most 2\n",
        "",
        "",
    ]
    assert not Path("new").exists()
    (file,) = Path("tuned").glob("*.json")
    assert json.loads(file.read_text())["methods"].keys() == {"prompt_lookup", "suffix"}
    assert "wrote" in tuned[1][0]
    assert tuned[1][1] == ""  # one process speaks
