"""Figures of cost studies by hand, and what a page says of them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records.costs import ENGINE, FORWARD, STEP
from bench.records.runs import Record
from reports import build
from reports.measures import cost as figures
from reports.read.preparation import prepare
from tests.reports import studies
from tests.reports.fabricate import duel, write_run
from tests.reports.studies import example, fast, measurement, skipped, turn, write_study
from tests.reports.test_build import Elements, page_of, row_of, words


def costs(*lines: Record, run: str = "study") -> list[Record]:
    """As a page holds them."""
    return [{**line, "run": run} for line in lines]


def table_of(page: str, caption: str) -> str:
    """One table of the page as text; empty where it is not there."""
    found = re.findall(r'<h3 id="[^"]*">(.*?</table>)', page, re.DOTALL)
    return next((words(text) for text in found if text.startswith(caption)), "")


def test_forwards_beside_their_floor() -> None:
    table = figures.forwards(costs(*example()))
    assert list(table["context"]) == [1000, 1000, 4000, 4000]
    assert list(table["width"]) == [1, 64, 1, 64]
    first, wide, far, _ = table.to_dict("records")
    assert (first["ms"], first["low"], first["high"]) == pytest.approx((2.0, 1.75, 2.5))
    assert first["bytes"] == 5e9  # the weights' 4 and 1,000 rows of 1 MB
    assert first["floor_ms"] == pytest.approx(1.25)  # at the better of 4 and 2 TB/s
    assert first["over_floor"] == pytest.approx(1.6)
    assert first["achieved"] == pytest.approx(2.5e12)
    assert wide["over_one"] == pytest.approx(1.5)
    assert first["over_one"] == 1.0
    assert far["floor_ms"] == pytest.approx(2.0)


def test_reading_can_be_the_better_bandwidth() -> None:
    line = measurement(FORWARD, copy_bytes_per_s=1e12, read_bytes_per_s=5e12)
    assert figures.forwards(costs(line))["floor_ms"].item() == pytest.approx(1.0)
    assert figures.bandwidths(costs(line))[["copy", "read", "best"]].iloc[0].tolist() == [
        1e12,
        5e12,
        5e12,
    ]


def test_a_ratio_needs_a_forward_of_one_token_at_the_same_settings() -> None:
    narrow = measurement(FORWARD, width=1, engine="graph")
    wide = measurement(FORWARD, width=64)
    elsewhere = measurement(FORWARD, width=1, context=4000)
    assert figures.forwards(costs(narrow, wide, elsewhere))["over_one"].isna().sum() == 1


def test_phases_of_a_step() -> None:
    reference, row = figures.steps(costs(fast(), measurement(STEP))).to_dict("records")
    assert (reference["label"], row["label"]) == ("autoregressive", "fast(n=3)")
    assert reference["step_ms"] == pytest.approx(2.0)
    assert reference["break_even"] == 1.0
    names = ("draft_ms", "verify_ms", "accept_ms", "other_ms")
    assert [row[name] for name in names] == pytest.approx([0.75, 2.0, 0.2, 0.05])
    assert row["step_ms"] == pytest.approx(3.0)
    assert row["overhead_ms"] == pytest.approx(0.25)
    assert row["verify"] == pytest.approx(2 / 3)
    assert row["clock"] == pytest.approx(1.25)
    assert row["break_even"] == pytest.approx(1.5)
    assert row["nodes"] == 6
    assert row["draft_floor_ms"] == pytest.approx(0.5)
    assert row["draft_over_floor"] == pytest.approx(1.5)
    assert pd.isna(reference["draft_floor_ms"])  # it drafts nothing


def test_a_study_of_an_older_minor_version_did_not_measure_the_clock() -> None:
    record = measurement(STEP)
    for kept in record["turns"]:
        del kept["quiet_s"]
    assert figures.steps(costs(record))["clock"].isna().all()


def test_a_step_is_the_median_of_turns_of_any_number_of_steps() -> None:
    turns = [turn(verify=0.001, steps=2), turn(verify=0.002), turn(verify=0.9, steps=1)]
    for one in turns:
        one["accept_lengths"] = {2: [2, 2], 4: [1, 1, 1, 1], 1: [4]}[len(one["accept_lengths"])]
    row = figures.steps(costs(measurement(STEP, turns=turns))).iloc[0]
    assert row["verify_ms"] == pytest.approx(2.0)


def test_failures_count_in_no_figure() -> None:
    broken = skipped(FORWARD, "does not fit", width=16)
    lines = costs(*example(), broken, skipped(ENGINE, "no GPU", engine="graph"))
    assert len(figures.forwards(lines)) == 4
    assert figures.failures(lines)["what"].tolist() == ["forward of width 16", "all"]
    only = costs(skipped(ENGINE, "no GPU"))
    for figure in (figures.forwards, figures.steps, figures.bandwidths, figures.engines):
        assert figure(only).empty


# Projections


def measured(**changes: Any) -> pd.DataFrame:
    """Records of a real model, on which `fast(n=3)` accepts 2 tokens a step."""
    return _prepared(duel(**changes))


def _prepared(lines: list[Record]) -> pd.DataFrame:
    return prepare(pd.DataFrame([{**line, "label": _label(line)} for line in lines]))


def _label(line: Record) -> str:
    return "fast(n=3)" if line["method"] == "fast" else str(line["method"])


def test_a_projection_takes_the_accepted_length_of_another_model() -> None:
    (row,) = figures.projections(costs(measurement(STEP), fast()), measured()).to_dict("records")
    assert (row["source"], row["dataset"], row["label"]) == ("tiny", "mini", "fast(n=3)")
    assert row["accepted"] == 2.0
    assert row["projected"] == pytest.approx(2.0 / 1.5)


@pytest.mark.parametrize(
    "lines",
    [
        [measurement(STEP), fast(params={"n": 4})],  # other parameters accept other lengths
        [measurement(STEP, model="tiny"), fast(model="tiny")],  # its speedup was measured
        [measurement(STEP), fast(turns=[turn(drafted=2)])],  # lengths were accepted of 3 nodes
        [measurement(STEP)],
        [measurement(FORWARD)],
    ],
)
def test_nothing_is_projected_without_a_ground(lines: list[Record]) -> None:
    assert figures.projections(costs(*lines), measured()).empty
    assert figures.projections(costs(*lines), measured(model="synthetic:other")).empty


def test_a_projection_needs_the_reference_s_step() -> None:
    lines = costs(measurement(STEP, engine="graph"), fast())
    assert figures.projections(lines, measured())["projected"].isna().all()


def test_a_projection_prefers_the_same_engine_s_accepted_length() -> None:
    both = _prepared([*duel(engine="graph"), *duel()])
    both.loc[(both["engine"] == "graph") & (both["method"] == "fast"), "accepted_tokens"] *= 1.5
    lines = costs(measurement(STEP), fast())
    assert figures.projections(lines, both)["accepted"].tolist() == [2.0]


# The page


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    large = {"model": "synthetic:large", "parameters": 4_000_000_000}
    lines = [
        *example(),
        *example(engine="compile"),
        *example(**large),
        skipped(ENGINE, "OutOfMemoryError: it is large", engine="graph", **large),
    ]
    folder = tmp_path_factory.mktemp("pages") / "study"
    settings = "turns: 1\nmodels: [synthetic:tiny, synthetic:large]\n"
    return write_study(folder, lines, settings, ["python"])


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("page"), study)


def test_a_page_of_a_study_alone(page: str, study: Path, tmp_path: Path) -> None:
    assert page_of(tmp_path, study) == page
    Elements(page)
    assert re.findall(r'id="(cost|environment|overview|speedup|shares)"', page) == [
        "cost",
        "environment",
    ]
    assert page.count('role="img"') >= 3
    assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))  # a name
    text = words(page)
    assert "Decoding benchmark: synthetic:tiny, synthetic:large" in text
    assert "Forward over floor, synthetic:tiny 1.00×" in text
    assert "Rendered from 28 records, 27 of them good" in text
    assert "Settings of study (cost.yaml)" in text


def test_tables_of_a_study(page: str) -> None:
    assert "a card 4,000 2,000 4,000" in table_of(page, "Bandwidth")
    forwards = table_of(page, "Forward by model")
    assert "synthetic:tiny eager 1000 1 2.00 [1.75, 2.50] 1.25 1.60× 2,500 4.66 GiB" in forwards
    wide = table_of(page, "Wider forwards")
    assert "synthetic:tiny eager 1000 1.50× synthetic:tiny eager 4000 1.50×" in wide
    row = "synthetic:large · eager · 4000 3.00 0.750 2.00 0.200 0.0500 0.250 66.7 % 1.250× 1.50 6.0"
    assert row in table_of(page, "Phases of a step")
    assert "synthetic:large · eager · 4000 0.750 0.500 1.50× 1.86 GiB 1 G" in table_of(
        page, "Drafts"
    )
    assert "synthetic:tiny eager 2 G 3.73 GiB 977 KiB 3.5 5 GiB" in table_of(page, "Models and")
    assert "skipped OutOfMemoryError: it is large" in table_of(page, "Not measured")
    assert not table_of(page, "Projection")  # nothing was measured to project from


def test_a_projection_says_so_and_stays_apart(study: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, study, write_run(tmp_path / "run", duel()))
    found = table_of(page, "Projection, not measured")
    assert "synthetic:large · eager · 4000 1.33× 2.00 tiny mini 0 1.50" in found
    assert "It is not a measurement." in words(page)
    for section in ("speedup", "accepted", "shares"):
        block = page.partition(f'<section id="{section}"')[2].partition("</section>")[0]
        assert block
        assert "synthetic:" not in block
    assert "Fastest lossless setting 2.00 tokens/s, 2.00×" in words(page)
    assert "fast(n=3)" in row_of(page, "speedup", "fast(n=3)")


def test_a_page_without_studies_has_no_section_on_cost(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "run", duel()))
    assert 'id="cost"' not in page


def test_studies_of_several_devices_are_told_apart(tmp_path: Path) -> None:
    one = write_study(tmp_path / "one", example())
    two = write_study(tmp_path / "two", example(device="another card"))
    page = page_of(tmp_path, one, two)
    table = table_of(page, "Forward by model")
    assert "All rows: Model synthetic:tiny, Engine eager" in table
    assert "one a card 1000 " in table
    assert "two another card 4000 " in table


def test_a_study_without_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "study", [])
    assert build.main([str(folder), "--out", str(tmp_path / "page.html")]) == 2
    assert "holds no records" in capsys.readouterr().err
    write_study(folder, [measurement(ENGINE)], "turns: [")
    assert build.main([str(folder), "--out", str(tmp_path / "page.html")]) == 2
    assert "cost.yaml or environment.json" in capsys.readouterr().err


def test_a_page_of_a_study_needs_no_torch(study: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from reports.build import main; "
        f"code = main([{str(study)!r}, '--out', {str(tmp_path / 'page.html')!r}]); "
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported'))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_failures_alone_still_have_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, studies.write_study(tmp_path / "s", [skipped(ENGINE, "no GPU")]))
    assert "no GPU" in table_of(page, "Not measured")
