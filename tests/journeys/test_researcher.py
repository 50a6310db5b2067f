"""A researcher asks questions of their own, greedily and sampled, and checks what came out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.journeys.conftest import Shell

pytestmark = pytest.mark.journeys

ROWS = [
    {"question_id": "sum", "category": "sums", "turns": ["how much is it?", "and now?"]},
    {"question_id": "bow", "category": "names", "turns": ["name the colours of a bow"]},
    {"question_id": "long", "category": "names", "turns": ["once more " * 400]},
]


def test_a_researcher_asks_questions_of_their_own(shell: Shell) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (shell.folder / "asked.jsonl").write_text(lines, encoding="utf-8-sig")
    ended = shell(
        "chimera-bench run --models synthetic:predictable --datasets asked.jsonl --out asked "
        "--methods prompt_lookup --temperature 0 1.0 --max-new-tokens 12 --repeats 1 "
        "--device cpu --dtype float32"
    )
    for temperature in (0, 1):
        assert f"synthetic:predictable · asked · eager · T={temperature}\n" in ended.stdout
    reason = r"skipped: turn 1 needs a context of \d+ tokens with its answer, the model has 2048"
    assert re.search(rf"^  prompt_lookup: {reason}$", ended.stderr, re.MULTILINE)
    records = [json.loads(line) for line in (shell.folder / "asked/records.jsonl").open()]
    skipped = {r["prompt_id"] for r in records if r["status"] == "skipped"}
    assert skipped == {"long"}
    assert {r["temperature"] for r in records if r["status"] == "ok"} == {0.0, 1.0}

    audited = shell("chimera-bench audit asked --draws 256").stdout
    assert audited.endswith("wrote asked/audit.json\n")
    assert "asked: 6 outputs compared: 6 equal, 0 ties, 0 defects\n" in audited
    checked = shell("chimera-bench check asked").stdout
    assert re.fullmatch(
        r"asked: \d+ records, \d+ ok, \d+ failed, \d+ skipped, no violations\n", checked
    )

    assert shell("chimera-bench view asked bow").stdout == "wrote asked/answer.html\n"
    page = (shell.folder / "asked/answer.html").read_text(encoding="utf-8")
    assert "prompt_lookup(n=3,k=10)" in page
    assert "the nearest are bow" in shell.refused("chimera-bench view asked bowl")
