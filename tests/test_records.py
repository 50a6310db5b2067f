import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.files import canonical_sha256
from bench.records.__main__ import main
from bench.records.runs import (
    FIELDS,
    FIGURES,
    SCHEMA,
    RunFolder,
    blank_figures,
    frame,
    label,
    latest,
    read,
    violations,
)
from bench.records.validation import check

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent


def turn(**changes: Any) -> Record:
    """A good record of the reference; its key follows from what was changed."""
    record: Record = {
        "schema": "1.0",
        "run": "tiny",
        "cell": "0c",
        "package_version": "0.1.0",
        "model": "tiny",
        "revision": None,
        "dtype": "float32",
        "device": "a processor, 2 threads",
        "engine": "eager",
        "method": "autoregressive",
        "params": {},
        "lossless": True,
        "checkpoint_sha256": None,
        "tree_sha256": None,
        "dataset": "mini",
        "dataset_sha256": "d" * 64,
        "prompt_id": 81,
        "category": "writing",
        "turn": 1,
        "prompt_sha256": "e" * 64,
        "history": None,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
        "seed": 0,
        "repeat": 0,
        "max_new_tokens": 4,
        "status": "ok",
        "error": None,
        "prompt_tokens": 7,
        "new_tokens": 4,
        "output_ids": [5, 0, 3, 9],
        "text": "naïve — 好\u2028",
        "accept_lengths": [1, 1, 1],
        "prefill_s": 0.5,
        "draft_prefill_s": None,
        "decode_s": 0.25,
        "phase_s": {"draft": 0.0, "verify": 0.2, "accept": 0.0, "other": 0.05},
        "drafted": 0,
        "draft_parameters": 0,
        "startup_s": 0.0,
        "finish": "length",
        "warnings": [],
    }
    record["key"] = canonical_sha256(repr(sorted(changes.items())))
    return record | changes


def failure(status: str = "error", error: str | None = "out of memory", **changes: Any) -> Record:
    return turn(**changes) | {"status": status, "error": error} | blank_figures()


def lookahead(**changes: Any) -> Record:
    method = {"method": "lookahead", "params": {"n": 5, "w": 7, "g": 7}, "accept_lengths": [1, 2]}
    return turn(**method | {"drafted": 8} | changes)


def stock(**changes: Any) -> Record:
    whole = {"engine": "stock", "method": "transformers_generate"}
    return turn(**whole, accept_lengths=None, phase_s=None, drafted=None, **changes)


def unclocked(**changes: Any) -> Record:
    """`turn` of schema 1.2 without the phase clock."""
    found = {"schema": "1.2", "code_sha256": "c" * 64, "clock": False, "phase_s": None}
    return turn(**found | changes)


def stepped(*steps: Record, prefill_end: int | None = 1, **changes: Any) -> Record:
    """`turn` with its three steps, of which `steps` change some fields."""
    made = [{"drafted": 0, "depth": 0, "end": 2 + at, "us": [0, 0, 0, 0]} for at in range(3)]
    made[0]["us"] = [0, 200_000, 0, 50_000]
    for step, change in zip(made, steps, strict=False):
        step |= change
    return turn(**{"steps": made, "prefill_end": prefill_end} | changes)


def write(folder: Path, *records: Record) -> Path:
    """A run folder as the harness leaves it, whatever the records hold."""
    folder.mkdir(exist_ok=True)
    for name in ("run.yaml", "environment.json", "history.jsonl"):
        (folder / name).write_text("")
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def keys(records: list[Record]) -> list[str]:
    return [record["key"] for record in records]


# Names and hashes


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [
        ("autoregressive", {}, "autoregressive"),
        ("lookahead", {"n": 5, "w": 7, "g": 7}, "lookahead(n=5,w=7,g=7)"),
        ("lookahead", {"w": 7, "n": 5}, "lookahead(w=7,n=5)"),
        ("m", {"a": 0.1, "b": 1e-05, "c": 2.0, "d": True, "e": False}, None),
        ("m", {"tree": "wide", "none": None}, "m(tree=wide,none=null)"),
    ],
)
def test_label(method: str, params: dict[str, object], expected: str | None) -> None:
    assert label(method, params) == (expected or "m(a=0.1,b=1e-05,c=2.0,d=true,e=false)")


def test_canonical_sha256_is_the_hash_of_canonical_json() -> None:
    text = '{"a":[0,5],"b":"好"}'
    assert canonical_sha256({"b": "好", "a": [0, 5]}) == hashlib.sha256(text.encode()).hexdigest()
    assert canonical_sha256([0.5]) != canonical_sha256([0, 5])
    with pytest.raises(ValueError, match="JSON"):
        canonical_sha256(math.nan)


