"""Settings: flags, files and presets, and a run's run.yaml fed back."""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml

from bench import cli, environment
from bench.errors import UsageError
from bench.questions import registry
from bench.questions.registry import QuestionSet, Source
from bench.run import config, methods
from bench.run.__main__ import main
from bench.run.config import RunConfig
from bench.targets import synthetic
from tests import harness
from tests.harness import run

VALUES: dict[str, Any] = {
    "models": ["synthetic:tiny", "synthetic:predictable"],
    "methods": ["lookahead(n=4)", "prompt_lookup"],
    "datasets": ["tuning"],
    "limit": 3,
    "turns": 1,
    "max_new_tokens": 7,
    "temperature": [0.5, 1.0],
    "top_k": 5,
    "top_p": 0.25,
    "repeats": 2,
    "seed": 11,
    "engine": ["eager"],
    "device": "cpu",
    "parallel": "layers",
    "dtype": "bfloat16",
    "checkpoint": ["lookahead=weights"],
    "tree": "paper",
    "chat_template": "vicuna",
    "history": "history.jsonl",
    "data_dir": "data",
    "out": "there",
    "resume": False,
    "report": False,
    "preset": "quick",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.work_in(tmp_path, monkeypatch)


def parsed(*argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser, RunConfig)
    return vars(parser.parse_args(argv))


def flags_of(name: str, value: object) -> list[str]:
    flag = cli.flag(name)
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def written(content: Mapping[str, Any] | str, name: str = "settings.yaml") -> Path:
    path = Path(name)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(dict(content)))
    return path


