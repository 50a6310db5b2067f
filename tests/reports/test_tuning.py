"""The page's tuning section: there only for tuned runs, with the curve and the choice."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.records import tuned
from bench.records.tuned import FINAL, SEARCH, Point, Tuned, TunedFor, TunedMethod
from reports import build
from tests.reports.fabricate import duel, write_run
from tests.reports.test_build import Elements, page_of, row_of, words

PLACE = TunedFor("cpu, 2 threads", "eager", "tiny", "0" * 64, "bfloat16")


def point(nodes: int, stage: str = SEARCH, speedup: float = 1.0, **changes: Any) -> Point:
    made = Point(
        params={"nodes": nodes, "depth": 4, "kind": "<plain>"},
        stage=stage,
        questions=4,
        steps=40,
        width=nodes + 1.0,
        accepted=2.0,
        step_s=0.02 / speedup,
        reference_s=0.01,
        speedup=speedup,
        low=speedup - 0.1,
        high=speedup + 0.1,
    )
    return replace(made, **changes)


def entry(*points: Point) -> TunedMethod:
    best = max((p for p in points if p.stage == FINAL), key=lambda p: p.speedup)
    return TunedMethod(best.params, None, {"set": "tuning"}, "0.1.0", {}, points)


CURVE = (
    *(point(nodes, speedup=1 + nodes / 10) for nodes in (3, 5, 7)),
    point(63, speedup=0.4, questions=1, low=None, high=None),
    point(5, FINAL, 1.55),
    point(7, FINAL, 1.45),
)


def tuned_run(folder: Path, *entries: TunedMethod, place: TunedFor = PLACE) -> Path:
    """A run folder whose methods were tuned, `fast` first."""
    write_run(folder, duel())
    found = Tuned(place, dict(zip(("fast", "other"), entries, strict=False)))
    (folder / tuned.FILE).write_text(found.text(), encoding="utf-8")
    return folder


def section(page: str) -> str:
    return page.partition('id="tuning"')[2].partition("</section>")[0]


def test_pages_of_other_runs_have_no_such_section(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "run", duel()))
    assert 'id="tuning"' not in page
    assert "#tuning" not in page
    assert 'id="speedup"' in page


def test_curve_and_choice_are_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path, tuned_run(tmp_path / "run", entry(*CURVE)))
    Elements(page)  # sound HTML, names escaped
    block = section(page)
    assert re.search(r'<svg [^>]*role="img" aria-label="Speedup and accepted length', block)
    assert 'href="#tuning"' in page
    chosen = row_of(page, "tuning", "fast(nodes=5")
    assert chosen.startswith("fast(nodes=5,depth=4,kind=")
    assert "chosen 1.55× [1.45, 1.65] 2.00 6.0 12.90 10.00 4 4" in chosen
    assert "chosen" not in row_of(page, "tuning", "fast(nodes=7")
    assert "nodes=63" not in words(block)  # in the figure alone
    assert "questions that the search did not see" in words(block)


def test_same_files_same_bytes_and_each_curve_once(tmp_path: Path) -> None:
    entries = entry(*CURVE), entry(point(3), point(3, FINAL))
    folders = [tuned_run(tmp_path / name, *entries) for name in ("a", "b")]
    page = page_of(tmp_path, *folders)
    assert page == page_of(tmp_path, *folders)
    assert section(page).count("<tr>") == 1 + 3  # heads, two finalists and one
    other = replace(PLACE, engine="compile", device="NVIDIA H200")
    folders.append(tuned_run(tmp_path / "c", *entries, place=other))
    page = page_of(tmp_path, *folders)
    assert section(page).count("<tr>") == 1 + 6
    assert "fast · compile · NVIDIA H200" in section(page)
    Elements(page)


def test_a_damaged_copy_is_refused(tmp_path: Path) -> None:
    folder = tuned_run(tmp_path / "run", entry(*CURVE))
    (folder / tuned.FILE).write_text("{}")
    with pytest.raises(UsageError, match=r"tuned\.json is not a file of tuned parameters"):
        build.load([folder])