# Writing and reading


def test_round_trip(tmp_path: Path) -> None:
    records = [turn(), lookahead(), failure(turn=2)]
    with RunFolder(tmp_path / "a" / "run") as folder:
        for record in records:
            folder.append(record)
        assert folder.done() == set(keys(records[:2]))
    assert read(tmp_path / "a" / "run") == records
    with RunFolder(tmp_path / "a" / "run") as folder:
        assert folder.done() == set(keys(records[:2]))
    assert read(tmp_path / "a" / "run") == records


def test_a_line_torn_at_any_byte_is_written_again_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records = [
        {"schema": "1.0", "key": name, "status": "ok", "error": None, "text": "é {}\n\u2028"}
        for name in "abc"
    ]
    with RunFolder(tmp_path) as folder:
        for record in records:
            folder.append(record)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        complete = records if end == len(whole) else records[:-1]
        assert read(tmp_path) == complete
        with RunFolder(tmp_path) as folder:
            assert folder.done() == set(keys(complete))
            for record in records:
                if record["key"] not in folder.done():
                    folder.append(record)
        assert path.read_bytes() == whole


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


APPEND_ALL = """
import sys
from bench.records.runs import RunFolder
with RunFolder(sys.argv[1]) as folder:
    for number in range(int(sys.argv[2])):
        if str(number) not in folder.done():
            folder.append({"schema": "1.0", "key": str(number), "status": "ok", "error": None,
                           "output_ids": list(range(2000))})
            print(number, flush=True)
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    child = start(APPEND_ALL, str(tmp_path), "1000000")
    assert child.stdout is not None
    seen = [child.stdout.readline() for _ in range(30)]
    child.kill()
    assert child.wait() == -signal.SIGKILL
    kept = len(read(tmp_path))
    assert kept >= len(seen)
    second = start(APPEND_ALL, str(tmp_path), str(kept + 20))
    printed, _ = second.communicate()
    assert second.returncode == 0
    assert len(printed.split()) == 20
    assert keys(read(tmp_path)) == [str(number) for number in range(kept + 20)]


FILL_THE_DISK = """
import resource, sys
from bench.errors import UsageError
from bench.records.runs import RunFolder
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
def record(key, text):
    return {"schema": "1.0", "key": key, "status": "ok", "error": None, "text": text}
with RunFolder(sys.argv[1]) as folder:
    folder.append(record("a", ""))
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        folder.append(record("b", "x" * 1000))
    except UsageError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(sorted(folder.done()))
    folder.append(record("c", ""))
