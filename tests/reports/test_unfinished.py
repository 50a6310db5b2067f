"""Runs with fewer records than they plan: said by the check, on the page and in the comparison."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.records.__main__ import main as check
from reports import build, compare
from tests.reports.fabricate import Record, duel, failure, write_run
from tests.reports.test_clock import clocked_last

PLACE = ("prompt_id", "prompt_sha256", "repeat")


def settings(questions: int, turns: int | None = None, **changes: Any) -> str:
    """run.yaml of `clocked_last`."""
    made = {
        "temperature": [0.0],
        "repeats": 2,
        "engine": ["eager"],
        "limit": None,
        "provenance": {
            "models": ["tiny"],
            "methods": ["autoregressive", "transformers_generate", "fast(n=3)"],
            "prompts": {"mini": {"questions": questions, "turns": turns or questions}},
        },
    }
    return yaml.safe_dump(made | changes)


def older(**changes: Any) -> str:
    """run.yaml of `duel`, of a version that kept no numbers of prompts."""
    return settings(0, repeats=2, **{"provenance": {"methods": []}, **changes})


def said(folder: Path, lines: list[Record], text: str) -> list[str]:
    """What the page says is incomplete, in the words of the check too."""
    companions = {"run_yaml": text, "environment_json": "{}", "history_jsonl": ""}
    write_run(folder, lines, **companions)
    found = [one for one in build.load([folder]).notices if "incomplete" in one]
    assert all(one.endswith("; compared on the turns that all methods have") for one in found)
    return [one.partition(", ")[2].partition(";")[0] for one in found]


@pytest.mark.parametrize(
    ("lines", "text", "expected"),
    [
        (clocked_last(4), settings(4), None),
        (clocked_last(4), settings(6), "4 of 6 questions of mini (tiny on eager)"),
        (clocked_last(4)[:-1], settings(4), "3 of 4 questions of mini (tiny on eager)"),
        (clocked_last(4), settings(4, 8), "0 of 4 questions of mini (tiny on eager)"),
        (clocked_last(4), settings(4, 6), "4 of 6 turns of mini (tiny on eager)"),
        (duel(4), older(), None),
        (duel(4), older(limit=6), "4 of 6 questions of mini (tiny on eager)"),
        (duel(4)[:-1], older(), "3 of 4 questions of mini (tiny on eager)"),
        (duel(4)[:-1], "{}", None),  # nothing is known
    ],
)
def test_what_is_missing_is_said(
    lines: list[Record],
    text: str,
    expected: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = [] if expected is None else [f"incomplete: {expected}"]
    assert said(tmp_path / "run", lines, text) == wanted
    check(["check", str(tmp_path / "run")])
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "incomplete" in line] == [
        f"{tmp_path / 'run'}: {line}" for line in wanted
    ]


def test_a_method_that_cannot_run_or_fails_lacks_nothing(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("prompt_id", "turn", "repeat", "prompt_sha256", "category"))
    lines = [line for line in clocked_last(4) if line["method"] != "fast"]
    skipped = failure("fast", "no weights", "skipped", params={"n": 3}, **nowhere)
    assert said(tmp_path / "run", [*lines, skipped], settings(4)) == []
    failed = [
        line
        if line["method"] != "fast"
        else failure("fast", "out of luck", **{n: line[n] for n in (*PLACE, "params", "clock")})
        for line in clocked_last(4)
    ]
    assert said(tmp_path / "other", failed, settings(4)) == []


def test_models_and_engines_that_were_not_begun_are_named(tmp_path: Path) -> None:
    text = yaml.safe_load(settings(4, engine=["graph", "compile"]))
    text["provenance"]["models"] = ["tiny", "large"]
    lines = [
        line if line["engine"] == "stock" else line | {"engine": "graph"}
        for line in clocked_last(4)
    ]
    (line,) = said(tmp_path / "run", lines, yaml.safe_dump(text))
    assert line == (
        "incomplete: 0 of 4 questions of mini (tiny on compile, large on graph, large on compile)"
    )


def test_an_engine_that_fell_back_is_not_missing(tmp_path: Path) -> None:
    assert said(tmp_path / "run", clocked_last(4), settings(4, engine=["compile"])) == []
    both = settings(4, engine=["eager", "compile"])
    assert said(tmp_path / "other", clocked_last(4), both) == []


def test_methods_are_compared_on_the_turns_that_all_have(tmp_path: Path) -> None:
    """The run was killed in question 3: its reference and stock row are there, slow, `fast` not."""
    lines = clocked_last(4)
    lines = [r for r in lines if r["prompt_id"] < 3 or (r["repeat"] == 0 and r["method"] != "fast")]
    folder = write_run(tmp_path / "run", lines, run_yaml=settings(4))
    page = build.load([folder])
    assert set(page.records["prompt_id"]) == {0, 1, 2}
    assert len(page.records) == len(clocked_last(3))
    whole = write_run(tmp_path / "whole", lines)  # without settings nothing is left out
    assert len(build.load([whole]).records) == len(lines)


def test_the_comparison_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", clocked_last(13), run_yaml=settings(16))
    b = write_run(tmp_path / "b", clocked_last(16), run_yaml=settings(16))
    assert compare.main([str(a), str(b)]) == 0
    printed = capsys.readouterr().out
    assert "note: A, a, incomplete: 13 of 16 questions of mini (tiny on eager)" in printed
    assert "26 pairs, 13 questions" in printed
    assert "note: B" not in printed


def test_tuning_questions_are_not_missed(tmp_path: Path) -> None:
    text = yaml.safe_load(settings(4))
    text["provenance"]["prompts"]["tuning"] = {"questions": 8, "turns": 8}
    assert said(tmp_path / "run", clocked_last(4), yaml.safe_dump(text)) == []
