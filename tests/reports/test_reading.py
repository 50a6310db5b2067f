"""Damaged, doubled, mixed and foreign lines stop no page: they are left out, and it says so."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records import journal
from bench.records import runs as records
from bench.records.runs import RECORDS
from reports import build
from reports.read import lines as line_reader
from tests.reports import bulk
from tests.reports.fabricate import Record, duel, failure, record, stock, write_run
from tests.reports.studies import example, write_study


def lines_of(folder: Path) -> list[bytes]:
    return (folder / RECORDS).read_bytes().splitlines(keepends=True)


def put(folder: Path, lines: Sequence[bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORDS).write_bytes(b"".join(lines))
    return folder


def line(made: Record, **changes: Any) -> bytes:
    return json.dumps(made | changes).encode() + b"\n"


def read(folder: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """(the page's records, all that its figures are made of; what was left out)."""
    page = build.load([folder])
    rows = page.records.map(repr)
    return [tuple(rows.columns), *rows.itertuples(index=False, name=None)], list(page.notices)


GOOD = [*duel(), stock(), failure("fast", "out of memory", params={"n": 3}, prompt_id=9)]

FOREIGN: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{'schema': 1}\n", "not JSON"),
    "empty": (b"\n", "not JSON"),
    "half a line": (line(record())[:200] + b"\n", "not JSON"),
    "two in one": (line(record())[:-1] + line(record()), "not JSON"),
    "binary": (bytes(range(128, 250)) + b"\n", "not JSON"),
    "NUL": (b"\0" * 5000 + b"\n", "not JSON"),
    "not a number": (line(record(), decode_s=float("nan")), "not JSON"),
    "deep": (b"[" * 100_000 + b"\n", "not JSON"),
    "a list": (b"[1, 2]\n", "no record"),
    "nothing known": (b'{"a": 1}\n', "no record"),
    "a key of no text": (line(record(), key=7), "no record"),
    "another major": (line(record(), schema="2.0"), "of another schema"),
    "no schema": (line(record(), schema="new"), "of another schema"),
    "a field short": (line({k: v for k, v in record().items() if k != "turn"}), "invalid record"),
    "a text for a number": (line(record(), decode_s="4.0"), "invalid record"),
    "true for a number": (line(record(), new_tokens=True), "invalid record"),
    "a number below zero": (line(record(), decode_s=-1.0), "invalid record"),
    "infinite": (line(record(), decode_s=0).replace(b'"decode_s": 0', b'"decode_s": 1e999'), "no"),
    "too large": (line(record(), draft_parameters=10**40), "invalid record"),
    "long seconds": (line(record(), decode_s=10**400), "invalid record"),
    "an id of no vocabulary": (line(record(), output_ids=[1 << 40, 1, 1, 1, 1]), "invalid record"),
    "figures that disagree": (line(record(), new_tokens=3), "invalid record"),
    "figures in a failure": (line(record(), status="error", error="x"), "invalid record"),
    "endless parameters": (
        line(record("p", params={"a": 0})).replace(b'"a": 0', b'"a": 1e999'),
        "invalid record",
    ),
    "a long name": (line(record("m" * 5000)), "invalid record"),
    "an unknown field": (line(record(), novelty=1), "invalid record"),
    "another run": (line(record(run="elsewhere", prompt_id=70)), "of another run"),
    "torn": (line(record())[:-1], "torn"),
    "torn early": (b"{", "torn"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_line_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    alone, none = read(write_run(tmp_path / "run", GOOD))
    assert none == []
    bad, reason = FOREIGN[name]
    at = len(GOOD) if not bad.endswith(b"\n") else 4
    lines = lines_of(tmp_path / "run")
    put(tmp_path / "run", [*lines[:at], bad, *lines[at:]])
    page, (notice,) = read(tmp_path / "run")
    assert page == alone
    assert notice.startswith("run: 1 line of records.jsonl left out, ")
    assert reason in notice
    assert f"line {at + 1}" in notice
    assert len(notice) < 400
    assert notice.isprintable()


def test_the_command_says_what_it_left_out_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_run(tmp_path / "run", GOOD), tmp_path / "page.html"
    put(folder, [*lines_of(folder), *(bad for bad, _ in FOREIGN.values())])
    assert build.main([str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"note: {notice}" for notice in build.load([folder]).notices]
    assert len(said) == 6
    assert build.main([str(folder), "--out", str(tmp_path / "again.html")]) == 0
    assert out.read_bytes() == (tmp_path / "again.html").read_bytes()


def test_lines_are_counted_by_reason_and_some_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", GOOD)
    junk = b"".join([b"x\n" * 30, b'{"a": 1}\n', b"y\n", b'{"a": 1}\n'] * 40)
    put(folder, [junk, *lines_of(folder)])
    notices = build.load([folder]).notices
    assert len(notices) == 2
    assert "80 lines of records.jsonl left out, no record (lines 31, 33, 64, 66, " in notices[0]
    assert "and 68 more; line 31: not a record with schema" in notices[0]
    assert "1,240 lines of records.jsonl left out, not JSON (lines 1-30, 32, 34-63, " in notices[1]


def test_copies_count_once_whatever_their_order(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", GOOD)
    alone, _ = read(folder)
    lines = lines_of(folder)
    page, (notice,) = read(put(folder, [*lines, *lines]))
    assert page == alone
    done = sum(one["status"] == "ok" for one in GOOD)
    assert f"{done} lines of records.jsonl left out, of a turn that has a record already" in notice
    assert "a copy of line 1)" in notice


def test_of_two_records_of_a_turn_one_counts_whatever_their_order(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", GOOD)
    lines, rival = lines_of(folder), line(GOOD[1] | {"decode_s": 1.0})
    pages = []
    for order in ([*lines, rival], [rival, *lines], [*lines[::-1], rival]):
        page, (notice,) = read(put(folder, order))
        assert "1 line of records.jsonl left out, of a turn that has a record already" in notice
        assert "differs" in notice
        pages.append(page)
    assert pages[0] == pages[1] == pages[2]


def mixed() -> list[Record]:
    """Records of two models, sets, engines, temperatures and seeds, and failures."""
    made = [
        *duel(),
        *duel(model="small", seed=1),
        *duel(dataset="mt_bench", dtype="bfloat16"),
        *duel(engine="compile", temperature=1.0),
        stock(),
        failure("fast", "out of memory", params={"n": 3}, prompt_id=9),
        failure("heads", "no heads", "skipped", prompt_id=None, turn=None, repeat=None),
        record("loose", lossless=False, warnings=["drift"], prompt_id="nine"),
    ]
    again = record(seed=5, decode_s=3.0)  # a turn kept twice
    made.append(again | {"key": again["key"][::-1]})
    return made


def test_the_order_of_lines_changes_nothing(tmp_path: Path) -> None:
    settings = "models: [tiny, small]\ndatasets: [mt_bench, mini]\n"
    folder = write_run(tmp_path / "run", mixed(), run_yaml=settings)
    lines = lines_of(folder)
    expected, _ = read(folder)
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        assert read(put(folder, lines)) == (expected, [])


def test_rows_come_as_the_settings_name_them(tmp_path: Path) -> None:
    settings = "models: [tiny, small]\ndatasets: [mt_bench, mini]\n"
    folder = write_run(tmp_path / "run", mixed()[::-1], run_yaml=settings)
    table = build.load([folder]).records
    assert list(table["model"].unique()) == ["tiny", "small"]
    assert list(table["dataset"].unique()) == ["mt_bench", "mini"]
    (folder / "run.yaml").unlink()
    assert list(build.load([folder]).records["model"].unique()) == ["small", "tiny"]


def test_a_run_that_was_renamed_and_continued_is_one(tmp_path: Path) -> None:
    old, new, other = (
        [record(run=name, prompt_id=at) for at in at_]
        for name, at_ in (("old", range(5)), ("new", range(5, 8)), ("other", range(8, 10)))
    )
    folder = write_run(tmp_path / "new", [*old, *new, *other])
    page = build.load([folder])
    assert len(page.records) == 8
    assert "2 lines of records.jsonl left out, of another run (lines 9-10" in page.notices[0]
    assert "of other, the others of old" in page.notices[0]


def test_a_line_longer_than_any_record_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_reader, "LONGEST", 1 << 20)
    folder = write_run(tmp_path / "run", GOOD)
    alone, _ = read(folder)
    lines = lines_of(folder)
    long = b'{"a": "' + b"x" * (5 << 20) + b'"}\n'
    exact = b"x" * ((1 << 20) - 1) + b"\n"
    page, notices = read(put(folder, [lines[0], long, exact, *lines[1:]]))
    assert page == alone
    assert ["longer than 1 MiB (line 2)" in notice for notice in notices] == [True, False]
    assert "not JSON (line 3" in notices[1]


def test_what_a_cut_archive_still_holds_is_shown(tmp_path: Path) -> None:
    lines = [line(made) for made in bulk.bulk("run", 200)]
    folder = put(tmp_path / "run", lines)
    packed = gzip.compress(b"".join(lines))
    (folder / RECORDS).unlink()
    journal.archive(folder, RECORDS).write_bytes(packed[: len(packed) * 3 // 4])
    page = build.load([folder])
    assert 20 < len(page.records) < 200
    assert "after which the file cannot be read" in page.notices[0]
    assert "restore it" in page.notices[0]


@pytest.mark.parametrize("lines", [[b"x\n"], [line(record(), schema="2.0")], [line(record())[:-1]]])
def test_nothing_that_can_be_used_is_refused(
    tmp_path: Path, lines: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = put(tmp_path / "run", lines), tmp_path / "page.html"
    sound = write_run(tmp_path / "sound", GOOD)
    assert build.main([str(sound), str(folder), "--out", str(out)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {folder} holds no record that can be used: run: 1 line of ")
    assert not out.exists()


# Corruption at random


def flip(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def cut(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randrange(1, 200) :]


def insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.randrange(1, 50)) + data[at:]


def repeat(draw: random.Random, data: bytes) -> bytes:
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:b] + data[a:]


def end(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) // 2, len(data))]


def shuffle(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines)


DAMAGE = (flip, cut, insert, repeat, end, shuffle)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed >= 8 else ()) for seed in range(25)]
)
def test_figures_are_those_of_the_lines_that_are_whole(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    folder = write_run(tmp_path / "run", GOOD)
    whole = lines_of(folder)
    data = b"".join(whole)
    for _ in range(draw.randint(1, 4)):
        damage: Callable[[random.Random, bytes], bytes] = draw.choice(DAMAGE)
        data = damage(draw, data)
    put(folder, [data])
    damaged = build.load([folder])
    kept = [one for one in dict.fromkeys(data.splitlines(keepends=True)) if one in whole]
    alone = build.load([put(tmp_path / "alone" / "run", kept)])
    assert set(alone.records["key"]) <= set(damaged.records["key"])
    same = damaged.records["key"].isin(set(alone.records["key"]))
    names = ["key", "decode_s", "tokens", "prefill_s", "verify_s", "new_tokens", "label"]
    pd.testing.assert_frame_equal(
        damaged.records.loc[same, names].reset_index(drop=True),
        alone.records[names].reset_index(drop=True),
    )
    build.render(damaged)


@pytest.mark.parametrize("seed", range(10))
def test_damage_to_a_study_never_stops_the_page(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    folder = write_study(tmp_path / "study", example())
    path = folder / "costs.jsonl"
    path.write_bytes(draw.choice(DAMAGE)(draw, path.read_bytes()))
    build.render(build.load([folder]))


# Hostile text


def test_text_that_cannot_be_shown_is_spelled_out(tmp_path: Path) -> None:
    evil = "a\ud800\0\u202eb\x1b[31m\u2028<script>"
    made = record("fast", category=evil, text=evil, warnings=[evil]) | {"params": {evil: evil}}
    page = build.load([write_run(tmp_path / "run", [made], run_yaml=f"note: {json.dumps(evil)}")])
    row = page.records.iloc[0]
    spelled = r"a\ud800\x00\u202eb\x1b[31m\u2028<script>"
    assert row["category"] == spelled
    assert row["warnings"] == [spelled]
    assert row["label"] == f"fast({spelled}={spelled})"
    assert len(row["text"]) == len(evil)  # steps count its characters
    assert row["text"] == "a\ufffd\ufffd\u202eb\ufffd[31m\u2028<script>"
    assert page.runs[0].settings == {"note": spelled}
    html = build.render(page).encode()  # no lone surrogate
    assert b"\0" not in html


def test_a_long_answer_is_kept_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [record(text="<b>\u05d0" * 25_000)])
    assert len(build.load([folder]).records["text"].iloc[0]) == 100_000


# What is held


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    made = list(bulk.bulk("run", 60))
    table = build.load([put(tmp_path / "run", [line(one) for one in made])]).records
    found = table.set_index("key")
    for one in made:
        row = found.loc[one["key"]]
        assert list(row["output_ids"]) == one["output_ids"]
        assert row["text"] == one["text"]
        assert row["params"] == one["params"]
        assert row["label"] == records.label(one["method"], one["params"])
        for name in ("accept_lengths", "steps"):
            if one.get(name) is None:
                assert row[name] is None
            else:
                assert list(row[name]) == one[name]
                assert len(row[name]) == len(one[name])
