"""docs/train-a-draft.md: its commands, in order, on a small model in a folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from bench.decoding.decoder import TargetInfo
from bench.questions import registry
from bench.run import __main__ as run
from bench.run import methods, preflight
from bench.targets import registry as targets
from bench.training import distill, pack, train, trees
from bench.training.prompts import __main__ as prompts
from tests import harness
from tests.qwen2 import save_qwen2
from tests.test_readme import blocks

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs/train-a-draft.md"
MODULES: dict[str, Any] = {
    "bench.training.prompts": prompts,
    "bench.training.distill": distill,
    "bench.training.train": train,
    "bench.training.pack": pack,
    "bench.training.trees": trees,
    "bench.run": run,
}
# Flags behind the document's own, which they replace, so that a command takes seconds.
CPU = ("--device", "cpu")
SMALL = {
    "bench.training.prompts": ("--count", "60"),
    "bench.training.distill": (
        *("--sequences", "24", "--length", "96", "--user-tokens", "12"),
        *CPU,
    ),
    "bench.training.train": ("--steps", "2", "--tokens", "768", "--anchors", "4", *CPU),
    "bench.training.pack": (),
    "bench.training.trees": ("--length", "256", *CPU),
    "bench.run": (
        *("--limit", "1", "--turns", "1", "--max-new-tokens", "8", "--repeats", "1"),
        *("--no-report", *CPU),
    ),
}


def commands(text: str) -> list[list[str]]:
    """The words of every command in a document's consoles."""
    lines = "".join(blocks(text, "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


def call(words: list[str]) -> int:
    """The exit code of `python -m MODULE ...`, at a small size on the CPU."""
    python, dash_m, module, *argv = words
    assert (python, dash_m) == ("python", "-m")
    with harness.one_thread():
        code: int = MODULES[module].main([*argv, *SMALL[module]])
    return code


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the document's `my-model` and `prompts.jsonl`; packaged question sets alone."""
    packaged = {name: registry.REGISTRY[name] for name in ("mini", "tuning")}
    monkeypatch.setattr(registry, "REGISTRY", packaged)
    monkeypatch.chdir(tmp_path)
    save_qwen2(tmp_path / "my-model")
    (forms,) = blocks(DOCUMENT.read_text(encoding="utf-8"), "json")
    rows = [
        forms.replace("hash table", f"{thing} table") for thing in ("sea", "hash", "tea", "bee")
    ]
    Path("prompts.jsonl").write_text("".join(rows))
    return tmp_path


@pytest.mark.usefixtures("workplace")
def test_every_command_runs_from_an_empty_folder() -> None:
    found = commands(DOCUMENT.read_text(encoding="utf-8"))
    assert {words[2] for words in found} == set(MODULES)
    for count, words in enumerate(found):
        out = ["--out", f"out-{count}"] if words[2] == "bench.run" else []
        assert call([*words, *out]) == 0, shlex.join(words)
    first = [words[2] for words in found].index("bench.run")
    records = harness.kept(f"out-{first}")
    assert {r["method"] for r in records} == {"autoregressive", "chimera", "chimera_plus", "medusa"}
    assert {r["status"] for r in records} == {"ok"}
    for name in ("chimera", "chimera_plus", "medusa"):
        card = json.loads(Path(f"trained/my-model/{name}-0.json").read_text())
        assert card["tree_source"]["set"] == "tuning"
        assert card["target"] == "my-model"
    prompts = json.loads(Path("data/my-prompts/data.json").read_text())
    assert 0 < prompts["sequences"] <= 4, "one first turn a table, but one in four has two"
    assert prompts["answer_tokens"] > 0


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("given", ["my-model", "./a folder/my-model", "organisation/my-model"])
def test_the_command_for_a_missing_draft_can_be_pasted(given: str) -> None:
    path = Path(given)
    if given.startswith("./"):
        path.parent.mkdir()
        Path("my-model").rename(path)
    target = targets.resolve(given)
    medusa = methods.discover()["medusa_typical"].load()
    reason = medusa.unavailable(
        TargetInfo(target.name, argument=target.argument), medusa.settings_type()
    )
    assert reason is not None
    found = re.search(r"run `(.*)`, then pass --checkpoint (\S+)$", reason)
    assert found is not None
    steps = [shlex.split(part) for part in found[1].split(" && ")]
    assert [step[step.index("--models") + 1] for step in steps] == [given] * 2
    method, _, weights = found[2].partition("=")
    assert method == "medusa_typical"
    if path.is_dir():
        assert preflight.describe(target).argument == given
        assert [call(step) for step in steps] == [0, 0]
        assert Path(weights).is_file()
