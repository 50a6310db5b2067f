"""An engineer runs a Qwen2 of their own from its folder, and trains the draft that it lacks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.qwen2 import save_qwen2

if TYPE_CHECKING:
    from tests.journeys.conftest import Shell

pytestmark = pytest.mark.journeys

SCALE = {  # flags behind those of the commands, so that they take seconds
    "distill": "--sequences 24 --length 96 --user-tokens 12 --device cpu",
    "train": "--steps 2 --tokens 768 --anchors 4 --device cpu",
}


def test_an_engineer_runs_a_model_from_its_folder_and_trains_its_draft(
    shell: Shell, small: str
) -> None:
    folder = shell.folder / "my models" / "my-qwen"
    save_qwen2(folder)
    run = f"chimera-bench run --models 'my models/my-qwen' --methods chimera {small}"

    planned = shell(f"{run} --dry-run").stdout
    steps = re.search(r"run `(.*) && (.*)`, then pass (--checkpoint \S+)", planned)
    assert steps, planned
    distill, train, checkpoint = steps.groups()
    assert all("--models 'my models/my-qwen'" in step for step in (distill, train))
    ended = shell(f"{run} --engine eager compile --out without")
    assert "cannot run here" not in ended.stderr
    assert "  chimera: skipped: no chimera weights for my-qwen; run `" in ended.stderr
    assert (shell.folder / "without/index.html").is_file()

    shell(f"{distill} {SCALE['distill']}")
    shell(f"{train} {SCALE['train']}")
    ended = shell(f"{run} {checkpoint} --out with")
    assert ended.stdout.startswith("my-qwen · mini · eager · T=0\n")
    assert "\n  chimera " in ended.stdout  # a label no longer than it needs to be
    assert "skipped" not in ended.stderr
    assert "no violations" in shell("chimera-bench check without with").stdout
