"""What differs between the runs of a page is named; what does not is not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reports import build
from reports.page.model import Page
from reports.sections import comparability, environment
from tests.reports.fabricate import Record, duel, failure, record, stock, write_run
from tests.reports.studies import example, write_study

ENVIRONMENT: dict[str, Any] = {
    "git": {"commit": "a" * 40, "dirty": False},
    "python": "3.11.7",
    "platform": "Linux",
    "packages": {"torch": "2.13", "transformers": "5.23", "numpy": "2.4", "triton": None},
    "cuda": {"driver": "580", "sm_clock_mhz": 345.0, "sm_clock_max_mhz": 1980.0},
    "device": "a card",
    "datasets": {"mini": "d"},
}
SETTINGS: dict[str, Any] = {
    "models": ["tiny"],
    "limit": None,
    "repeats": 2,
    "provenance": {"history_sha256": None},
}


def notes(page: Page) -> list[str]:
    """The differences that change figures, in words."""
    return [str(one) for one in comparability.weighing(page)]


def made(
    folder: Path, lines: Sequence[Record], environment: Any = ENVIRONMENT, **settings: Any
) -> Path:
    return write_run(
        folder,
        lines,
        run_yaml=json.dumps(SETTINGS | settings),
        environment_json=json.dumps(environment),
    )


def both(tmp_path: Path, lines: Sequence[Record], environment: Any = None, **settings: Any) -> Page:
    """A page of a run and of another one beside it."""
    one = made(tmp_path / "one", duel())
    two = made(tmp_path / "two", lines, environment or ENVIRONMENT, **settings)
    return build.load([one, two])


def test_runs_that_are_alike_say_what_was_compared(tmp_path: Path) -> None:
    page = both(tmp_path, duel())
    assert notes(page) == []
    section = comparability.section(page)
    assert not section.tables
    assert section.empty.startswith("Nothing differs between one, two: device, driver, clocks, ")


def changed(path: str, value: Any) -> dict[str, Any]:
    """The environment with one thing changed."""
    copy: dict[str, Any] = json.loads(json.dumps(ENVIRONMENT))
    *above, last = path.split(".")
    place = copy
    for name in above:
        place = place[name]
    place[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("python", "3.12", "Different Python: 3.11.7 (one); 3.12 (two)"),
        ("packages.torch", "2.14", "Different torch: 2.13 (one); 2.14 (two)"),
        ("packages.transformers", "6", "Different transformers: 5.23 (one); 6 (two)"),
        ("packages.triton", "3.6", "Different triton: none (one); 3.6 (two)"),
        ("cuda.driver", "590", "Different driver: 580 (one); 590 (two)"),
        ("cuda.sm_clock_max_mhz", 1500, "Different maximum SM clock, MHz: 1980 (one); 1500 (two)"),
        ("git.commit", "b" * 40, f"Different commit: {'a' * 8} (one); {'b' * 8} (two)"),
    ],
)
def test_environments_that_differ_are_named(
    tmp_path: Path, path: str, value: Any, line: str
) -> None:
    assert notes(both(tmp_path, duel(), changed(path, value))) == [line]


@pytest.mark.parametrize(
    ("path", "value"), [("cuda.sm_clock_mhz", 1980.0), ("git.commit", None), ("cuda", None)]
)
def test_readings_of_the_moment_and_what_is_not_known_are_no_difference(
    tmp_path: Path, path: str, value: Any
) -> None:
    assert notes(both(tmp_path, duel(), changed(path, value))) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"device": "a card"}, "Different device: cpu (one); a card (two)"),
        ({"dtype": "bfloat16"}, "Different dtype: float32 (one); bfloat16 (two)"),
        ({"engine": "graph"}, "Different engine: eager (one); graph (two)"),
        ({"package_version": "0.2.0"}, "Different package: 0.1.0 (one); 0.2.0 (two)"),
        ({"max_new_tokens": 9}, "Different token limit: 8 (one); 9 (two)"),
        ({"seed": 7}, "Different seed: 0 (one); 7 (two)"),
        ({"top_p": 0.5}, "Different top-p: none (one); 0.5 (two)"),
        ({"revision": "f" * 40}, "Different revision of tiny: none (one); ffffffff (two)"),
        (
            {"dataset_sha256": "e" * 64},
            "Different hash of the question set of mini: none (one); eeeeeeee (two)",
        ),
    ],
)
def test_records_that_differ_are_named(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    assert notes(both(tmp_path, duel(**change))) == [line]


@pytest.mark.parametrize(("field", "words"), [("history", "history"), ("prompt_sha256", "prompts")])
def test_prompts_and_history_are_compared_turn_by_turn(
    tmp_path: Path, field: str, words: str
) -> None:
    lines = [line | ({field: "c" * 64} if line["prompt_id"] == 3 else {}) for line in duel()]
    (note,) = notes(both(tmp_path, lines))
    assert note.startswith(f"Different {words} of mini, tiny: ")
    # Turns that one run alone holds say nothing of the others.
    fewer = [line for line in lines if line["prompt_id"] != 3]
    (note,) = notes(both(tmp_path, fewer))
    assert note == "Different turns of mini, tiny: 4 (one); 3 (two)"


def test_weights_are_compared_where_both_have_the_method(tmp_path: Path) -> None:
    def weighted(sha256: str, method: str) -> list[Record]:
        return [
            line | ({"checkpoint_sha256": sha256 * 64, "method": method} if line["params"] else {})
            for line in duel()
        ]

    one = made(tmp_path / "one", weighted("a", "fast"))
    other = made(tmp_path / "two", weighted("b", "fast"))
    page = build.load([one, other])
    note = "Different checkpoint of tiny fast(n=3): aaaaaaaa (one); bbbbbbbb (two)"
    assert notes(page) == [note]
    made(tmp_path / "two", weighted("b", "faster"))
    assert notes(build.load([one, other])) == []


def test_settings_that_differ_are_named_and_lists_of_rows_are_for_the_record(
    tmp_path: Path,
) -> None:
    page = both(tmp_path, duel(), limit=3, models=["tiny", "other"])
    assert notes(page) == ["Different setting limit: none (one); 3 (two)"]
    (table,) = comparability.section(page).tables
    found = [[cell.text for cell in row] for row in table.rows]
    assert found == [
        ["setting limit", "none", "one", "changes figures"],
        ["setting limit", "3", "two", "changes figures"],
        ["setting models", '["tiny"]', "one", "for the record"],
        ["setting models", '["tiny", "other"]', "two", "for the record"],
    ]


def test_other_packages_are_for_the_record(tmp_path: Path) -> None:
    page = both(tmp_path, duel(), changed("packages.numpy", "2.5"))
    assert notes(page) == []
    (table,) = comparability.section(page).tables
    assert [row[0].text for row in table.rows] == ["packages.numpy"] * 2


def test_a_run_without_an_environment_is_named_once(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one", duel()), made(tmp_path / "two", duel())
    (two / "environment.json").unlink()
    found = notes(build.load([one, two]))
    assert found == ["Different environment.json: kept (one); missing (two)"]


def test_runs_of_one_value_stand_together(tmp_path: Path) -> None:
    folders = [
        made(tmp_path / name, duel(), changed("cuda.driver", driver))
        for name, driver in (("a", "580"), ("b", "590"), ("c", "580"))
    ]
    found = notes(build.load(folders))
    assert found == ["Different driver: 580 (a, c); 590 (b)"]


def test_a_single_run_is_silent(tmp_path: Path) -> None:
    lines = [
        *duel(),
        *duel(temperature=1.0),
        *duel(dataset="mt_bench", dataset_sha256="d" * 64),
        *duel(model="other", revision="f" * 40),
        stock(prompt_sha256="01"),
        failure("fast", "no heads", "skipped", prompt_id=None, turn=None, repeat=None),
    ]
    page = build.load([made(tmp_path / "run", lines)])
    assert notes(page) == []
    section = comparability.section(page)
    assert (list(section.tables), section.empty, section.body) == ([], "", None)


def test_what_differs_inside_a_run_is_named(tmp_path: Path) -> None:
    moved = [line | {"key": line["key"][::-1]} for line in duel(device="a card")]
    lines = [*duel(), *moved, *duel(engine="compile")]
    page = build.load([made(tmp_path / "run", lines)])
    assert notes(page) == [
        "Different device inside run: a card (16 records); cpu (32 records)",
        "Different engine inside run: compile (16 records); eager (32 records)",
    ]
    planned = build.load([made(tmp_path / "run", lines, engine=["eager", "compile"])])
    assert len(notes(planned)) == 1  # the grid says so


def test_two_prompts_of_one_turn_are_named(tmp_path: Path) -> None:
    lines = [*duel(), record(prompt_id=2, prompt_sha256="ff", repeat=5)]
    (note,) = notes(build.load([made(tmp_path / "run", lines)]))
    assert note == "Different prompts or history of mini inside run: 1 turn with more than one"


def test_studies_are_compared_with_studies(tmp_path: Path) -> None:
    run = made(tmp_path / "run", duel())
    one = write_study(tmp_path / "one", example(), "turns: 1\n", ["python"])
    two = write_study(tmp_path / "two", example(device="other"), "turns: 2\n", ["python"])
    assert notes(build.load([run, one])) == []
    assert not comparability.section(build.load([run, one])).empty
    found = notes(build.load([run, one, two]))
    assert found == [
        "Different device: a card (one); other (two)",
        "Different setting turns: 1 (one); 2 (two)",
    ]


def test_hostile_values_are_spelled_out(tmp_path: Path) -> None:
    page = both(tmp_path, duel(), changed("python", "3\u202e<script>\0"))
    (note,) = notes(page)
    assert note == r"Different Python: 3.11.7 (one); 3\u202e<script>\x00 (two)"


def test_sessions_of_one_run_are_compared(tmp_path: Path) -> None:
    later = changed("git.commit", "b" * 40)
    sessions = ENVIRONMENT | {"continued": [ENVIRONMENT, later]}
    page = build.load([made(tmp_path / "run", duel(), sessions)])
    assert notes(page) == ["Different commit inside run: aaaaaaaa; bbbbbbbb"]
    (table,) = environment.section(page).tables
    items = {row[0].text: row[1].text for row in table.rows}
    assert items["git.commit"] == "a" * 40
    assert items["git.commit (session 3)"] == "b" * 40
    assert not any("session 2" in item or "continued" in item for item in items)


def test_other_code_is_named_and_older_runs_have_none(tmp_path: Path) -> None:
    kept = SETTINGS["provenance"]
    code = ENVIRONMENT | {"code": {"bench": "c" * 64}}
    one = made(tmp_path / "one", duel(), code, provenance=kept | {"code": {"bench": "c" * 64}})
    other = ENVIRONMENT | {"code": {"bench": "d" * 64}}
    two = made(tmp_path / "two", duel(), other, provenance=kept | {"code": {"bench": "d" * 64}})
    old = made(tmp_path / "old", duel(), ENVIRONMENT)
    (note,) = notes(build.load([one, two, old]))
    assert note == "Different code of bench: cccccccc (one); dddddddd (two)"
