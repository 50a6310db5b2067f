"""chimera-bench: its list of commands, dispatch, program names, and the flags that all share."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.__main__ import COMMANDS, main
from reports import build
from tests.reports.fabricate import duel, write_run

ROOT = Path(__file__).resolve().parent.parent
OF_MODELS = ("run", "list", "audit", "cost", "tune", "distill", "train", "trees")
OF_METHODS = ("run", "list", "cost", "tune", "train", "compare")
OF_ONE_MODEL = ("tune", "distill", "train", "trees")


def shown(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The help that a command prints."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_alone_and_by_help_it_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert alone == shown(["--help"], capsys)
    for name, entry in COMMANDS.items():
        assert f"  {name:<9}{entry.help}\n" in alone
    assert max(map(len, alone.splitlines())) <= 80


def test_it_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {command.PROG: "bench.__main__:main"}


@pytest.mark.parametrize("argv", [["rnu"], ["--methods", "x"], ["Report"]])
def test_what_it_does_not_know_is_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_a_misspelt_command_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reprot"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'reprot'; did you mean 'report'?\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_names_the_program_as_it_was_called(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = COMMANDS[name]
    usage = f"usage: {command.PROG} {name} [-h] "
    assert shown([name, "--help"], capsys).startswith(usage)
    with pytest.raises(SystemExit):
        importlib.import_module(entry.module).main([*entry.arguments, "--help"])
    module = entry.module.removesuffix(".__main__")
    words = " ".join(["python -m", module, *(a for a in entry.arguments if a[0] != "-")])
    assert capsys.readouterr().out.startswith(f"usage: {words} ")


@pytest.mark.parametrize("name", sorted({*OF_MODELS, *OF_METHODS}))
def test_flags_have_one_name_in_all_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([name, "--help"], capsys)
    assert ("--models MODEL" in text or "--models [MODEL" in text) == (name in OF_MODELS)
    assert ("--methods " in text) == (name in OF_METHODS)
    assert "--model " not in text
    assert "--method " not in text


@pytest.mark.parametrize("name", OF_ONE_MODEL)
@pytest.mark.parametrize("flag", ["--models", "--model"])
def test_several_models_are_refused_where_one_is_taken(
    name: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, flag, "synthetic:tiny", "smollm2-135m"]) == 2
    said = f"error: --models takes one model in {command.PROG} {name}, not 2; run it once for each"
    assert capsys.readouterr().err.splitlines() == [said]


@pytest.mark.parametrize("flag", ["--models", "--model"])
@pytest.mark.parametrize("name", ["run", "cost", *OF_ONE_MODEL])
def test_the_singular_is_an_alias(
    name: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights", str(tmp_path / "none")] if name == "trees" else []
    data = ["--data", str(tmp_path / "none")] if name == "train" else []
    code = main([name, flag, "synthetic:nothing", *weights, *data])
    assert code == 2
    error = capsys.readouterr().err
    assert "synthetic:nothing" in error or str(tmp_path) in error


def test_a_report_is_built_by_either_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("results/a"), duel())
    write_run(Path("results/b"), duel())
    assert main(["report", "results/a"]) == 0
    assert main(["report", "results/a", "results/b"]) == 0
    assert main(["view", "results/a", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wrote results/a/index.html",
        "wrote results/index.html",
        "wrote results/a/answer.html",
    ]
    assert main(["compare", "results/a", "results/b", "--method", "fast"]) == 0
    assert "fast(n=3)" in capsys.readouterr().out
    assert main(["check", "results/a"]) in (0, 1)
    assert not Path("reports").exists()


def test_a_checkout_keeps_the_newest_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path("results/run")
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path)
    assert build.places([run]) == [run / "index.html"]
    monkeypatch.chdir(ROOT)
    assert build.places([run]) == [run / "index.html", Path("reports/index.html")]


def test_commands_on_records_import_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "run", duel())
    code = (
        "import sys; from bench.__main__ import main; "
        f"code = main(['report', {str(tmp_path / 'run')!r}]) or main([]) or main(['check', 'x']); "
        "sys.exit(10 * ('torch' in sys.modules) + code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False
    )
    assert ended.returncode == 2  # there is no x


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "bench", "list"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")
