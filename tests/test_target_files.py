"""Checkpoint folders: strict loading, what is refused in one line, and what the revision covers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bench.errors import UsageError
from bench.targets import registry as targets
from bench.targets import synthetic

WEIGHTS = "model.safetensors"
Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder with a tokenizer."""
    model, tokenizer = synthetic.build("synthetic:predictable", "cpu", torch.float32)
    path = tmp_path / "mine"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def load(folder: Path) -> targets.Loaded:
    return targets.load(targets.resolve(str(folder)), "cpu", torch.float32)


def refusal(folder: Path) -> str:
    """The one line by which the folder is refused."""
    with pytest.raises(UsageError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith("mine cannot ")
    assert "\n" not in message
    return message


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def to_bin(folder: Path) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS), path)
    (folder / WEIGHTS).unlink()
    return path


def shard(folder: Path) -> None:
    """In two shards, of which the second is missing."""
    names = sorted(load_file(folder / WEIGHTS))
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in names[5:]])
    (folder / WEIGHTS).rename(folder / first)
    listed = {name: first if i < 5 else second for i, name in enumerate(names)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": listed}))


BROKEN: dict[str, tuple[Damage, str]] = {
    "missing tensor": (
        lambda f: rewrite(f, lambda t: t.pop("lm_head.weight")),
        "lack lm_head.weight",
    ),
    "more layers": (
        lambda f: edit(f / "config.json", num_hidden_layers=3),
        "lack model.layers.2.",
    ),
    "fewer layers": (
        lambda f: edit(f / "config.json", num_hidden_layers=1),
        "have model.layers.1.",
    ),
    "other shape": (
        lambda f: edit(f / "config.json", vocab_size=70),
        r"lm_head.weight [64, 96], not [70, 96]",
    ),
    "cut short": (lambda f: cut(f / WEIGHTS), f"{WEIGHTS} is cut short"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is empty"),
    "another format": (lambda f: (f / WEIGHTS).write_bytes(b"hello" * 9), "no safetensors file"),
    "cut bin": (lambda f: cut(to_bin(f)), "cannot be loaded"),
    "missing shard": (shard, "model-00002-of-00002.safetensors, which is not there"),
    "index of nothing": (
        lambda f: (f / WEIGHTS).rename(f / "x") and (f / f"{WEIGHTS}.index.json").write_text("{}"),
        "no weight_map",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"holds none of {WEIGHTS}"),
    "config is not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json is not JSON",
    ),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "empty config": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "unknown model": (lambda f: edit(f / "config.json", model_type="nope"), "nope"),
    "generation_config": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json is not JSON",
    ),
    "tokenizer cut": (lambda f: cut(f / "tokenizer.json"), "tokenizer.json is not JSON"),
    "tokenizer of another form": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "its tokenizer",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "neither tokenizer.json"),
    "EOS outside": (
        lambda f: edit(f / "generation_config.json", eos_token_id=[63, 999]),
        "end-of-sequence id 999",
    ),
    "sliding window": (
        lambda f: edit(f / "config.json", model_type="mistral", sliding_window=8),
        "sliding window",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, words = BROKEN[name]
    damage(folder)
    assert words in refusal(folder)
    assert capfd.readouterr() == ("", "")


def test_a_good_folder_loads_without_a_word(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    )
    load(folder)
    to_bin(folder)
    load(folder)
    assert capfd.readouterr() == ("", "")


def test_a_tied_head_need_not_be_in_the_file(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=63,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "mine")
    synthetic.tokenizer(64, 2048).save_pretrained(tmp_path / "mine")
    assert "lm_head.weight" not in load_file(tmp_path / "mine" / WEIGHTS)
    load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rms_norm_eps": 1e-5}),
        ("generation_config.json", {"eos_token_id": [5, 63]}),
        ("tokenizer_config.json", {"eos_token": "a"}),
        ("chat_template.jinja", "{{ messages[0]['content'] }}"),
    ],
)
def test_the_revision_covers_weights_and_settings(folder: Path, file: str, change: Any) -> None:
    target = targets.resolve(str(folder))
    before = targets.revision(target)
    assert re.fullmatch(r"[0-9a-f]{64}\+[0-9a-f]{8}", before)
    if isinstance(change, str):
        (folder / file).write_text(change)
    else:
        edit(folder / file, **change)
    weights, _, _ = before.partition("+")
    assert targets.revision(target).startswith(weights + "+")
    assert targets.revision(target) != before
    (folder / "README.md").write_text("more")
    assert targets.revision(target) == load(folder).revision


def test_what_ships_keeps_its_revision() -> None:
    for name in ("smollm2-135m", "qwen2.5-coder-0.5b", "synthetic:tiny"):
        assert "+" not in targets.revision(targets.resolve(name))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"is a file; give the folder .* or a .gguf file"):
        targets.resolve(str(path))
