"""The shipped configurations resolve, except for weights, without a GPU and a network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bench.cli import PROVENANCE
from bench.questions import sets
from bench.questions.parsing import Questions
from bench.questions.registry import REGISTRY
from bench.records import validation
from bench.run.__main__ import main
from bench.run.config import resolve
from bench.targets import registry as targets
from tests.harness import QUESTIONS, TURNS, kept, of, one_thread, work_in
from tests.test_eagle3 import saved
from tests.test_published import Draft, V, medusa_state, save_draft, target, with_own_heads

FOLDER = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(FOLDER.iterdir())
VICUNA = "paper-vicuna-7b.yaml"
# file: (model, published Medusa, published Chimera)
PAPER = {
    VICUNA: (
        "vicuna-7b-v1.3",
        "FasterDecoding/medusa-vicuna-7b-v1.3",
        "anonymous6690/Chimera-Vicuna-7b-v1.3",
    ),
    "paper-vicuna-13b.yaml": (
        "vicuna-13b-v1.3",
        "FasterDecoding/medusa-vicuna-13b-v1.3",
        "anonymous6690/Chimera-Vicuna-13b-v1.3",
    ),
    "paper-llama-2-7b-chat.yaml": ("llama-2-7b-chat", None, "anonymous6690/Chimera-LlaMA-2-7b"),
    "paper-llama-2-13b-chat.yaml": ("llama-2-13b-chat", None, "anonymous6690/Chimera-LlaMA-2-13b"),
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every registered set looks like `mini`; loading weights and downloading fail."""
    mini = sets.load("mini", None)

    def load(name: str, data_dir: Path | None) -> Questions:  # noqa: ARG001
        return replace(mini, name=REGISTRY[name].name)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run loads no model")

    monkeypatch.setattr(sets, "load", load)
    monkeypatch.setattr(targets, "load", refuse)
    monkeypatch.chdir(tmp_path)


def test_the_papers_grid_is_there() -> None:
    assert set(PAPER) <= {path.name for path in FILES}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_passes_a_dry_run(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(path), "--dry-run"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert list(tmp_path.iterdir()) == []
    text, _, settings_text = shown.out.partition("\n\n")
    settings = yaml.safe_load(settings_text)
    assert set(settings[PROVENANCE]["datasets"]) == set(settings["datasets"])
    assert f"python -m bench.run --config configs/{path.name}" in path.read_text()
    for model in settings["models"]:
        assert f"model       {model}: " in text
    labels = [line.split()[1] for line in text.splitlines() if line.startswith("method ")]
    assert labels.count("autoregressive") == 1
    assert len(labels) == len(settings["methods"]) + 1


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_runs_are_its_grid(name: str) -> None:
    config, provenance = resolve({}, FOLDER / name)
    model, medusa, chimera = PAPER[name]
    assert provenance == {}
    assert config.models == [model]
    assert set(config.datasets) == {"mt_bench", "vicuna_bench"}
    assert config.temperature[0] == 0.0
    assert any(temperature > 0 for temperature in config.temperature)
    assert "transformers_generate" in config.methods
    assert any(method.startswith("lookahead") for method in config.methods)
    assert "chimera(nodes=25,vocab=0)" in config.methods
    assert ("medusa(nodes=63)" in config.methods) == (medusa is not None)
    drafts = {"medusa": medusa, "chimera": chimera}
    assert config.checkpoint == [f"{key}={hub}" for key, hub in drafts.items() if hub]
    assert config.tree == "paper"
    assert (config.limit, config.turns, config.device) == (None, None, "auto")
    assert config.repeats >= 3


def a_small_llama(folder: Path) -> Path:
    """A checkpoint of the shape that the fabricated drafts fit, with a tokenizer of characters."""
    torch.manual_seed(3)
    config = target(num_hidden_layers=2, max_position_embeddings=512, initializer_range=0.5)
    LlamaForCausalLM(config).save_pretrained(folder)
    ids = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *" abcdefhilmnorstuwy?"])}
    core = Tokenizer(models.WordLevel(vocab=ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['content'] }} {% endfor %}",
    ).save_pretrained(folder)
    assert len(ids) <= V
    return folder


def test_a_paper_run_decodes_with_drafts_in_the_published_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in(tmp_path, monkeypatch)
    states = Draft().states()
    heads = states["chimera_head.pt"]
    heads |= {f"{i}.0.weight": heads["0.0.weight"].roll(i, 0) for i in (3, 4)}
    model = a_small_llama(tmp_path / "small-llama")
    medusa = with_own_heads(tmp_path / "medusa", medusa_state(depth=5))
    chimera = save_draft(tmp_path / "chimera", states)
    flags = (
        *("--config", str(FOLDER / VICUNA), "--out", "run", "--no-report"),
        *("--models", str(model), "--checkpoint", f"medusa={medusa}", f"chimera={chimera}"),
        *("--datasets", QUESTIONS, "--limit", "2", "--max-new-tokens", "8", "--repeats", "1"),
        *("--device", "cpu", "--dtype", "float32"),
    )
    with one_thread():
        assert main(list(flags)) == 0
    assert {record["status"] for record in kept("run")} == {"ok"}
    assert validation.check("run") == []

    def greedy(method: str) -> dict[tuple[str, int], list[int]]:
        return {
            (record["prompt_id"], record["turn"]): record["output_ids"]
            for record in of("run", method)
            if record["temperature"] == 0
        }

    expected = greedy("autoregressive")
    assert len(expected) == 2 * TURNS // 3
    for method, nodes in (("medusa", 63), ("chimera", 25)):
        assert greedy(method) == expected
        assert {record["temperature"] for record in of("run", method)} == {0.0, 1.0}
        for record in of("run", method):
            assert record["drafted"] == nodes * len(record["accept_lengths"])
            assert record["checkpoint_sha256"]
        assert max(max(record["accept_lengths"], default=1) for record in of("run", method)) > 1


EAGLE3 = {
    "eagle3-vicuna-13b.yaml": ("vicuna-13b-v1.3", "yuhuili/EAGLE3-Vicuna1.3-13B"),
    "eagle3-llama-3.1-8b.yaml": ("llama-3.1-8b-instruct", "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"),
}


@pytest.mark.parametrize("name", EAGLE3)
def test_the_comparison_with_eagle_3_names_the_authors_drafts(name: str) -> None:
    config, _ = resolve({}, FOLDER / name)
    model, hub = EAGLE3[name]
    assert config.models == [model]
    assert f"eagle3={hub}" in config.checkpoint
    assert "eagle3(nodes=60,depth=8,beam=10)" in config.methods


def test_it_decodes_with_a_draft_in_the_authors_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in(tmp_path, monkeypatch)
    model = a_small_llama(tmp_path / "small-llama")
    flags = (
        *("--config", str(FOLDER / "eagle3-llama-3.1-8b.yaml"), "--out", "run", "--no-report"),
        *("--models", str(model), "--checkpoint", f"eagle3={saved(tmp_path / 'draft')}"),
        *("--datasets", QUESTIONS, "--limit", "1", "--max-new-tokens", "8", "--repeats", "1"),
        *("--device", "cpu", "--dtype", "float32", "--engine", "eager"),
    )
    with one_thread():
        assert main(list(flags)) == 0
    assert {record["status"] for record in kept("run")} == {"ok"}
    assert validation.check("run") == []
    greedy = [
        [record["output_ids"] for record in of("run", method) if record["temperature"] == 0]
        for method in ("autoregressive", "eagle3")
    ]
    assert greedy[0] == greedy[1]
    assert all(record["checkpoint_sha256"] for record in of("run", "eagle3"))