"""


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    printed, _ = start(FILL_THE_DISK, str(tmp_path)).communicate()
    error, done = printed.splitlines()
    assert error.startswith("cannot write ")
    assert "make room" in error
    assert done == "['a']"
    assert keys(read(tmp_path)) == ["a", "c"]


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    hold = "from bench.records.runs import RunFolder\nimport sys\n"
    hold += "with RunFolder(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    child = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    (tmp_path / "records.jsonl").write_bytes(b'{"torn')
    with (
        pytest.raises(UsageError, match=f"in use by process {child.pid}; .*--out"),
        RunFolder(tmp_path),
    ):
        pass
    assert (tmp_path / "records.jsonl").read_bytes() == b'{"torn'
    child.communicate("")
    with RunFolder(tmp_path) as folder, pytest.raises(UsageError, match=str(os.getpid())):
        RunFolder(folder.path).__enter__()


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path):
        raise ZeroDivisionError
    with RunFolder(tmp_path) as folder:
        assert folder.done() == set()


def test_another_major_is_refused_and_left_alone(tmp_path: Path) -> None:
    write(tmp_path, turn(schema="2.0"))
    with open(tmp_path / "records.jsonl", "ab") as file:
        file.write(b"torn")
    before = (tmp_path / "records.jsonl").read_bytes()
    for enter in (read, lambda path: RunFolder(path).__enter__()):
        with pytest.raises(UsageError, match=rf"line 1: schema 2\.0 .* {re.escape(SCHEMA)}"):
            enter(tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert any("line 1: schema 2.0" in problem for problem in check(tmp_path))


def test_any_minor_is_read(tmp_path: Path) -> None:
    newer = turn(schema="1.7", colour="blue")
    assert read(write(tmp_path, newer)) == [newer]
    assert check(tmp_path) == []
    assert frame([tmp_path])["colour"].tolist() == ["blue"]
    assert violations(turn(colour="blue")) == [f"colour is no key of schema {SCHEMA}"]


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b'{"key": "a"}', b'{"schema": NaN}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_inner_line_is_named(line: bytes, tmp_path: Path) -> None:
    write(tmp_path, turn())
    with open(tmp_path / "records.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UsageError, match=r"records\.jsonl line 2: .*; restore"):
        read(tmp_path)
    with pytest.raises(UsageError, match=r"records\.jsonl line 2: .*; restore"):
        RunFolder(tmp_path).__enter__()
    assert [problem for problem in check(tmp_path) if problem.startswith("line 2: ")]


def test_reading_no_run_is_a_usage_error(tmp_path: Path) -> None:
    for use in (read, check, lambda path: frame([path])):
        with pytest.raises(UsageError, match="give the folder of a run"):
            use(tmp_path / "nothing")


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="choose another --out"):
        RunFolder(tmp_path / "run").__enter__()
    assert (tmp_path / "run").read_text() == "mine"


def test_failures_are_kept_once_and_never_beat_a_success(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        for _ in range(2):
            folder.append(failure(turn=1))
            folder.append(failure("skipped", turn=2))
    with RunFolder(tmp_path) as folder:
        assert folder.done() == set()
        folder.append(failure(turn=1))
        assert len(read(tmp_path)) == 2
        folder.append(failure(error="another reason", turn=1))
        assert len(read(tmp_path)) == 3
        folder.append(turn(turn=1))
        assert folder.done() == {turn(turn=1)["key"]}
        with pytest.raises(ValueError, match="already done"):
            folder.append(turn(turn=1))
    records = read(tmp_path)
    assert latest(records) == [records[3], records[1]]
    assert latest([*records, failure(turn=1)]) == [records[3], records[1]]


def test_write_once_replaces_whole_files(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        assert folder.read("run.yaml") is None
        folder.write_once("run.yaml", "a: ü\r\n")
        assert (tmp_path / "run.yaml").read_bytes() == "a: ü\r\n".encode()
        folder.write_once("run.yaml", "a: 2\n")
        assert folder.read("run.yaml") == "a: 2\n"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "records.jsonl", "run.yaml"}


def test_frame_has_every_field_and_the_label(tmp_path: Path) -> None:
    one = write(tmp_path / "one", failure(), turn())
    two = write(tmp_path / "two", lookahead(), failure(turn=2))
    table = frame([one, two])
    assert table["label"].tolist() == ["autoregressive", "lookahead(n=5,w=7,g=7)", "autoregressive"]
    assert table["status"].tolist() == ["ok", "ok", "error"]
    assert table["output_ids"].iloc[0] == [5, 0, 3, 9]
    empty = frame([write(tmp_path / "none")])
    assert len(empty) == 0
    assert {*FIELDS, "label"} == set(empty.columns) == set(table.columns)


# Checking


def test_check_passes_a_good_folder(tmp_path: Path) -> None:
    unavailable = failure("skipped", "no heads for this model", method="medusa") | dict.fromkeys(
        ("prompt_id", "turn", "repeat", "category", "prompt_sha256", "prompt_tokens")
    )
    short: Record = {"new_tokens": 1, "output_ids": [2], "accept_lengths": [], "finish": "eos"}
    short["turn"] = 2
    good = [turn(), failure(**short), turn(**short), lookahead(), stock(), unavailable]
    good += [
        stepped(turn=3),
        turn(turn=4, steps=None, prefill_end=None),
        stepped({"depth": None, "end": 1}, turn=5, prefill_end=0),
        turn(**short | {"turn": 6, "steps": [], "prefill_end": 10}),
    ]
    assert check(write(tmp_path, *good)) == []


MUTATIONS: list[tuple[str, Record]] = [
    ("cell", turn(cell="xyz")),
    ("key", turn(key="abc")),
    ("schema", turn(schema="one")),
    ("dtype", turn(dtype="float64")),
    ("engine", turn(engine="fast")),
    ("params", turn(params="n=5")),
    ("lossless", turn(lossless=1)),
    ("model is null", turn(model=None)),
    ("tree_sha256", turn(tree_sha256="abc")),
    ("prompt_id is null", turn(prompt_id=None)),
    ("turn must", turn(turn=0)),
    ("repeat must", turn(repeat=True)),
    ("temperature", turn(temperature="0")),
    ("NaN", turn(temperature=math.nan)),
    ("Infinity", turn(decode_s=math.inf)),
    ("status", turn(status="done")),
    ("status", failure(status="failed")),
    ("prefill_s", turn(prefill_s=-0.1)),
    ("decode_s is null", turn(decode_s=None)),
    ("output_ids", turn(output_ids=[5, 0, 3, "9"])),
    ("output_ids", turn(output_ids=[5, 0, 3])),
    ("new_tokens", turn(new_tokens=0, output_ids=[], accept_lengths=[], finish="eos")),
    ("accept_lengths sums to 2", turn(accept_lengths=[1, 1])),
    ("accept_lengths must", turn(accept_lengths=[3, 0])),
    ("accept_lengths is null", turn(accept_lengths=None)),
    ("phase_s is null", turn(phase_s=None)),
    ("phase_s is null", unclocked(clock=True)),
    ("phase_s is null", turn(clock=False)),
    ("clock must be true or false", turn(clock=1)),
    ("clock is not null in the stock row", stock(clock=False)),
    ("the phase clock did not run", stepped(clock=False, phase_s=None)),
    ("code_sha256", turn(code_sha256="abc")),
    ("accept_lengths is null", stock() | {"accept_lengths": [1, 1, 1]}),
    ("phase_s", turn(phase_s={"draft": 0.0, "verify": -1.0, "accept": 0.0, "other": 0.0})),
    ("phase_s", turn(phase_s={"verify": 0.2})),
    ("finish must", turn(finish="stop")),
    ("finish is length", turn(max_new_tokens=5)),
    ("max_new_tokens", turn(max_new_tokens=3, finish="eos")),
    ("error is not null", turn(error="out of memory")),
    ("error must be one line", failure(error="a\nb")),
    ("gives no reason", failure(error=None)),
    ("warnings", turn(warnings=[1])),
    ("colour", turn(colour="blue")),
    ("steps is a figure", failure() | {"steps": []}),
    ("prefill_end is a figure", failure() | {"prefill_end": 0}),
    ("steps must be a list of objects", turn(steps={}, prefill_end=0)),
    ("steps must be a list of objects", turn(steps=[0, 0, 0], prefill_end=0)),
    ("steps must be a list of objects", stepped({"drafted": -1})),
    ("steps must be a list of objects", stepped({"depth": 0.5})),
    ("steps must be a list of objects", stepped({"end": None})),
    ("steps must be a list of objects", stepped({"us": [0, 0, 0]})),
    ("steps must be a list of objects", stepped({"us": [0, 0.5, 0, 0]})),
    ("prefill_end must", stepped(prefill_end=-1)),
    ("do not come together", stepped(prefill_end=None)),
    ("do not come together", turn(prefill_end=1)),
    ("do not come together", stock(steps=[], prefill_end=1)),
    ("steps holds 3 steps, accept_lengths 2", stepped(accept_lengths=[1, 2])),
    ("a step ends in the text before", stepped({"end": 4})),
    ("a step ends in the text before", stepped(prefill_end=3)),
    ("steps end at 13, text at 10", stepped({}, {}, {"end": 13})),
    ("steps drafted 5 nodes, drafted 0", stepped({"drafted": 5})),
    ("in verify, phase_s says 0.2", stepped({"us": [0, 100_000, 0, 50_000]})),
    *(
        (f"{name} is a figure", failure() | {name: turn()[name]})
        for name in FIGURES
        if turn().get(name) is not None
    ),
    *(
        (
            f"{name} is missing" if name not in ("schema", "key", "status") else "not a record",
            {key: value for key, value in turn().items() if key != name},
        )
        for name in turn()
    ),
]


@pytest.mark.parametrize(("problem", "record"), MUTATIONS)
def test_check_names_the_line_of_every_violation(
    problem: str, record: Record, tmp_path: Path
) -> None:
    found = check(write(tmp_path, turn(prompt_id=1), record, turn(prompt_id=2)))
    assert any(line.startswith("line 2: ") and problem in line for line in found)
    assert not any(line.startswith(("line 1: ", "line 3: ")) for line in found)


@pytest.mark.parametrize(
    "record", [unclocked(), turn(clock=True), turn(clock=None), stock(clock=None), stepped()]
)
def test_the_phases_of_a_record_follow_its_clock(record: Record) -> None:
    assert violations(record) == []


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, True, "1"])
def test_violations_of_a_record_not_yet_written(seconds: object) -> None:
    assert violations(turn()) == []
    (problem,) = violations(turn(decode_s=seconds))
    assert problem.startswith("decode_s must be seconds from 0")


def test_check_finds_duplicates_torn_ends_and_missing_files(tmp_path: Path) -> None:
    write(tmp_path, turn(), turn())
    (tmp_path / "history.jsonl").unlink()
    with open(tmp_path / "records.jsonl", "ab") as file:
        file.write(b'{"schema"')
    problems = "\n".join(check(tmp_path))
    assert "line 2: its key is done in line 1" in problems
    assert "line 3: torn" in problems
    assert "history.jsonl is missing" in problems
    assert len(problems.splitlines()) == 3


TRUNCATED = {"output_ids": [5, 0, 3], "new_tokens": 3, "accept_lengths": [2], "finish": "eos"}
DIFFERENT = {"output_ids": [5, 0, 4, 9]}


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (lookahead(**TRUNCATED), "line 2: output_ids holds 3 ids and the reference 4 (line 1)"),
        (lookahead(**DIFFERENT), "line 2: output_ids differs from the reference, first at pos"),
        (stock(**DIFFERENT), "line 2: output_ids differs from the reference, first at position 2"),
    ],
)
def test_float32_greedy_output_must_be_the_references(
    other: Record, problem: str, tmp_path: Path
) -> None:
    (found,) = check(write(tmp_path, turn(), other))
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "changes",
    [
        {"lossless": False},
        {"dtype": "bfloat16"},
        {"temperature": 0.7},
        {"engine": "graph"},
        {"repeat": 1},
        {"prompt_id": "81"},
        {"prompt_sha256": "f" * 64},
    ],
)
def test_only_lossless_float32_greedy_outputs_of_one_turn_are_compared(
    changes: Record, tmp_path: Path
) -> None:
    assert check(write(tmp_path, turn(), lookahead(**DIFFERENT, **changes))) == []


def test_the_stock_row_is_held_against_the_reference_of_any_engine(tmp_path: Path) -> None:
    graph = turn(engine="graph", **DIFFERENT)
    assert check(write(tmp_path, turn(), graph, stock(**DIFFERENT))) == []
    assert len(check(write(tmp_path, turn(), graph, stock(output_ids=[1, 1, 1, 1])))) == 1


def audit(folder: Path, records_sha256: str | None = None, **changes: Any) -> None:
    """An audit that calls the difference at position 2 of lookahead's output a tie."""
    data = (folder / "records.jsonl").read_bytes()
    example = {"prompt_id": 81, "turn": 1, "repeat": 0, "position": 2, "gap": 1e-5}
    row = {
        "model": "tiny",
        "engine": "eager",
        "dtype": "float32",
        "dataset": "mini",
        "label": "lookahead(n=5,w=7,g=7)",
        "temperature": 0.0,
        "compared": 1,
        "equal": 0,
        "ties": 1,
        "defects": 0,
        "examples": [example | {"verdict": "tie"} | changes],
    }
    digest = records_sha256 or hashlib.sha256(data).hexdigest()
    (folder / "audit.json").write_text(json.dumps({"records_sha256": digest, "rows": [row]}))


