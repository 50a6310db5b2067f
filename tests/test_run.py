"""The command: invalid input, resuming after a kill at any moment, its output and its files."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
import torch
import yaml

from baselines.autoregressive import Autoregressive
from bench import environment
from bench.decoding.decoder import Block, Settings, TargetInfo
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.files import canonical_sha256
from bench.records import runs as records
from bench.records import validation
from bench.records.runs import FIGURES, REFERENCE, RunFolder
from bench.run.methods import parse
from tests import harness
from tests.harness import install, run
from tests.qwen2 import save_qwen2

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.work_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with the quick settings; copy it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        harness.work_in(folder, patch)
        assert run("--out", "out") == 0
    return folder / "out"


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, as `out`."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


# Invalid input


def refused(flags: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused command."""
    capfd.readouterr()
    try:
        code: object = run(*flags)
    except SystemExit as stopped:
        code = stopped.code
    shown = capfd.readouterr()
    assert code == 2
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


UNTOUCHED = [  # refused before there is a folder, with a fix in every message
    (["--models", "synthetic:predictible"], "unknown model .*did you mean 'synthetic:predictable'"),
    (["--models", "nowhere"], "unknown model 'nowhere'; known are smollm2-135m, "),
    (["--methods", "lookahed"], "unknown method 'lookahed'; did you mean 'lookahead'"),
    (["--methods", "lookahead(m=5)"], "lookahead has no parameter 'm'"),
    (["--methods", "lookahead(n=five)"], "a value of type int is needed"),
    (["--methods", "lookahead(n=2)"], "lookahead needs n >= 3, not 2"),
    (["--methods", "lookahead(n=5"], r"write name or name\(key=value"),
    (["--methods", "lookahead", "lookahead(n=5)"], "twice"),
    (["--methods", "lookahead", "lookahead"], "--methods names something twice"),
    (["--datasets", "mini_bench"], "unknown question set 'mini_bench'.*; did you mean"),
    (["--datasets", "none.jsonl"], "cannot read the question set none.jsonl: No such file"),
    (["--datasets"], "--datasets needs at least one value"),
    (["--datasets", "asked.jsonl", "sub/asked.jsonl"], "two question sets are named 'asked'"),
    (["--temperature", "nan"], "--temperature must be a number of at least 0, not nan"),
    (["--temperature", "inf"], "--temperature must be a number of at least 0, not inf"),
    (["--temperature", "-0.5"], "--temperature must be a number of at least 0, not -0.5"),
    (["--top-p", "0"], "--top-p must be above 0"),
    (["--limit", "0"], "--limit must be at least 1, not 0"),
    (["--repeats", "0"], "--repeats must be at least 1, not 0"),
    (["--turns", "0"], "--turns must be at least 1"),
    (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
    (["--engine", "warp"], "--engine 'warp': choose from eager, graph, compile"),
    (["--engine", "eager", "eager"], "--engine names something twice"),
    (["--parallel", "tp"], "start them with accelerate launch"),
    (["--parallel", "layers", "--device", "cpu"], "two cards or more; here are 1 and 0"),
    (["--parallel", "tp", "--engine", "compile"], "engine compile takes one card; run --parallel"),
    (["--dtype", "int8"], "--dtype 'int8': choose from auto, float32"),
    (["--device", "tpu"], "unknown device 'tpu'; use cpu or cuda"),
    (["--device", "meta"], "device 'meta' is not supported"),
    (["--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
    (["--preset", "long"], "unknown preset 'long'; choose one of .*quick"),
    (["--config", "none.yaml"], "cannot read none.yaml: No such file"),
    (["--config", "asked.jsonl"], "asked.jsonl"),
    (["--checkpoint", "weights"], "write METHOD=PATH_OR_HUB_ID"),
    (["--checkpoint", "medusa_=weights"], "--checkpoint: unknown method 'medusa_'"),
    (["--checkpoint", "lookahead=weights", "--methods", "prompt_lookup"], "not among --methods"),
    (["--checkpoint", "lookahead=weights", "--methods", "lookahead"], "lookahead takes no weights"),
    (["--history", "none.jsonl"], "cannot read --history none.jsonl: No such file"),
    (["--data-dir", "nowhere", "--datasets", "mt_bench"], "data folder nowhere does not exist"),
]


def no_network(*_: object, **__: object) -> None:
    raise ConnectionError("Name or service\nnot known")


@pytest.mark.parametrize(
    ("flags", "complaint"), UNTOUCHED, ids=[" ".join(flags) for flags, _ in UNTOUCHED]
)
def test_bad_input_is_one_line_and_changes_nothing(
    flags: list[str], complaint: str, done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("sub").mkdir()
    harness.ask(Path("sub/asked.jsonl"))
    before = harness.contents(Path())
    assert re.search(complaint, refused(["--out", str(done), *flags], capfd))
    assert harness.contents(Path()) == before


def cut(name: str) -> None:
    """The second line of a question set is not JSON."""
    harness.ask(Path(name))
    lines = Path(name).read_text().splitlines()
    Path(name).write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]))


def without_turns(name: str) -> None:
    rows = [harness.ROWS[0], {"question_id": 2, "category": "sums"}]
    harness.ask(Path(name), rows)


@pytest.mark.parametrize(
    ("make", "name", "flags", "complaint"),
    [
        (cut, "own.jsonl", [], r"own\.jsonl, line 2: malformed JSON: .* at column \d+"),
        (without_turns, "own.jsonl", [], r"own\.jsonl, line 2: turns must be a list"),
        (Path.touch, "own.jsonl", [], r"own\.jsonl, line 1: the file is empty"),
        (Path.mkdir, "own.jsonl", [], r"the question set own\.jsonl is a folder"),
        (harness.ask, "mt_bench.jsonl", [], "has the name of the registered set 'mt_bench'"),
    ],
)
def test_bad_questions_are_named_with_their_line(
    make: Callable[[Any], object],
    name: str,
    flags: list[str],
    complaint: str,
    done: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make(Path(name))
    before = harness.contents(Path())
    line = refused(["--out", str(done), "--datasets", f"./{name}", *flags], capfd)
    assert re.search(complaint, line)
    assert harness.contents(Path()) == before


def test_a_wrong_checksum_in_the_data_folder(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    harness.ask(Path("data/mt_bench.jsonl"))
    before = harness.contents(Path())
    flags = ["--out", str(done), "--data-dir", "data", "--datasets", "mt_bench"]
    line = refused(flags, capfd)
    assert re.search(r"mt_bench\.jsonl is not the registered set .* sha256 .*replace", line)
    assert harness.contents(Path()) == before


def test_no_network(
    done: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.DownloadManager, "download", no_network)
    before = harness.contents(Path())
    line = refused(["--out", str(done), "--datasets", "vicuna_bench"], capfd)
    assert re.search(r"cannot fetch .*'vicuna_bench' \(ConnectionError.* --data-dir", line)
    assert harness.contents(Path()) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--limit", "x"],
        ["--temperature", "hot"],
        ["--limit"],
        ["--nonsense"],
        ["--lim", "3"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_flags_that_cannot_be_read_are_one_line(
    flags: list[str], done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert flags[0].lstrip("-") in refused(["--out", str(done), *flags], capfd)


def test_two_names_of_one_model(capfd: pytest.CaptureFixture[str]) -> None:
    models = ["--models", "vicuna-7b-v1.3", "lmsys/vicuna-7b-v1.3"]
    assert "two models are named 'vicuna-7b-v1.3'" in refused([*models, "--dry-run"], capfd)


# Folders that cannot be used


def other_settings(folder: Path) -> list[str]:
    return ["--out", str(folder), "--seed", "1"]


def other_questions(folder: Path) -> list[str]:
    harness.ask(Path(harness.QUESTIONS), harness.ROWS[:2])
    return ["--out", str(folder)]


def fresh(folder: Path) -> list[str]:
    return ["--out", str(folder), "--no-resume"]


def another_schema(folder: Path) -> list[str]:
    path = folder / "records.jsonl"
    path.write_text(
        path.read_text().replace(f'"schema":"{records.SCHEMA}"', '"schema":"2.0"') + "torn"
    )
    return ["--out", str(folder)]


def another_machine(folder: Path) -> list[str]:
    path = folder / "environment.json"
    environment = json.loads(path.read_text())
    environment["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(environment))
    return ["--out", str(folder)]


def other_code(folder: Path) -> list[str]:
    path = folder / "run.yaml"
    path.write_text(re.sub("(?<=\n    chimera: ).*", "old", path.read_text()))
    return ["--out", str(folder)]


def other_template(folder: Path) -> list[str]:
    path = folder / "prompts.jsonl"
    (revision,) = {json.loads(line)["revision"] for line in path.read_text().splitlines()}
    now = json.dumps(revision)
    path.write_text(path.read_text().replace(f'"revision":{now}', f'"revision":"{revision}+1"'))
    return ["--out", str(folder)]


def damaged_prompts(folder: Path) -> list[str]:
    path = folder / "prompts.jsonl"
    path.write_text(path.read_text().replace('"ids":[', '"ids":[7,', 1))
    return ["--out", str(folder)]


def damaged_records(folder: Path) -> list[str]:
    path = folder / "records.jsonl"
    path.write_text("x" + path.read_text())
    return ["--out", str(folder)]


def damaged_history(folder: Path) -> list[str]:
    path = folder / "history.jsonl"
    path.write_text(path.read_text().replace('"turn"', '"term"', 1))
    return ["--out", str(folder)]


def a_file(folder: Path) -> list[str]:
    return ["--out", str(folder / "run.yaml")]


def below_a_file(folder: Path) -> list[str]:
    return ["--out", str(folder / "run.yaml" / "run")]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (other_settings, r"holds a run of other settings: seed \(0, now 1\); choose another --out"),
        (
            other_questions,
            r"of other settings: datasets\.asked \(\w{8}, now \w{8}\), prompts\.asked",
        ),
        (other_code, r"of other settings: code\.chimera \(old, now \w{8}\); choose another --out"),
        (other_template, r"chat template of synthetic:predictable \(\S+\+1, now \S+\); choose"),
        (damaged_prompts, r"prompts\.jsonl line 1 is not a prompt of a run; restore"),
        (fresh, "holds records and --no-resume does not overwrite them; choose another --out"),
        (another_schema, r"line 1: schema 2\.0 is of another major version than 1\."),
        (another_machine, r"recorded with another packages torch \(1\.0, now .*another --out"),
        (damaged_records, r"records\.jsonl line 1: not JSON .*restore the file"),
        (damaged_history, r"history\.jsonl line 1 is not an answer"),
        (a_file, r"cannot write to .*run\.yaml \(File exists\); choose another --out"),
        (below_a_file, r"cannot write to .*run\.yaml/run \(Not a directory\)"),
    ],
)
def test_a_folder_that_cannot_be_used_is_left_alone(
    make: Callable[[Path], list[str]],
    complaint: str,
    done: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = make(done)
    before = harness.contents(Path())
    assert re.search(complaint, refused(flags, capfd))
    assert harness.contents(Path()) == before


def test_a_folder_in_use_is_left_alone(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = harness.contents(Path())
    with RunFolder(done):
        line = refused(["--out", str(done)], capfd)
    assert re.search(rf"out is in use by process {os.getpid()}; .*another --out", line)
    assert harness.contents(Path()) == before


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "--history has no answer of synthetic:predictable to asked question 1 turn 1"),
        ('{"model": "x"}\n', "given.jsonl line 1 is not an answer of a run's history"),
        ("not JSON\n", "given.jsonl line 1 is not an answer of a run's history"),
    ],
)
def test_a_history_that_lacks_an_answer(
    text: str, complaint: str, done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("given.jsonl").write_text(text)
    before = harness.contents(done)
    assert complaint in refused(["--out", "new", "--history", "given.jsonl"], capfd)
    assert not Path("new").exists()
    assert complaint in refused(["--out", "out", "--history", "given.jsonl"], capfd)
    assert harness.contents(done) == before


def test_a_given_history_is_a_setting(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = harness.contents(done)
    Path("given.jsonl").write_bytes((done / "history.jsonl").read_bytes())
    said = refused(["--out", str(done), "--history", "given.jsonl"], capfd)
    assert "other settings: history_sha256 (none, now " in said
    assert harness.contents(done) == before


def test_a_command_for_a_local_model_can_be_pasted_but_is_not_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "my models" / "small"
    save_qwen2(model)
    assert run("--models", str(model), "--methods", "medusa", "--out", "new") == 0
    assert f"bench.training.distill --models '{model}' --out" in capfd.readouterr().err
    (reason,) = {r["error"] for r in harness.kept("new") if r["method"] == "medusa"}
    assert "--models PATH/TO/small " in reason


@pytest.mark.parametrize("turns", [["--turns", "1"], []])
def test_a_question_too_long_for_the_model_is_skipped(
    turns: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    long = {"question_id": "long", "category": "sums", "turns": ["very " * 410, "why?"]}
    harness.ask(Path(harness.QUESTIONS), [harness.ROWS[0], long])
    reason = r"turn 1 needs a context of 2\d\d\d tokens with its answer, the model has 2048"
    assert run("--out", "new", "--dry-run", *turns) == 0
    noted = f"synthetic:predictable skips asked question long turn 1: {reason}"
    assert re.search(noted, capfd.readouterr().out)
    assert run("--out", "new", *turns) == 0
    found = {(r["prompt_id"], r["turn"]): (r["status"], r["error"]) for r in harness.kept("new")}
    first, *later = [found[key] for key in sorted(found) if key[0] == "long"]
    assert first[0] == "skipped"
    assert re.fullmatch(reason, first[1])
    assert later == ([] if turns else [first])
    assert {found[key][0] for key in found if key[0] == "1"} == {"ok"}
    assert {r["status"] for r in harness.kept("new") if r["method"] == REFERENCE} == {
        "ok",
        "skipped",
    }


def test_a_turn_that_only_the_history_makes_too_long_is_skipped() -> None:
    rows = [{"question_id": 1, "category": "sums", "turns": ["very " * 398, "why? " * 8]}]
    harness.ask(Path(harness.QUESTIONS), rows)
    assert run("--out", "new") == 0
    assert {(r["turn"], r["status"]) for r in harness.kept("new")} == {(1, "ok"), (2, "skipped")}


def test_a_page_that_cannot_be_written_costs_no_records(capfd: pytest.CaptureFixture[str]) -> None:
    Path("out/index.html").mkdir(parents=True)
    assert run("--out", "out", "--report", "--turns", "1") == 2
    *_, records_at, error = capfd.readouterr().err.splitlines()
    assert records_at == "records: out"
    assert error.startswith("error: cannot write out/index.html")
    assert len(harness.outputs("out")) == (2 * len(harness.LABELS) - 1) * len(harness.ROWS)


def test_as_a_command() -> None:
    command = [sys.executable, "-m", "bench.run", "--limit", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --limit must be at least 1, not 0\n"


# A run's files and output


DONE = f"{(2 * len(harness.LABELS) - 1) * harness.TURNS} "
PLAN = f"plan: {DONE}turns on 1 model"
TOLD = r"synthetic:predictable: \d+ turns? left, about \d+ s on this machine \(from the first"


def test_a_run_is_complete_and_quiet(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert validation.check(whole) == []
    assert validation.incomplete(whole) == []
    names = {path.name for path in whole.iterdir()} - {".lock"}
    files = ("records.jsonl", "history.jsonl", "audit.json", "run.yaml", "environment.json")
    assert names == {*files, "prompts.jsonl"}
    assert len(records.read(whole)) == len(harness.outputs(whole))
    assert len(harness.outputs(whole)) == (2 * len(harness.LABELS) - 1) * harness.TURNS
    capfd.readouterr()
    assert run("--out", "out") == 0
    shown = capfd.readouterr()
    assert shown.out == ""
    plan, dtype, estimate, last = shown.err.splitlines()
    assert (plan, last) == (PLAN, "records: out")
    assert dtype.startswith("dtype: ")
    assert re.match(TOLD, estimate)
    assert run("--out", "out") == 0
    done = f"synthetic:predictable: {DONE}of {DONE}turns done already"
    assert capfd.readouterr().err.splitlines() == [PLAN, dtype, done, "records: out"]


def test_a_run_says_how_long_it_takes_after_the_first_turns(
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = ("--turns", "1", "--limit", "2", "--methods", "prompt_lookup", "--out", "out")
    assert run(*flags) == 0
    plan, _, estimate, last = capfd.readouterr().err.splitlines()
    assert (plan, last) == ("plan: 8 turns on 1 model", "records: out")
    assert re.match(TOLD, estimate)
    assert " 6 turns left" in estimate
    lines = Path("out/records.jsonl").read_bytes().splitlines(keepends=True)
    Path("out/records.jsonl").write_bytes(b"".join(lines[:-3]))
    assert run(*flags) == 0
    plan, _, done, estimate, _ = capfd.readouterr().err.splitlines()
    assert plan == "plan: 8 turns on 1 model"
    assert done == "synthetic:predictable: 5 of 8 turns done already"
    assert re.match(TOLD, estimate)


def test_the_plan_counts_what_is_run(capfd: pytest.CaptureFixture[str]) -> None:
    models = ("--models", "synthetic:predictable", "synthetic:tiny")
    methods = ("--methods", "transformers_generate", "medusa", "--temperature", "0", "1")
    assert run(*models, *methods, "--repeats", "2", "--out", "out") == 0
    assert "no medusa weights" in capfd.readouterr().err
    good = [r for r in records.read("out") if r["status"] == "ok"]
    assert run(*models, *methods, "--repeats", "2", "--out", "out", "--dry-run") == 0
    assert f"turns       {len(good)} turns on 2 models" in capfd.readouterr().out


def test_a_run_builds_the_report(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--out", done.name, "--report") == 0
    shown = capfd.readouterr()
    assert shown.err.splitlines()[-2:] == ["records: out", "report: out/index.html"]
    assert "synthetic:predictable" in Path("out/index.html").read_text()
    assert not Path("reports").exists()  # it could hide the package of that name
    assert shown.out.startswith("synthetic:predictable · asked · eager · T=0\n  method ")
    assert all(f"\n  {parse(label)[0]}" in shown.out for label in harness.LABELS)
    assert max(map(len, shown.out.splitlines())) <= 80


def test_the_default_folder_continues_and_no_resume_takes_the_next(
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = ("--turns", "1", "--limit", "1", "--methods")
    assert run(*flags) == 0
    (folder,) = Path("results").iterdir()
    before = harness.contents(folder)
    assert run(*flags) == 0
    assert run(*flags, "--no-resume") == 0
    assert run(*flags, "--no-resume") == 0
    assert harness.contents(folder) == before
    names = [folder.name, f"{folder.name}-2", f"{folder.name}-3"]
    assert sorted(path.name for path in Path("results").iterdir()) == names
    said = [s for s in capfd.readouterr().err.splitlines() if s.startswith("records: ")]
    assert said == [f"records: results/{name}" for name in (names[0], *names)]
    assert len({frozenset(harness.outputs(Path("results") / name)) for name in names}) == 1


def test_models_sets_and_temperatures_share_a_run() -> None:
    harness.ask(Path("more.jsonl"), harness.ROWS[:1])
    models = ("--models", "synthetic:predictable", "synthetic:tiny")
    sets = ("--datasets", harness.QUESTIONS, "more.jsonl", "--limit", "2", "--turns", "1")
    flags = (*models, *sets, "--temperature", "0", "1", "--methods", "prompt_lookup")
    assert run(*flags, "--out", "out") == 0
    assert validation.check("out") == []
    assert validation.incomplete("out") == []
    table = records.frame(["out"])
    sizes = table.groupby(["model", "dataset", "temperature", "method"]).size()
    assert len(sizes) == 2 * 2 * 2 * 2
    assert set(sizes.xs("asked", level="dataset")) == {2 * 2}  # and once with the phase clock
    assert set(sizes.xs("more", level="dataset")) == {2 * 1}
    assert set(table[table["dataset"] == "asked"]["category"]) == {"sums", "names"}  # spread
    audited = json.loads(Path("out/audit.json").read_text())["rows"]
    assert {(row["model"], row["dataset"]) for row in audited} == set(
        table.groupby(["model", "dataset"]).groups
    )


# Resuming


def test_the_same_command_again_adds_nothing(done: Path) -> None:
    before = harness.contents(done)
    assert run("--out", "out") == 0
    assert harness.contents(done) == before


def test_a_run_that_was_stopped_says_what_it_lacks(done: Path) -> None:
    path = done / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    lacks = "incomplete: 2 of 3 questions of asked (synthetic:predictable on eager)"
    assert validation.incomplete(done) == [lacks]
    assert run("--out", "out") == 0
    assert validation.incomplete(done) == []


def test_every_session_that_adds_records_leaves_its_environment(whole: Path, done: Path) -> None:
    first = json.loads((whole / "environment.json").read_text())
    assert "continued" not in first
    path = done / "records.jsonl"
    for count in (1, 2):
        path.write_bytes(path.read_bytes()[:-1])  # the last record is torn
        assert run("--out", "out") == 0
        found = json.loads((done / "environment.json").read_text())
        assert found == first | {"continued": [first] * count}
        assert run("--out", "out") == 0  # which adds nothing
        assert json.loads((done / "environment.json").read_text()) == found


def test_the_code_of_a_method_is_in_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Flaky)
    assert run("--methods", "flaky", "prompt_lookup", "--turns", "1", "--out", "out") == 0
    (own,) = {r["code_sha256"] for r in harness.of("out", "flaky")}
    (ours,) = {r["code_sha256"] for r in harness.kept("out") if r["method"] != "flaky"}
    assert own != ours
    provenance = yaml.safe_load(Path("out/run.yaml").read_text())["provenance"]
    assert provenance["code"] == environment.code(["tests.test_run"])
    assert ours == canonical_sha256(environment.code())
    assert own == canonical_sha256(provenance["code"])
    assert json.loads(Path("out/environment.json").read_text())["code"] == provenance["code"]


@pytest.mark.parametrize("name", ["records.jsonl", "history.jsonl", "prompts.jsonl"])
@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_torn_last_line_is_written_again(name: str, lost: int, whole: Path, done: Path) -> None:
    path = done / name
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    assert run("--out", "out") == 0
    assert harness.outputs(done) == harness.outputs(whole)
    assert validation.check(done) == []
    if name != "records.jsonl":
        assert path.read_bytes() == data
        assert (done / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()


def test_a_lost_history_is_asked_again_with_the_same_answers(whole: Path, done: Path) -> None:
    (done / "history.jsonl").unlink()
    assert run("--out", "out") == 0
    assert harness.contents(done) == harness.contents(whole)


KILLED = """
import json, os, random, signal, sys, time
from bench.run.__main__ import main

def die_at(number, tear):
    \"\"\"Die at a write, before the disk has it; the newest line loses its end if \"tear\".\"\"\"
    sync, count = os.fsync, iter(range(1, 10**6))
    def fsync(file):
        if next(count) == number:
            if tear:
                os.ftruncate(file, os.fstat(file).st_size - 9)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(file)
    os.fsync = fsync

def lines(path):
    try:
        return open(path, "rb").read().count(b"\\n")
    except FileNotFoundError:
        return 0

def command(flags, kind, number):
    child = os.fork()
    if child == 0:
        if kind in ("write", "tear"):
            die_at(number, kind == "tear")
        os._exit(main(flags))
    ended, status = 0, 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if kind == "lines" and not ended and lines("killed/records.jsonl") >= number:
            time.sleep(random.Random(number).uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            kind = "sent"
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(status)

flags, kills = json.loads(sys.argv[1])
assert main([*flags, "--out", "whole"]) == 0  # and all that is slow to import is there
flags += ["--out", "killed"]
for kind, number in kills:
    print(command(flags, kind, number), lines("killed/records.jsonl"), flush=True)
"""


def test_a_kill_at_any_moment_costs_one_turn_at_most() -> None:
    flags = [*harness.QUICK, "--temperature", "0", "1"]
    numbers = random.Random(0).sample(range(9, 40), 4)
    kills: list[tuple[str, int]] = [
        *(("write", number) for number in (1, 2, 3)),  # environment.json, run.yaml, history.jsonl
        ("tear", 4),  # a prompt
        ("tear", 5),  # an answer of the history
        ("tear", 12),  # a record
        *(("lines", number) for number in sorted(numbers)),  # wherever it is by then
        ("tear", 3),
        ("none", 0),
        ("write", 3),  # audit.json
        ("none", 0),
    ]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([flags, kills])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    codes, counts = zip(
        *(map(int, line.split()) for line in ended.stdout.splitlines()), strict=True
    )
    assert codes == tuple(0 if kind == "none" else -9 for kind, _ in kills)
    assert list(counts) == sorted(counts)
    expected = harness.outputs("whole")
    assert len(expected) == 2 * (2 * len(harness.LABELS) - 1) * harness.TURNS
    assert harness.outputs("killed") == expected
    assert sorted(record["key"] for record in records.read("killed")) == sorted(expected)
    assert validation.check("killed") == []
    for name in ("run.yaml", "history.jsonl"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()


def test_records_say_where_figures_depend_on_the_order() -> None:
    asked = ("suffix", "suffix(warm=true)")
    assert run("--methods", *asked, "--limit", "1", "--out", "out") == 0
    for record in harness.of("out", "suffix", None):
        told = [line for line in record["warnings"] if "depend on the order" in line]
        assert len(told) == record["params"]["warm"]


class Flaky(Autoregressive):
    """Fails in decoding, in loading or at once, until it `works`."""

    name: ClassVar[str] = "flaky"
    fails: ClassVar[str] = ""

    @classmethod
    def unavailable(cls, target: TargetInfo, settings: Settings) -> str | None:  # noqa: ARG003
        return "no weights yet" if cls.fails == "unavailable" else None

    def __init__(self, target: TargetModel, settings: Settings) -> None:
        super().__init__(target, settings)
        if self.fails == "load":
            raise OSError("the disk is slow")

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        if self.fails == "interrupt":
            raise KeyboardInterrupt
        blocks = super().decode(prompt_ids, sampling)
        yield next(blocks)
        if self.fails == "decode":
            raise RuntimeError("out of luck")
        yield from blocks


@pytest.mark.parametrize(
    ("fails", "code", "count", "error"),
    [
        ("decode", 1, 2 * harness.TURNS, "RuntimeError: out of luck"),
        pytest.param("load", 1, 1, "OSError: the disk is slow"),
        pytest.param("unavailable", 0, 1, "no weights yet"),
    ],
)
def test_a_failure_is_tried_again_and_counts_until_it_works(
    fails: str, code: int, count: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Flaky)
    monkeypatch.setattr(Flaky, "fails", fails)
    flags = ("--methods", "flaky", "--out", "out")
    assert run(*flags) == code
    failed = harness.of("out", "flaky", None)
    assert [record["error"] for record in failed] == [error] * count
    assert all(record[name] is None for record in failed for name in FIGURES)
    size = len(records.read("out"))
    assert run(*flags) == code
    assert len(records.read("out")) == size  # the same failure is not recorded twice
    monkeypatch.setattr(Flaky, "fails", "")
    assert run(*flags) == 0
    assert len(records.read("out")) == size + 2 * harness.TURNS
    assert [r["status"] for r in harness.of("out", "flaky")] == ["ok"] * harness.TURNS
    assert validation.check("out") == []


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Flaky)
    monkeypatch.setattr(Flaky, "fails", "interrupt")
    flags = ("--methods", "flaky", "--out", "out")
    assert run(*flags) == 130
    assert "the same command continues this run" in capfd.readouterr().err
    monkeypatch.setattr(Flaky, "fails", "")
    assert run(*flags) == 0
    assert len(harness.outputs("out")) == 2 * 2 * harness.TURNS
    assert {r["method"] for r in harness.kept("out")} == {REFERENCE, "flaky"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="engines run on this machine")
def test_an_engine_that_cannot_run_falls_back_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--engine", "eager", "graph", "--limit", "1", "--out", "both") == 0
    reason = "graph cannot run here: CUDA graphs need a GPU, not cpu"
    assert f"{reason}; eager instead" in capsys.readouterr().err
    found = records.read("both")
    # The same cells as those of eager, so they were not run again.
    assert {r["engine"] for r in found} == {"eager", "stock"}
    assert not any(reason in r["warnings"] for r in found)
    assert run("--engine", "graph", "--limit", "1", "--out", "alone") == 0
    alone = [r for r in records.read("alone") if r["engine"] == "eager"]
    assert len(alone) == len([r for r in found if r["engine"] == "eager"])
    assert all(reason in r["warnings"] for r in alone)
