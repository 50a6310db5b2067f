"""Archived journals: they read as they did before, and nothing is written to them."""

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.records import costs as cost_records
from bench.records import differences, journal, validation
from bench.records import runs as records
from bench.records.__main__ import main
from bench.records.runs import RECORDS, RunFolder
from reports import build
from tests.reports.fabricate import audit, duel, record, write_run
from tests.reports.studies import example, write_study


def archived(folder: Path, file: str = RECORDS) -> Path:
    """The folder after `gzip` of its records."""
    plain = folder / file
    journal.archive(folder, file).write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_archived_run_reads_the_same(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", duel())
    data, before = (folder / RECORDS).read_bytes(), records.read(folder)
    problems = validation.check(folder)
    assert journal.sha256(folder, RECORDS) == hashlib.sha256(data).hexdigest()
    archived(folder)
    assert not (folder / RECORDS).exists()
    assert records.read(folder) == before
    assert validation.check(folder) == problems
    assert journal.content(folder, RECORDS) == data
    assert journal.sha256(folder, RECORDS) == hashlib.sha256(data).hexdigest()


def test_an_archived_run_gives_the_same_page_and_keeps_its_audit(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", duel())
    audit(folder, [])
    pages = []
    for keep in (lambda folder: folder, archived):
        build.build([keep(folder)], tmp_path / "page.html")
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert "audit is of older records" not in pages[1]


def test_an_archived_study_reads_the_same(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", example())
    before = cost_records.read(folder), validation.check(folder)
    archived(folder, cost_records.COSTS)
    assert (cost_records.read(folder), validation.check(folder)) == before
    build.build([folder], tmp_path / "page.html")


def test_the_check_command_takes_an_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", [record(prompt_sha256="a" * 64)])
    for name in records.COMPANIONS:
        (folder / name).write_text("", encoding="utf-8")
    assert main(["check", str(archived(folder))]) == 0
    assert "1 records, 1 ok, 0 failed, 0 skipped, no violations" in capsys.readouterr().out


def test_an_archive_is_not_written_to(tmp_path: Path) -> None:
    folder = archived(write_run(tmp_path / "run", duel()))
    before = contents(folder)
    with pytest.raises(UsageError, match="gunzip it first"), RunFolder(folder):
        pass
    assert contents(folder) == before


def both(folder: Path) -> None:
    (folder / RECORDS).write_text("", encoding="utf-8")


def cut(folder: Path) -> None:
    path = journal.archive(folder, RECORDS)
    path.write_bytes(path.read_bytes()[:-20])


def junk(folder: Path) -> None:
    journal.archive(folder, RECORDS).write_bytes(b"no archive at all\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (both, "holds both records.jsonl and records.jsonl.gz; remove the one"),
        (cut, "is not a complete archive .*; restore it"),
        (junk, "is not a complete archive .*; restore it"),
    ],
)
def test_an_archive_that_cannot_be_read_is_a_usage_error(
    tmp_path: Path,
    spoil: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = archived(write_run(tmp_path / "run", duel()))
    spoil(folder)
    before = contents(folder)
    for reading in (records.read, validation.check):
        with pytest.raises(UsageError, match=message):
            reading(folder)
    with pytest.raises(UsageError), RunFolder(folder):
        pass
    assert main(["check", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert contents(folder) == before


SETTINGS = "dtype: {}\nmethods: [a, b]\nprovenance:\n  code: {{bench: {}}}\n"


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (SETTINGS.format("float32", "a" * 64), SETTINGS.format("float32", "a" * 64), None),
        ("a: 1\nb: 2\n", "b: 2\na:   1", None),
        ("dtype: float32\n", "dtype: bfloat16\n", "dtype (float32, now bfloat16)"),
        (
            SETTINGS.format("float32", "a" * 64),
            SETTINGS.format("float32", "b" * 64),
            "code.bench (aaaaaaaa, now bbbbbbbb)",
        ),
        ("limit: null\n", "limit: 4\n", "limit (none, now 4)"),
        ("a: [x, y]\n", "a: [x]\nb: 1\n", "a (x y, now x), b (none, now 1)"),
        ("x: 1\nprovenance: {x: 2}\n", "x: 3\nprovenance: {x: 4}\n", "x (1, now 3)"),
        (
            "a: 1\nb: 1\nc: 1\nd: 1\ne: 1\n",
            "{}",
            "a (1, now none), b (1, now none), c (1, now none), d, e",
        ),
        (": :", "a: 1", "its settings cannot be read"),
        ("a: 2026-99-99", "a: 1", "its settings cannot be read"),
        ("[]", "a: 1", "its settings cannot be read"),
    ],
)
def test_other_settings_are_named(before: str, now: str, said: str | None) -> None:
    found = differences.of_settings(before, now)
    assert found == said or (said is not None and str(found).startswith(said))
