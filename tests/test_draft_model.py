"""Drafting with a smaller model: its cache, its engine, and models that cannot draft."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from baselines.draft_model import DraftModel, DraftModelSettings
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.trial import beside
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.run.runner import run_turn
from bench.targets import synthetic
from bench.targets.registry import SMALLER, TARGETS
from tests import harness
from tests.decoding.known import Known, known_predictable
from tests.harness import run

ITSELF = DraftModelSettings(model="synthetic:predictable", k=3)


@pytest.fixture(scope="module")
def known() -> Known:
    return known_predictable(kv_heads=2)


@pytest.mark.parametrize("engine", [None, CompiledTarget])
def test_a_model_that_drafts_for_itself_is_always_right(
    known: Known, engine: type[TargetModel] | None
) -> None:
    """So its cache holds the right row at every position, after full acceptance too."""
    target = known.fresh() if engine is None else engine(known.fresh().model)
    decoder = DraftModel(target, ITSELF)
    for prompt in known.prompts[:2]:
        turn = run_turn(decoder, prompt, Sampling(), 21, eos_ids=())
        assert turn.output_ids == known.expected(prompt, 21)
        assert turn.accept_lengths == [4] * 5
        assert turn.draft_prefill_s is not None
        assert turn.draft_prefill_s > 0


def test_without_the_row_before_the_newest_drafts_go_wrong(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control: the cache is thought to hold what the draft model has not read."""
    rewind = DraftModel.advance

    def late(self: DraftModel, *step: object) -> None:
        rewind(self, *step)  # type: ignore[arg-type]
        self.model.cache.length += 1
        self.model.length.add_(1)

    monkeypatch.setattr(DraftModel, "advance", late)
    turn = run_turn(DraftModel(known.fresh(), ITSELF), known.prompts[0], Sampling(), 21, ())
    assert turn.output_ids == known.expected(known.prompts[0], 21)
    assert turn.accept_lengths is not None
    assert turn.accept_lengths != [4] * 5


def test_decoders_of_one_target_share_the_draft_model(known: Known) -> None:
    target = known.fresh()
    few, many = DraftModel(target, ITSELF), DraftModel(target, DraftModelSettings(ITSELF.model, 5))
    assert few.model is many.model is not target
    assert few.draft_parameters == sum(p.numel() for p in target.model.parameters())
    table = target.embeddings().weight.numel()  # not tied: one row is read
    assert few.draft_bytes() == 3 * 4 * (few.draft_parameters - table)
    assert many.draft_bytes() * 3 == few.draft_bytes() * 5


def test_an_engine_that_cannot_run_the_draft_model_says_so(known: Known) -> None:
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with pytest.raises(ValueError, match=r"other cannot run on engine compile: .*; choose another"):
        beside(CompiledTarget(known.fresh().model), GraniteForCausalLM(config).eval(), "other")


def test_every_registered_pair_has_one_tokenizer() -> None:
    for large, small in SMALLER.items():
        assert TARGETS[large].chat_template == TARGETS[small].chat_template
        assert TARGETS[large].kind == TARGETS[small].kind


def saved(name: str, other_tokens: bool = False) -> Path:
    """A checkpoint folder with the model `synthetic:predictable`."""
    model, tokenizer = synthetic.build("synthetic:predictable", "cpu", torch.float32)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    if other_tokens:
        path = Path(name, "tokenizer.json")
        text = path.read_text()
        a, b = re.search(r'"x": (\d+)', text), re.search(r'"y": (\d+)', text)
        assert a is not None
        assert b is not None
        path.write_text(text.replace(a[0], f'"x": {b[1]}').replace(b[0], f'"y": {a[1]}'))
    return Path(name).resolve()


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("synthetic:tiny", "synthetic:tiny has 512 tokens and synthetic:predictable 64; name"),
        ("other", "other has another tokenizer than synthetic:predictable: token 'x' has id"),
        ("nowhere", "unknown model 'nowhere'; known are"),
    ],
)
def test_what_cannot_draft_is_refused_before_weights_load(
    model: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    if model == "other":
        saved(model, other_tokens=True)
        capsys.readouterr()
    label = f"draft_model(model={model},k=4)"
    for mode in (["--dry-run"], []):
        assert run("--out", "new", "--methods", label, *mode) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith(f"error: {label}: {complaint}")
        assert error.count("\n") == 1


def test_a_target_without_a_registered_draft_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    assert run("--methods", "draft_model", "--dry-run") == 0
    assert (
        "synthetic:predictable has no draft_model(model=auto,k=4): no smaller model with the "
        "tokenizer of synthetic:predictable is registered; name one: draft_model(model=NAME)"
    ) in capsys.readouterr().out


def test_a_run_and_its_audit_with_a_draft_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    folder = saved("small")
    assert run("--methods", f"draft_model(model={folder},k=2)", "--limit", "1", "--out", "r") == 0
    records = harness.of("r", "draft_model")
    assert [r["status"] for r in records] == ["ok", "ok"]
    assert {r["params"]["model"] for r in records} == {"small"}
    assert {r["accept_lengths"][0] for r in records} == {3}
    for name, content in harness.contents(Path("r")).items():
        assert str(tmp_path).encode() not in content, name