def folder_of(*flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The run folder that a dry run names."""
    assert run("--dry-run", *flags) == 0
    return capsys.readouterr().out.splitlines()[0].removeprefix("run folder").strip()


# One schema


@pytest.mark.parametrize("name", [field.name for field in fields(RunConfig)])
def test_every_setting_is_a_flag_and_a_key_of_the_file(name: str) -> None:
    value = VALUES[name]
    by_flag, _ = config.resolve(parsed(*flags_of(name, value)))
    by_file, _ = config.resolve({}, written({name: value}))
    assert by_flag == by_file
    assert getattr(by_flag, name) == value
    if name != "preset":
        assert by_flag == replace(RunConfig(), **{name: value})
    assert type(getattr(by_flag, name)) is type(value)


def test_no_flags_give_the_defaults() -> None:
    assert parsed() == {}
    assert config.resolve({}) == (RunConfig(), {})


def test_one_value_of_a_list_needs_no_brackets_and_whole_numbers_are_numbers() -> None:
    resolved, _ = config.resolve({}, written("temperature: 1\nmodels: synthetic:tiny\ntop_p: 1\n"))
    assert resolved.temperature == [1.0]
    assert resolved.models == ["synthetic:tiny"]
    assert all(type(number) is float for number in (*resolved.temperature, resolved.top_p))


def test_flag_beats_file_beats_preset_beats_default() -> None:
    settings = written({"preset": "quick", "max_new_tokens": 9, "seed": 4})
    quick, _ = config.resolve({"preset": "quick"})
    assert quick.max_new_tokens != RunConfig().max_new_tokens
    by_file, _ = config.resolve({}, settings)
    assert (by_file.max_new_tokens, by_file.seed, by_file.limit) == (9, 4, quick.limit)
    by_flag, _ = config.resolve(parsed("--max-new-tokens", "5"), settings)
    assert (by_flag.max_new_tokens, by_flag.seed, by_flag.limit) == (5, 4, quick.limit)
    assert by_flag.top_p == RunConfig().top_p


def test_null_in_a_file_lifts_what_a_preset_limits() -> None:
    resolved, _ = config.resolve({"preset": "quick"}, written({"limit": None}))
    assert resolved.limit is None


def test_a_flag_may_choose_another_preset_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "presets", lambda: ["quick"])
    with pytest.raises(UsageError, match="unknown preset 'long'; choose one of quick"):
        config.resolve({}, written({"preset": "long"}))
    resolved, _ = config.resolve({"preset": "quick"}, written({"preset": "long"}))
    assert resolved.preset == "quick"


# Invalid files


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"modles": ["a"]}, "unknown setting 'modles'; did you mean 'models'?"),
        ({"max-new-tokens": 8}, "unknown setting 'max-new-tokens'; did you mean 'max_new_tokens'?"),
        ({"xyz": 1}, "unknown setting 'xyz'; choose one of models, methods"),
        ({1: 2}, "unknown setting 1; choose one of"),
        ({"limit": "eight"}, "limit must be of type int, not 'eight'"),
        ({"limit": True}, "limit must be of type int, not True"),
        ({"limit": 1.5}, "limit must be of type int, not 1.5"),
        ({"limit": [1]}, r"limit must be of type int, not \[1\]"),
        ({"seed": None}, "seed must be of type int, not None"),
        ({"models": None}, "models must be of type str, not None"),
        ({"models": {"a": "b"}}, "models must be of type str"),
        ({"methods": [{"lookahead": 5}]}, "methods must be of type str"),
        ({"temperature": [0.5, "hot"]}, "temperature must be of type float, not 'hot'"),
        ({"top_p": "0.5"}, "top_p must be of type float"),
        ({"resume": "no"}, "resume must be of type bool, not 'no'"),
        ({"preset": 3}, "preset must be of type str"),
        ("- a\n- b\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("a: [", "is not YAML: .* line 1"),
        ("a: !!python/object:os.system {}", "is not YAML"),
        ({"provenance": [1]}, "provenance must be a mapping"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(
    content: Mapping[str, Any] | str, complaint: str
) -> None:
    with pytest.raises(UsageError, match=rf"settings\.yaml:? .*{complaint}") as caught:
        config.resolve({}, written(content))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match=r"cannot read settings\.yaml: No such file"):
        config.resolve({}, Path("settings.yaml"))
    with pytest.raises(UsageError, match=r"cannot read \.: Is a directory"):
        config.resolve({}, Path())
    Path("bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match=r"bytes\.yaml is not YAML"):
        config.resolve({}, Path("bytes.yaml"))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"limit": 0}, "--limit must be at least 1, not 0"),
        ({"turns": 0}, "--turns must be at least 1"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
        ({"repeats": -1}, "--repeats must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"top_k": -1}, "--top-k must be at least 0"),
        ({"top_p": 0.0}, "--top-p must be above 0"),
        ({"top_p": float("nan")}, "--top-p must be above 0"),
        ({"temperature": [float("nan")]}, "--temperature must be a number of at least 0"),
        ({"temperature": [float("inf")]}, "--temperature must be a number of at least 0"),
        ({"temperature": [1.0, -0.5]}, "--temperature must be a number of at least 0, not -0.5"),
        ({"temperature": [1.0, 1.0]}, "--temperature names something twice"),
        ({"models": []}, "--models needs at least one value"),
        ({"models": ["a", "a"]}, "--models names something twice"),
        ({"engine": ["warp"]}, "--engine 'warp': choose from eager"),
        ({"dtype": "int8"}, "--dtype 'int8': choose from auto, float32"),
    ],
)
def test_values_that_no_run_can_have(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        replace(RunConfig(), **settings)


@pytest.mark.parametrize("name", config.presets())
def test_presets_hold_good_settings(name: str) -> None:
    resolved, provenance = config.resolve({"preset": name})
    assert resolved.preset == name
    assert provenance == {}
    assert resolved != replace(RunConfig(), preset=name)


# run.yaml fed back


def test_run_yaml_fed_back_continues_the_run() -> None:
    assert run("--temperature", "0", "1", "--top-p", "0.9", "--seed", "7", "--limit", "2") == 0
    (folder,) = Path("results").iterdir()
    before = harness.contents(Path("results"))
    with harness.one_thread():
        assert main(["--config", str(folder / "run.yaml"), "--no-report"]) == 0
    assert harness.contents(Path("results")) == before
    assert len(harness.kept(folder)) == 2 * 2 * len(harness.LABELS) * 2


def test_run_yaml_of_a_preset_resolves_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "quick", "--limit", "3"]
    first = folder_of(*flags, capsys=capsys)
    assert main(["--preset", "quick", "--limit", "3", "--dry-run"]) == 0
    settings = capsys.readouterr().out.partition("\n\n")[2]
    assert main(["--config", str(written(settings)), "--dry-run"]) == 0
    assert capsys.readouterr().out.partition("\n\n")[2] == settings
    assert first.startswith("results/synthetic-predictable-")


def test_the_folder_is_named_after_the_model_and_the_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [
        folder_of(*flags, capsys=capsys)
        for flags in ([], [], ["--seed", "1"], ["--models", "synthetic:tiny"])
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert names[0].startswith("results/synthetic-predictable-")
    assert names[3].startswith("results/synthetic-tiny-")
    both = folder_of("--models", "synthetic:tiny", "synthetic:predictable", capsys=capsys)
    assert both.startswith("results/synthetic-tiny-and-1-more-")
    assert folder_of("--out", "there", capsys=capsys) == "there"
    # Local options are not settings of the run.
    assert folder_of("--report", "--data-dir", ".", capsys=capsys) == names[0]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_folder_does_not_depend_on_where_the_questions_lie(
    capsys: pytest.CaptureFixture[str], elsewhere: bool
) -> None:
    here = folder_of(capsys=capsys)
    path = Path(harness.QUESTIONS).resolve()
    if elsewhere:
        Path("sub").mkdir()
        path = Path(shutil.move(path, "sub"))
    assert folder_of("--datasets", str(path), capsys=capsys) == here


def test_a_dry_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = harness.contents(tmp_path)
    assert run("--dry-run", "--limit", "2", "--turns", "1") == 0
    assert harness.contents(tmp_path) == before
    text = capsys.readouterr().out
    for label in harness.LABELS:
        assert f"method      {label}" in text
    assert "set         asked: 2 questions, 2 turns" in text


TOY = b'{"question_id": 1, "category": "math", "turns": ["how much?", "and now?"]}\n'


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> QuestionSet:
    """A registered set that is found in a data folder."""
    source = Source("someone/questions", "0" * 40, "toy.jsonl")
    entry = QuestionSet("toy", source, hashlib.sha256(TOY).hexdigest(), "Apache-2.0", 1, "one")
    monkeypatch.setattr(registry, "REGISTRY", MappingProxyType({"toy": entry}))
    return entry


@pytest.mark.usefixtures("toy")
def test_no_local_path_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "toy.jsonl").write_bytes(TOY)
    sets = ["--datasets", str(tmp_path / harness.QUESTIONS), "toy", "--data-dir", str(data)]
    first, second = tmp_path / "one" / "first", tmp_path / "one" / "second"
    assert run(*sets, "--out", str(first)) == 0
    assert run(*sets, "--out", str(second), "--history", str(first / "history.jsonl")) == 0
    for folder in (first, second):
        names = {"run.yaml", "environment.json", "records.jsonl", "history.jsonl", "audit.json"}
        files = harness.contents(folder)
        assert {*names, "prompts.jsonl"} == set(files)
        for name, content in files.items():
            assert str(tmp_path).encode() not in content, name
            assert str(Path.home()).encode() + b"/" not in content, name
    settings = yaml.safe_load((second / "run.yaml").read_text())
    assert settings["datasets"] == [harness.QUESTIONS, "toy"]
    assert not {"history", "data_dir", "out"} & set(settings)
    answers = (first / "history.jsonl").read_bytes()
    assert settings["provenance"]["history_sha256"] == hashlib.sha256(answers).hexdigest()


def test_a_path_below_home_is_local_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = synthetic.build("synthetic:tiny", "cpu", torch.float32)
    model.save_pretrained(tmp_path / "secret")
    tokenizer.save_pretrained(tmp_path / "secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("--models", os.path.join("~", "secret"), "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out.partition("\n\n")[2])["models"] == ["secret"]


def test_changed_questions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", "run") == 0
    before = harness.contents(Path("run"))
    changed = [*harness.ROWS[:2], {**harness.ROWS[2], "turns": ["count to two", "again"]}]
    harness.ask(Path(harness.QUESTIONS), changed)
    capsys.readouterr()
    assert main(["--config", "run/run.yaml", "--out", "run"]) == 2
    assert "error: question set 'asked' has sha256 " in capsys.readouterr().err
    assert harness.contents(Path("run")) == before


def test_the_history_of_a_fed_back_run_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", "one", "--limit", "1") == 0
    assert run("--out", "two", "--limit", "1", "--history", "one/history.jsonl") == 0
    before = harness.contents(Path("two"))
    capsys.readouterr()
    fed_back = ["--config", "two/run.yaml", "--out", "two", "--no-report"]
    assert main(fed_back) == 2
    assert "pass that run's history.jsonl as --history" in capsys.readouterr().err
    with harness.one_thread():
        assert main([*fed_back, "--history", "one/history.jsonl"]) == 0
    assert harness.contents(Path("two")) == before


@pytest.mark.parametrize("provenance", [{"datasets": None}, {"datasets": [1]}, {"datasets": "x"}])
def test_a_damaged_provenance_is_one_line(
    provenance: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"datasets": [harness.QUESTIONS], "models": ["synthetic:tiny"]}
    path = written({**settings, "provenance": provenance})
    assert main(["--config", str(path), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "provenance" in line


def test_run_yaml_and_the_environment_say_what_ran() -> None:
    assert run("--out", "run", "--limit", "1", "--turns", "1", "--methods", "lookahead(n=4)") == 0
    settings = yaml.safe_load(Path("run/run.yaml").read_text())
    assert (settings["device"], settings["dtype"]) == ("cpu", "float32")
    found = settings["provenance"]
    assert found["methods"] == ["autoregressive", "lookahead(n=4,w=7,g=7,prompt=true)"]
    questions = Path(harness.QUESTIONS).read_bytes()
    assert found["datasets"] == {"asked": hashlib.sha256(questions).hexdigest()}
    environment = json.loads(Path("run/environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["datasets"] == found["datasets"]


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fma avx2", "float32"),
        ("avx2 avx512_bf16", "bfloat16"),
        ("amx_bf16 amx_tile", "bfloat16"),
        ("", "float32"),
    ],
)
def test_auto_takes_the_dtype_that_the_processor_multiplies_fast(
    flags: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset(flags.split()))
    assert environment.settled("cpu", "auto") == ("cpu", dtype)
    assert environment.settled("cpu", "float16") == ("cpu", "float16")
    assert environment.settled("cuda", "auto") == ("cuda", "bfloat16")
    assert environment.dtype_reason("cpu").startswith(dtype)


def test_a_preset_has_methods_for_the_device_and_the_dtype() -> None:
    chosen = {}
    for device, dtype in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda:1", "bfloat16")):
        flags: dict[str, Any] = {"preset": "quick", "device": device, "dtype": dtype}
        resolved, _ = config.resolve(flags)
        assert resolved.engine == ["compile"]
        chosen[device, dtype] = tuple(resolved.methods)
        names = [methods.parse(text)[0] for text in resolved.methods]
        assert {"medusa", "chimera", "chimera_plus"} < set(names)
        methods.resolve(resolved.methods, [], None)
    assert len(set(chosen.values())) == 3
    flags |= {"methods": ["lookahead"]}
    assert config.resolve(flags)[0].methods == ["lookahead"]


def test_a_preset_without_methods_for_a_dtype_takes_the_defaults() -> None:
    resolved, _ = config.resolve({"preset": "quick", "device": "cpu", "dtype": "float16"})
    assert resolved.methods == RunConfig().methods
