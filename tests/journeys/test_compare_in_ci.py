"""A build compares a run with the one before it, and fails where a method became slower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.qwen2 import save_qwen2

if TYPE_CHECKING:
    from tests.journeys.conftest import Shell

pytestmark = pytest.mark.journeys

LABEL = "prompt_lookup(n=3,k=10)"


def slow_copy(run: Path, copy: Path, factor: float) -> None:
    """A copy of a run in which the decode loops of prompt_lookup took `factor` times as long."""
    shutil.copytree(run, copy)
    records = [json.loads(line) for line in (run / "records.jsonl").open()]
    for record in records:
        if record["method"] == "prompt_lookup" and not record["clock"]:
            record["decode_s"] *= factor
    (copy / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (copy / "audit.json").unlink()  # of the records as they were


def test_a_build_fails_where_a_method_became_slower(shell: Shell) -> None:
    save_qwen2(shell.folder / "my-qwen")  # synthetic models have no speedup to compare
    run = (
        "python -m bench.run --models ./my-qwen --methods prompt_lookup --limit 4 "
        "--turns 1 --max-new-tokens 24 --repeats 2 --device cpu --dtype float32 --no-report"
    )
    for name in ("before", "after"):
        shell(f"{run} --out {name}")
    compare = "chimera-bench compare before {} --fail-slower 50% --json {}.json"
    said = shell(compare.format("after", "same")).stdout
    assert "Settings and environment: the same\n" in said
    limit = "slower by significantly more than 50 %"
    assert said.endswith(f"\n{limit}: 0 of 1 row\n")
    (row,) = json.loads((shell.folder / "same.json").read_text())["rows"]
    assert row["label"] == LABEL

    slow_copy(shell.folder / "after", shell.folder / "slow", 8.0)
    said = shell(compare.format("slow", "slow"), code=1).stdout
    assert limit.upper() in said
    assert said.endswith(f"\n{limit}: 1 of 1 row\n")
    (row,) = json.loads((shell.folder / "slow.json").read_text())["rows"]
    assert row["slower"] is True

    missing = shell.refused("chimera-bench compare before aftr --fail-slower 50%")
    assert "aftr" in missing