def test_the_audit_explains_ties_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, turn(), lookahead(**DIFFERENT))
    audit(tmp_path)
    assert check(tmp_path) == []
    explains_not: list[Record] = [
        {"verdict": "defect"},
        {"position": 3},
        {"prompt_id": 82},
        {"repeat": 1},
    ]
    for changes in explains_not:
        audit(tmp_path, **changes)
        assert len(check(tmp_path)) == 1

    write(tmp_path, turn(), lookahead(**TRUNCATED))
    for position in (2, 3, None):
        audit(tmp_path, position=position)
        assert len(check(tmp_path)) == 1


def test_an_audit_of_other_records_or_a_damaged_one_is_reported(tmp_path: Path) -> None:
    write(tmp_path, turn(), lookahead(**DIFFERENT))
    audit(tmp_path, records_sha256="0" * 64)
    problems = check(tmp_path)
    assert any("audit.json is of other records" in problem for problem in problems)
    assert any(problem.startswith("line 2: ") for problem in problems)
    for text in ("{", "[]", '{"records_sha256": "", "rows": [{}]}'):
        (tmp_path / "audit.json").write_text(text)
        assert any("audit.json cannot be read" in problem for problem in check(tmp_path))


# The command


def test_the_command_exits_0_1_or_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good", failure(), turn(), failure(turn=2))
    bad = write(tmp_path / "bad", turn(finish="stop"))
    assert main(["check", str(good)]) == 0
    assert "2 records, 1 ok, 1 failed, 0 skipped, no violations" in capsys.readouterr().out
    assert main(["check", str(bad), str(good)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert "line 1: finish must be eos or length" in printed[0]
    assert main(["check", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot read ")
    assert error.count("\n") == 1
    arguments: list[list[str]] = [[], ["check"], ["mend", str(good)]]
    for usage in arguments:
        assert main(usage) == 2


def test_the_module_needs_no_torch() -> None:
    script = "import bench.records.runs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
