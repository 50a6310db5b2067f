"""Figures in documents: generated from records, and a difference is found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from reports import quote
from tests.reports.fabricate import record, write_run
from tests.reports.studies import example, write_study

BEGIN = "# A document\n\nBefore.\n\n"
SPEEDS: dict[str, Any] = {
    "runs": ["results/run"],
    "table": "methods",
    "sort": "speedup",
    "columns": {"method": "`{name}`", "speedup": "{speedup:.2f} [{low:.2f}, {high:.2f}]"},
}
SENTENCE: dict[str, Any] = {
    "runs": ["results/run"],
    "table": "methods",
    "where": {"reference": False},
    "text": "The best is {best} of {name}.",
    "figures": {
        "best": {"most": "speedup", "show": "{speedup:.1f}"},
        "name": {"where": {"method": "fast"}, "show": "{name}"},
    },
}
SPEED_TABLE = """\
| method | speedup |
| --- | --- |
| `autoregressive` | 1.00 |
| `slow` | 1.00 |
| `fast(n=3,k=2)` | 2.00 |
"""


def checkout(root: Path, blocks: Mapping[str, Any], shown: Mapping[str, str]) -> Path:
    """A checkout with one run, its registry and a document with the blocks in `shown`."""
    fast = record("fast", decode_s=2.0, params={"n": 3, "k": 2}, accept_lengths=[3, 1], drafted=6)
    write_run(root / "results/run", [record(), fast, record("slow", decode_s=4.0)])
    (root / "docs").mkdir(exist_ok=True)
    registry = {"documents": ["README.md"], "blocks": blocks}
    (root / "docs/figures.yaml").write_text(yaml.safe_dump(registry, sort_keys=False))
    marked = [f"<!-- figures: {name} -->\n{body}<!-- end -->\n" for name, body in shown.items()]
    (root / "README.md").write_text(BEGIN + "\nBetween.\n\n".join(marked) + "\nAfter.\n")
    return root


def run(root: Path, action: str) -> int:
    return quote.main([action, "--root", str(root)])


def test_blocks_are_written_and_the_rest_is_kept(tmp_path: Path) -> None:
    blocks = {"speeds": SPEEDS, "sentence": SENTENCE}
    root = checkout(tmp_path, blocks, {"speeds": "| 9.99 |\n", "sentence": ""})
    assert run(root, "--write") == 0
    sentence = "The best is 2.0 of fast(n=3,k=2).\n"
    expected = checkout(
        tmp_path / "expected", blocks, {"speeds": SPEED_TABLE, "sentence": sentence}
    )
    assert (root / "README.md").read_text() == (expected / "README.md").read_text()
    assert run(root, "--check") == 0


def test_a_typed_figure_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = checkout(tmp_path, {"speeds": SPEEDS}, {"speeds": ""})
    assert run(root, "--write") == 0
    document = root / "README.md"
    document.write_text(document.read_text().replace("2.00", "2.50"))
    capsys.readouterr()
    assert run(root, "--check") == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("README.md: speeds differs from the records")
    assert "2.50" in document.read_text(), "a check writes nothing"


def test_changed_records_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = checkout(tmp_path, {"sentence": SENTENCE}, {"sentence": ""})
    assert run(root, "--write") == 0
    lock = json.loads((root / "docs/figures.lock").read_text())
    assert list(lock["sentence"]) == ["results/run"]
    extra = record("slow", decode_s=4.0, prompt_id=2, prompt_sha256="bb")
    records = root / "results/run/records.jsonl"
    kept = records.read_text().splitlines()
    write_run(root / "results/run", [*map(json.loads, kept), extra])
    capsys.readouterr()
    assert run(root, "--check") == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("docs/figures.lock: sentence differs")


def test_figures_of_a_cost_study(tmp_path: Path) -> None:
    block = {
        "runs": ["results/study"],
        "table": "forwards",
        "key": ["width"],
        "where": {"engine": "eager", "context": 1000, "model": "synthetic:tiny"},
        "columns": {"width": "{width}", "over the floor": "{over_floor:.2f}"},
    }
    root = checkout(tmp_path, {"forwards": block}, {"forwards": ""})
    write_study(root / "results/study", example())
    assert run(root, "--write") == 0
    assert "| width | over the floor |\n| --- | --- |\n| 1 | " in (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": "speeds"}, "no table 'speeds'; choose from methods"),
        ({"runs": ["results/none"]}, "results/none"),
        ({"where": {"method": "none"}}, "no row has"),
        ({"columns": {"method": "{unknown}"}}, "no column 'unknown' in methods"),
        ({"where": {"unknown": 1}}, "no column 'unknown' in methods"),
        ({"key": ["reference"]}, "2 rows have"),
        ({"colums": {}}, "must be a mapping of runs, table"),
        ({"columns": {"method": {"shows": ""}}}, "must be a mapping of show"),
    ],
)
def test_what_the_records_do_not_have_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    root = checkout(tmp_path, {"speeds": SPEEDS | changes}, {"speeds": ""})
    assert run(root, "--check") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- figures: other -->\n<!-- end -->\n", "has no block 'other'"),
        ("<!-- figures: speeds -->\n", "has no `<!-- end -->` line"),
        ("Nothing.\n", "no document has the block 'speeds'"),
    ],
)
def test_blocks_and_documents_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    root = checkout(tmp_path, {"speeds": SPEEDS}, {})
    (root / "README.md").write_text(text)
    assert run(root, "--check") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_outside_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--check") == 2
    assert "--root" in capsys.readouterr().err
