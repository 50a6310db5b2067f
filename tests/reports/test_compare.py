"""Two runs compared: what changed, by how much, with intervals, and the exit code."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.errors import UsageError
from reports import compare
from reports.measures import changes
from tests.reports.fabricate import Record, failure, record, stock, write_run
from tests.reports.frames import frame
from tests.reports.studies import example, write_study


def turns(
    seed: int,
    slower: float = 1.0,
    machine: float = 1.0,
    noise: float = 0.02,
    questions: int = 12,
    repeats: int = 3,
    **changes: Any,
) -> list[Record]:
    """The reference, and `fast(n=3)`, twice as fast over `slower`, on a machine with noise."""
    draw = random.Random(seed)
    found = []
    for question in range(questions):
        for repeat in range(repeats):
            shared: Record = {
                "prompt_id": question,
                "prompt_sha256": f"{question:02x}",
                "repeat": repeat,
                **changes,
            }

            def spent(seconds: float) -> float:
                return seconds * machine * draw.gauss(1, noise)

            fast = {"params": {"n": 3}, "accept_lengths": [3, 1], "drafted": 6}
            found += [
                record(decode_s=spent(4.0), **shared),
                record("fast", decode_s=spent(2.0 * slower), **fast, **shared),
            ]
    return found


def runs(tmp_path: Path, before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """Two folders of one name, as a build and its last sound state leave them."""
    return [
        str(write_run(tmp_path / place / "run", lines))
        for place, lines in (("before", before), ("after", after))
    ]


def row(tmp_path: Path, folders: Sequence[str], *flags: str) -> tuple[int, dict[str, Any]]:
    """(exit code, the row of `fast`)."""
    out = tmp_path / "out.json"
    code = compare.main([*folders, *flags, "--json", str(out)])
    content = json.loads(out.read_text(encoding="utf-8"))
    (found,) = [one for one in content["rows"] if one["label"] == "fast(n=3)"]
    return code, found


def test_a_slower_row_fails_and_says_by_how_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = runs(tmp_path, turns(1), turns(2, slower=1.2))
    code, found = row(tmp_path, folders, "--fail-slower", "5%")
    assert code == 1
    assert found["slower"] is True
    assert found["change"] == pytest.approx(0.2, abs=0.03)
    assert 0.1 < found["low"] < found["change"] < found["high"] < 0.3
    assert found["a"] == pytest.approx(2.0, rel=0.03)
    assert found["b"] == pytest.approx(2.0 / 1.2, rel=0.03)
    assert (found["pairs"], found["questions"]) == (36, 12)
    said = capsys.readouterr().out
    assert "2.00x -> 1.67x" in said.replace("1.99x", "2.00x").replace("1.66x", "1.67x")
    assert "SLOWER BY SIGNIFICANTLY MORE THAN 5 %" in said
    assert "slower by significantly more than 5 %: 1 of 1 row" in said
    assert "own reference" in said
    assert compare.main([*folders, "--fail-slower", "0.3"]) == 0
    assert compare.main(folders) == 0  # a look fails nothing


def test_the_same_speed_passes(tmp_path: Path) -> None:
    folders = runs(tmp_path, turns(1), turns(2))
    code, found = row(tmp_path, folders, "--fail-slower", "5%")
    assert code == 0
    assert found["low"] < 0 < found["high"]


def test_random_weights_have_no_speedup_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = runs(tmp_path, turns(1, model="synthetic:tiny"), turns(2, model="synthetic:tiny"))
    assert compare.main(folders) == 2
    assert "random weights, which have no speedup; compare seconds per token with --absolute" in (
        capsys.readouterr().err
    )
    assert compare.main([*folders, "--absolute"]) == 0


def test_noise_alone_fails_strictly_only(tmp_path: Path) -> None:
    few: dict[str, Any] = {"noise": 0.3, "questions": 4}
    folders = runs(tmp_path, turns(1, **few), turns(5, 1.3, **few))
    code, found = row(tmp_path, folders, "--fail-slower", "1%")
    assert found["low"] < 0.01 < found["change"]
    assert code == 0
    assert row(tmp_path, folders, "--fail-slower", "1%", "--strict")[0] == 1


def test_a_slower_machine_is_no_slower_method(tmp_path: Path) -> None:
    folders = runs(tmp_path, turns(1), turns(2, machine=1.5))
    assert row(tmp_path, folders, "--fail-slower", "5%")[0] == 0
    code, found = row(tmp_path, folders, "--fail-slower", "5%", "--absolute")
    assert code == 1
    assert found["change"] == pytest.approx(0.5, abs=0.05)
    assert found["a"] == pytest.approx(0.5, rel=0.05)  # seconds per token


def test_the_references_are_shown_and_decide_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = runs(tmp_path, turns(1, noise=0), turns(1, machine=1.5, noise=0))
    assert compare.main([*folders, "--fail-slower", "5%"]) == 0
    said = capsys.readouterr().out
    assert "The references themselves, in seconds per token (not part of the comparison)" in said
    assert "1000.000 ms -> 1500.000 ms" in said
    assert "+50.0 % [+45.7, +54.5]" in said  # 1.5 % between runs is noise
    assert "The references changed" in said


def test_faster_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = runs(tmp_path, turns(1), turns(2, slower=0.8))
    code, found = row(tmp_path, folders, "--fail-slower", "0%", "--strict")
    assert code == 0
    assert found["high"] < 0
    assert "  faster  " in capsys.readouterr().out


def test_turns_are_paired_by_question_and_repeat(tmp_path: Path) -> None:
    # Questions differ tenfold, and one run holds half of them, and one repeat.
    def uneven(line: Record) -> Record:
        return line | {"decode_s": line["decode_s"] * (1 + 3 * line["prompt_id"])}

    before = [uneven(line) for line in turns(1, noise=0.001)]
    after = [
        uneven(line)
        for line in turns(2, slower=1.1, noise=0.001)
        if line["prompt_id"] < 6 and line["repeat"] == 1
    ]
    _, found = row(tmp_path, runs(tmp_path, before, after), "--absolute")
    assert (found["pairs"], found["questions"]) == (6, 6)
    assert found["change"] == pytest.approx(0.1, abs=0.005)


def test_one_question_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = runs(tmp_path, turns(1, questions=1), turns(2, slower=2.0, questions=1))
    code, found = row(tmp_path, folders, "--fail-slower", "5%")
    assert (code, found["low"]) == (0, None)
    assert "[no interval]" in capsys.readouterr().out
    assert row(tmp_path, folders, "--fail-slower", "5%", "--strict")[0] == 1


def test_what_differs_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = runs(tmp_path, turns(1), turns(2, device="a card", package_version="0.2.0"))
    for place, driver in zip(places, ("1.0", "2.0"), strict=True):
        environment = {"python": "3.11", "cuda": {"driver": driver}, "memory_bytes": len(place)}
        Path(place, "environment.json").write_text(json.dumps(environment), encoding="utf-8")
        Path(place, "run.yaml").write_text(f"limit: {driver[0]}\n", encoding="utf-8")
    assert compare.main(places) == 0
    said = capsys.readouterr().out
    for line in (
        "  Different device: cpu (A); a card (B)\n",
        "  Different package: 0.1.0 (A); 0.2.0 (B)\n",
        "  Different driver: 1.0 (A); 2.0 (B)\n",
        "  Different setting limit: 1 (A); 2 (B)\n",
        "  For the record: memory_bytes\n",
    ):
        assert line in said
        assert said.index(line) < said.index("Compared: ")
    assert "Python" not in said


def test_nothing_that_differs_is_said_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main(runs(tmp_path, turns(1), turns(2)))
    assert "Settings and environment: the same" in capsys.readouterr().out


def test_rows_of_one_run_alone_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [record("gone", prompt_id=at, prompt_sha256=f"{at:02x}") for at in range(3)]
    failed = failure("gone", "RuntimeError: boom", prompt_id=0, prompt_sha256="00")
    new = stock(prompt_id=0, prompt_sha256="00")
    folders = runs(tmp_path, [*turns(1), *gone], [*turns(2), failed, new])
    assert compare.main([*folders, "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "only in A: gone on tiny mini eager T=0: it failed in B, RuntimeError: boom\n" in said
    assert "only in B: transformers_generate on tiny mini stock T=0\n" in said
    content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [one["label"] for one in content["only_before"]] == ["gone"]
    assert [one["label"] for one in content["only_after"]] == ["transformers_generate"]


def test_methods_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = [line | {"method": "slow"} for line in turns(3, 1.5) if line["method"] == "fast"]
    slow = [line | {"key": f"ab{line['key'][2:]}"} for line in slow]
    quick = [line | {"method": "slow"} for line in turns(4) if line["method"] == "fast"]
    quick = [line | {"key": f"ab{line['key'][2:]}"} for line in quick]
    folders = runs(tmp_path, [*turns(1), *quick], [*turns(2), *slow])
    five = ["--fail-slower", "5%"]
    assert compare.main([*folders, *five]) == 1
    assert compare.main([*folders, *five, "--method", "fast"]) == 0
    assert compare.main([*folders, *five, "--method", "slow(n=3)", "fast"]) == 1
    capsys.readouterr()
    assert compare.main([*folders, "--method", "quick"]) == 2
    assert "--methods 'quick' is in no run; they hold " in capsys.readouterr().err


def test_rows_that_would_look_alike_stay_apart(tmp_path: Path) -> None:
    def both(seed: int, slower: float) -> list[Record]:
        half = turns(seed, slower, dtype="bfloat16")
        return [*turns(seed), *half]

    folders = runs(tmp_path, both(1, 1.0), both(2, 1.5))
    out = tmp_path / "out.json"
    assert compare.main([*folders, "--fail-slower", "10%", "--json", str(out)]) == 1
    found = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert {one["dtype"]: one["slower"] for one in found} == {"float32": False, "bfloat16": True}


def test_damaged_lines_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = runs(tmp_path, turns(1), turns(2))
    with open(Path(folders[1], "records.jsonl"), "a", encoding="utf-8") as file:
        file.write("{junk\n")
    assert compare.main(folders) == 0
    assert "note: B, run: 1 line of records.jsonl left out, not JSON" in capsys.readouterr().out


def test_the_same_runs_give_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = runs(tmp_path, turns(1), turns(2))
    said = []
    for _ in range(2):
        compare.main(folders)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


# Engines


def engines(seed: int, slower: float = 1.0, machine: float = 1.0) -> list[Record]:
    """`turns` on eager, and on compile four times as fast, but for `fast`, twice."""
    quick = turns(seed, 2.0 * slower, machine / 4, engine="compile")
    return [*turns(seed + 100, slower, machine), *quick]


def test_engines_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_run(tmp_path / "run", engines(1)))
    out = tmp_path / "out.json"
    assert compare.main([folder, "--engines", "eager", "compile", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"A: {folder}, 144 records\n\nCompared: seconds per token")
    assert "What differs" not in said
    assert "The references themselves" not in said
    rows = {one["label"]: one for one in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert set(rows) == {"autoregressive", "fast(n=3)"}
    for label, ratio in (("autoregressive", 0.25), ("fast(n=3)", 0.5)):
        assert f"{label} on tiny mini eager -> compile T=0" in said
        assert rows[label]["change"] + 1 == pytest.approx(ratio, rel=0.03)
        assert rows[label]["low"] < rows[label]["change"] < rows[label]["high"]
        assert rows[label]["verdict"] == "faster"
        assert rows[label]["pairs"] == 36
    assert compare.main([folder, "--engines", "compile", "eager", "--fail-slower", "50%"]) == 1
    assert compare.main([folder, "--engines", "compile", "eager", "--fail-slower", "400%"]) == 0


def test_engines_of_two_runs(tmp_path: Path) -> None:
    folders = runs(tmp_path, turns(1), turns(2, slower=1.5, engine="compile"))
    code, found = row(tmp_path, folders, "--engines", "eager", "compile", "--fail-slower", "10%")
    assert code == 1
    assert found["change"] == pytest.approx(0.5, rel=0.1)
    assert found["engine"] == "eager -> compile"


# Runs that did not change


def steady(questions: int = 12, repeats: int = 3, methods: int = 4) -> pd.DataFrame:
    """Prepared records of a reference and methods on a machine without noise."""
    lines = []
    for question in range(questions):
        for repeat in range(repeats):
            same: Record = {"prompt_id": question, "prompt_sha256": f"{question:02x}"}
            lines.append(record(decode_s=4.0, repeat=repeat, **same))
            lines += [
                record(f"m{method}", decode_s=2.0, repeat=repeat, **same)
                for method in range(methods)
            ]
    return frame(lines)


def measured(
    records: pd.DataFrame, noise: np.random.Generator, between: float, slow: float = 1.0
) -> pd.DataFrame:
    """The same on a real machine: single answers vary by 3 %, the machine by 10 % from run to run,
    methods apart by `between` from run to run and by 0.5 % within one. `m0` is `slow`."""
    label, repeat = records["label"].to_numpy(), records["repeat"].to_numpy(dtype=int)
    names, of = np.unique(label, return_inverse=True)
    logs = noise.normal(0, 0.03, len(records)) + noise.normal(0, 0.1)
    logs += noise.normal(0, between, len(names))[of]
    logs += noise.normal(0, 0.005, (len(names), repeat.max() + 1))[of, repeat]
    factor = np.exp(logs) * np.where(label == "m0", slow, 1.0)
    return records.assign(decode_s=records["decode_s"] * factor)


RUNS = 20


@pytest.mark.parametrize(
    ("a", "b", "between"),
    [(1, 1, 0.0075), pytest.param(2, 2, 0.02, marks=pytest.mark.slow)],
)
def test_unchanged_runs_look_changed_once_in_twenty(a: int, b: int, between: float) -> None:
    """Noise between runs as assumed, or more than that and measured."""
    records, noise = steady(), np.random.default_rng(5)
    alarms = alone = 0
    for _ in range(RUNS):
        sides = [[measured(records, noise, between) for _ in range(n)] for n in (a, b)]
        rows = changes.changes(sides[0], sides[1], absolute=False).rows
        alarms += bool((rows["p"] < 0.05).any())
        row = answers_alone(sides[0][0], sides[1][0])
        alone += bool(((row["low"] > 0) | (row["high"] < 0)).any())
    assert alarms <= 0.05 * RUNS + 1
    assert alone > 0.15 * RUNS, "the control: single answers do not show the noise"


def answers_alone(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Rows as if nothing varied but single answers, each row by itself."""
    names = a["prompt_id"].astype(str) + "-" + a["repeat"].astype(str)
    once = [run.assign(prompt_id=names, repeat=0) for run in (a, b)]
    return changes.changes([once[0]], [once[1]], absolute=False, noise=0.0).rows


