"""The badge of a row: earned by its audit alone."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records import runs as records
from reports.measures import matches, speedup
from reports.page import badges
from reports.page.badges import Badge
from reports.page.model import Page
from reports.read.companions import RunInfo
from reports.read.preparation import NAME, prepare
from tests.reports.fabricate import duel, record, write_run

SETTINGS = dict(zip(NAME[1:], ("tiny", "eager", "float32", "mini", 0.0, "fast(n=3)"), strict=True))
TEST = {"p": 0.4, "p_holm": 0.8, "level": 0.001, "passed": True, "tokens": 2048, "dtype": "float32"}
OWN = {"engine": "eager", "device": "a card"}
RERUNS: dict[str, Any] = {
    "prompts": 3,
    "limit": 8,
    "rerun": 3,
    "equal": 3,
    "ties": 0,
    "defects": 0,
    "failed": 0,
    "skipped": 0,
}
RERUNS |= OWN
ARGMAX = {"share": 0.03, "reference_share": 0.025, "passed": True}


def entry(**changes: Any) -> dict[str, Any]:
    counts = {"compared": 8, "equal": 8, "ties": 0, "defects": 0}
    return {**SETTINGS, "devices": ["a card"], **counts, "examples": [], **changes}


def page(tmp_path: Path, *rows: dict[str, Any], audit: str = "audited", **changes: Any) -> Page:
    lines = [
        *duel(**changes),
        record("loose", lossless=False, prompt_id=0, prompt_sha256="00", **changes),
    ]
    folder = write_run(tmp_path / "run", lines)
    frame = records.frame([folder]).assign(run="run")
    return Page([RunInfo("run", {}, "", None, audit, rows)], prepare(frame))


def badge(page: Page, label: str = "fast(n=3)") -> Badge:
    rows = matches.matches(page.records, page.audited).to_dict("records")
    (row,) = (row for row in rows if row["label"] == label)
    return badges.badge(page, row)


def half(tmp_path: Path, **changes: Any) -> Badge:
    row = entry(dtype="bfloat16", equal=5, ties=3, **{"argmax": ARGMAX, **changes})
    return badge(page(tmp_path, row, dtype="bfloat16"))


def sampled(tmp_path: Path, *tests: dict[str, Any]) -> Badge:
    rows = [
        entry(temperature=1.0, compared=0, equal=0, **({"sampling": test} if test else {}))
        for test in tests
    ]
    return badge(page(tmp_path, *rows, temperature=1.0))


def test_equal_answers_in_float32_are_verified(tmp_path: Path) -> None:
    found = badge(page(tmp_path, entry()))
    assert found[:2] == ("lossless: verified (8 answers)", "good")


def test_ties_decided_in_float64_are_verified(tmp_path: Path) -> None:
    found = badge(page(tmp_path, entry(equal=6, ties=2)))
    assert found[:2] == ("lossless: verified (8 answers)", "good")
    assert "2 of 8 answers differ at a near tie" in found.why


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_defect_is_a_defect_whatever_else_there_is(tmp_path: Path, dtype: str) -> None:
    row = entry(dtype=dtype, equal=6, ties=1, defects=1, reruns=RERUNS)
    found = badge(page(tmp_path, row, dtype=dtype))
    assert found == Badge("defects", "bad", "1 of 8 answers differ without a tie")


def test_equal_answers_in_half_precision_are_verified(tmp_path: Path) -> None:
    row = entry(dtype="bfloat16")
    assert badge(page(tmp_path, row, dtype="bfloat16")).text == "lossless: verified (8 answers)"


def test_ties_in_half_precision_must_be_decoded_again(tmp_path: Path) -> None:
    assert half(tmp_path)[:2] == ("lossless: ties only", "plain")
    assert half(tmp_path, reruns=RERUNS | {"rerun": 0, "equal": 0}).text == "lossless: ties only"
    found = half(tmp_path, reruns=RERUNS)
    assert found[:2] == ("lossless: verified, ties in bf16", "good")
    assert "3 of 3 diverging prompts were decoded again in float32" in found.why
    mixed = RERUNS | {"equal": 2, "ties": 1}
    assert half(tmp_path, reruns=mixed).text == "lossless: verified, ties in bf16"


def test_a_few_reruns_of_many_earn_nothing(tmp_path: Path) -> None:
    few = RERUNS | {"prompts": 30, "rerun": 7, "equal": 7}
    assert half(tmp_path, reruns=few).text == "lossless: ties only"
    enough = few | {"rerun": 8, "equal": 8}
    assert half(tmp_path, reruns=enough).text == "lossless: verified, ties in bf16"


def test_what_differs_in_float32_too_is_a_defect(tmp_path: Path) -> None:
    found = half(tmp_path, reruns=RERUNS | {"equal": 2, "defects": 1})
    assert found[:2] == ("defects", "bad")


def test_a_rerun_that_failed_earns_nothing(tmp_path: Path) -> None:
    found = half(tmp_path, reruns=RERUNS | {"equal": 2, "failed": 1})
    assert found.text == "lossless: ties only"
    assert "1 reruns failed" in found.why


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"engine": "graph"}, "graph on a card"),
        ({"device": "a CPU"}, "eager on a CPU"),
        ({"engine": None, "device": None}, "a device that the audit does not name"),
    ],
)
def test_reruns_elsewhere_earn_nothing(tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    found = half(tmp_path, reruns=RERUNS | changes)
    assert found[:2] == ("lossless: ties only", "plain")
    assert where in found.why


def test_old_audits_verify_no_half_precision_row(tmp_path: Path) -> None:
    old = {name: value for name, value in RERUNS.items() if name not in OWN}
    assert half(tmp_path, reruns=old, argmax=None).text == "lossless: ties only"
    assert half(tmp_path, reruns=RERUNS, devices=None).text == "lossless: ties only"


def test_records_of_two_devices_are_not_verified_on_one(tmp_path: Path) -> None:
    found = half(tmp_path, reruns=RERUNS, devices=["a card", "another"])
    assert found.text == "lossless: ties only"


def test_the_share_that_is_not_the_argmax_must_pass(tmp_path: Path) -> None:
    found = half(tmp_path, reruns=RERUNS, argmax=ARGMAX | {"share": 0.165, "passed": False})
    assert found[:2] == ("defects", "bad")
    assert "16.5 % of its tokens are not the float32 argmax, 2.5 % of the reference's" in found.why
    assert half(tmp_path, reruns=RERUNS, argmax=None).text == "lossless: ties only"
    found = half(tmp_path, reruns=RERUNS, argmax=ARGMAX | {"passed": None})
    assert found.text == "lossless: ties only"
    assert "too few answers" in found.why


def test_unexplained_differences_are_not_audited(tmp_path: Path) -> None:
    row = entry(dtype="bfloat16", equal=5, unexplained=3)
    found = badge(page(tmp_path, row, dtype="bfloat16"))
    assert found[:2] == ("not audited", "plain")
    assert "3 of 8 answers differ and are not explained" in found.why


def test_samples_drawn_elsewhere_verify_nothing(tmp_path: Path) -> None:
    for changes in ({"engine": "graph"}, {"device": "a CPU"}):
        found = sampled(tmp_path, TEST | OWN | changes)
        assert found[:2] == ("audited in part", "plain")
    assert sampled(tmp_path, TEST | OWN).kind == "good"


def test_no_audit_and_an_old_one_earn_nothing(tmp_path: Path) -> None:
    for state in ("not audited", "audit is of older records"):
        found = badge(page(tmp_path, audit=state))
        assert found[:2] == ("not audited", "plain")
        assert badges.COMMAND in found.why
    assert badge(page(tmp_path)).text == "not audited"
    assert badge(page(tmp_path, entry(label="other"))).text == "not audited"
    assert badge(page(tmp_path, entry(compared=0, equal=0))).text == "not audited"


def test_lost_prompts_are_said(tmp_path: Path) -> None:
    found = badge(page(tmp_path, entry(left_out=2)))
    assert found[:2] == ("audited in part", "plain")
    assert badge(page(tmp_path, entry(left_out=2, equal=7, defects=1))).kind == "bad"


def test_samplers_earn_it_by_what_they_draw(tmp_path: Path) -> None:
    assert sampled(tmp_path, {}).text == "not audited"
    found = sampled(tmp_path, TEST)
    assert found[:2] == ("lossless: verified (2,048 tokens)", "good")
    found = sampled(tmp_path, TEST | {"passed": False, "p_holm": 1e-9})
    assert found[:2] == ("defects", "bad")
    assert sampled(tmp_path, TEST | {"tokens": 400})[:2] == ("audited in part", "plain")
    found = sampled(tmp_path, {"p": None, "error": "RuntimeError: no"})
    assert found == Badge("not audited", "plain", "RuntimeError: no")


def test_a_lossy_row_is_lossy_whatever_its_figures(tmp_path: Path) -> None:
    row = entry(label="loose", compared=0, equal=0, agreement=1.0, perplexity=2.0)
    assert badge(page(tmp_path, row), "loose")[:2] == ("lossy", "warn")


def test_the_reference_has_no_badge_to_earn_but_can_lose(tmp_path: Path) -> None:
    failed = entry(label="autoregressive", temperature=1.0, sampling=TEST | {"passed": False})
    shown = page(tmp_path, failed, temperature=1.0)
    row = speedup.speedup(shown.records).iloc[0].to_dict()
    assert row["reference"]
    assert badges.badge(shown, row).kind == "bad"
    good = page(tmp_path, temperature=1.0)
    assert badges.badge(good, row) == Badge("reference", "plain", "the others are compared with it")


def test_the_words_are_defined() -> None:
    terms = [term for term, _ in badges.DEFINITIONS]
    assert len(set(terms)) == len(terms)
    assert pd.notna(terms).all()
    assert all(text.endswith(".") for _, text in badges.DEFINITIONS)