@pytest.mark.parametrize(("a", "b", "between"), [(1, 1, 0.0075), (3, 1, 0.005)])
def test_a_tenth_slower_is_found(a: int, b: int, between: float) -> None:
    records, noise = steady(), np.random.default_rng(6)
    found = others = 0
    for _ in range(10):
        before = [measured(records, noise, between) for _ in range(a)]
        after = [measured(records, noise, between, slow=1.1) for _ in range(b)]
        rows = changes.changes(before, after, absolute=False).rows.set_index("label")
        slow = rows.loc[["m0"]]
        found += bool(((slow["p"] < 0.05) & (slow["change"] > 0)).all())
        others += bool((rows.drop(index="m0")["p"] < 0.05).any())
    assert found >= 9
    assert others <= 1


def test_repeats_show_drift_within_a_run() -> None:
    """In run B every method but the reference is a tenth slower throughout one of three repeats."""
    records = steady()
    one = (records["repeat"] == 1) & ~records["reference"]
    drifted = records.assign(decode_s=records["decode_s"] * np.where(one, 1.1, 1.0))
    found = changes.changes([records], [drifted], absolute=False)
    assert found.between_repeats == pytest.approx(0.1 / 3, rel=0.1)
    assert found.rows["change"].to_numpy() == pytest.approx(np.full(4, 0.1 / 3), rel=0.01)
    assert (found.rows["p"] > 0.05).all()


def test_further_runs_measure_the_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = runs(tmp_path, turns(1), turns(2, slower=1.05))
    code, plain = row(tmp_path, folders, "--fail-slower", "0%")
    assert code == 1
    assert (
        "between runs 1.5 %, as assumed (--also-a, --also-b measure it)" in capsys.readouterr().out
    )
    again = [
        str(write_run(tmp_path / n, turns(at, s))) for n, at, s in (("x", 3, 1.1), ("y", 4, 0.9))
    ]
    flags = ("--also-a", *again, "--fail-slower", "0%")
    code, noisy = row(tmp_path, folders, *flags)
    assert code == 0
    assert ", as measured" in capsys.readouterr().out
    assert noisy["error"] > 3 * plain["error"]
    code, quiet = row(tmp_path, folders, "--noise", "0.1%", "--fail-slower", "0%")
    assert code == 1
    assert quiet["error"] < plain["error"]


def test_one_repeat_says_what_it_cannot_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main(runs(tmp_path, turns(1, repeats=1), turns(2, repeats=1)))
    assert "drift within a run is unknown (run with --repeats 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "value"),
    [("5%", 0.05), ("0.05", 0.05), (" 5 % ", 0.05), ("0", 0.0), (".5", 0.5), ("120%", 1.2)],
)
def test_shares(text: str, value: float) -> None:
    assert compare.share(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "5", "-5%", "five", "5%%", "nan", "inf", "1e9%", "0,05", "٥%"]
)
def test_what_is_no_share_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="write it as 5%"):
        compare.share(text)
    assert compare.main([*runs(tmp_path, turns(1), turns(2)), f"--fail-slower={text}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --fail-slower ")


def same_folder(folders: list[str]) -> list[str]:
    return [folders[0], folders[0]]


def no_folder(folders: list[str]) -> list[str]:
    return [folders[0], f"{folders[1]}-missing"]


def one_folder(folders: list[str]) -> list[str]:
    return folders[:1]


def a_study(folders: list[str]) -> list[str]:
    return [folders[0], str(write_study(Path(folders[1]).parent / "study", example()))]


def other_rows(folders: list[str]) -> list[str]:
    write_run(Path(folders[1]), turns(1, model="other"))
    return folders


def no_reference(folders: list[str]) -> list[str]:
    write_run(Path(folders[1]), [line for line in turns(1) if line["method"] == "fast"])
    return folders


def strict_alone(folders: list[str]) -> list[str]:
    return [*folders, "--strict"]


def into_a_folder(folders: list[str]) -> list[str]:
    return [*folders, "--json", folders[0]]


def no_such_engine(folders: list[str]) -> list[str]:
    return [folders[0], "--engines", "Eager", "eager"]


def one_engine(folders: list[str]) -> list[str]:
    return [folders[0], "--engines", "eager", "eager"]


def alone_also_b(folders: list[str]) -> list[str]:
    return [folders[0], "--engines", "eager", "graph", "--also-b", folders[1]]


def both_noises(folders: list[str]) -> list[str]:
    third = write_run(Path(folders[1]).parent / "third", turns(3))
    return [*folders, "--also-a", str(third), "--noise", "1%"]


def much_noise(folders: list[str]) -> list[str]:
    return [*folders, "--noise", "60%"]


def odd_noise(folders: list[str]) -> list[str]:
    return [*folders, "--noise", "much"]


def unknown_flag(folders: list[str]) -> list[str]:
    return [*folders, "--fail"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (same_folder, "is given twice; give the folders of different runs"),
        (no_folder, "give the folder of a run"),
        (one_folder, "give the folders of two runs, or of one with --engines"),
        (no_such_engine, "no run has 'Eager'; did you mean 'eager'?"),
        (one_engine, "names eager twice; give two engines"),
        (alone_also_b, "--also-b needs a run B"),
        (both_noises, "measure the noise between runs; leave --noise"),
        (much_noise, "is too much to find anything"),
        (odd_noise, "--noise 'much' is not a share; write it as 5% or 0.05"),
        (a_study, "holds a cost study; give the folders of two runs"),
        (other_rows, "no turn of the same row in common"),
        (no_reference, "or use --absolute"),
        (strict_alone, "--strict changes how --fail-slower decides"),
        (into_a_folder, "it is a folder; choose another --json"),
        (unknown_flag, "--fail"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    spoil: Callable[[list[str]], list[str]],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compare.main(spoil(runs(tmp_path, turns(1), turns(2)))) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
