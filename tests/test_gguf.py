"""GGUF files as models: what is converted, what is refused, and their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UsageError
from bench.questions import chat
from bench.run.__main__ import main
from bench.targets import registry as targets
from tests import gguf_files
from tests.gguf_files import CALL, END, START, STOP, TOKENS
from tests.harness import ask, work_in


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHIMERA_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def load(path: Path, dtype: torch.dtype = torch.float32) -> targets.Loaded:
    return targets.load(targets.resolve(str(path)), "cpu", dtype)


def test_a_file_is_converted_once_and_gives_the_same_logits(
    path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf_files.write(path)
    target = targets.resolve(str(path))
    config = targets.config(target)
    assert config is not None
    assert config.num_hidden_layers == 2
    assert not list(cache.iterdir())

    loaded = targets.load(target, "cpu", torch.float32)
    ids = torch.arange(12).unsqueeze(0)
    assert torch.equal(loaded.model(ids).logits, gguf_files.model()(ids).logits)
    assert "converting" in capsys.readouterr().err
    assert (loaded.target.name, targets.status(target)) == ("tiny", None)
    assert loaded.revision == targets.revision(target)

    moved = path.rename(path.with_name("other.gguf"))
    assert load(moved).revision == loaded.revision
    assert "converting" not in capsys.readouterr().err


def test_quantised_weights_become_plain_bfloat16(path: Path) -> None:
    expected = gguf_files.write(path, quantised=True)
    loaded = load(path, torch.bfloat16)
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in expected)
    assert "quantization_config" not in loaded.model.config.to_dict()
    assert {p.dtype for p in load(path).model.parameters()} == {torch.float32}


def test_another_file_at_the_same_path_is_another_model(path: Path) -> None:
    gguf_files.write(path)
    first = load(path)
    gguf_files.write(path, quantised=True)
    second = load(path)
    assert first.revision != second.revision
    assert not torch.equal(first.model.lm_head.weight, second.model.lm_head.weight)


def test_the_tokenizer_has_the_files_control_tokens_ends_and_template(path: Path) -> None:
    gguf_files.write(path)
    loaded = load(path)
    tokenizer = loaded.tokenizer
    assert len(tokenizer) == loaded.model.config.vocab_size
    for token in (END, START, STOP, CALL):
        assert tokenizer(token).input_ids == [TOKENS.index(token)]
    assert set(tokenizer.all_special_tokens) >= {END, STOP}
    assert tokenizer.decode([TOKENS.index(t) for t in (START, CALL, STOP)], True) == CALL
    assert tokenizer.eos_token == STOP
    assert loaded.eos_ids == {TOKENS.index(STOP), TOKENS.index(END)}
    pieces = [tokenizer.decode([i]) for i in tokenizer("hell 12 e\u0301").input_ids]
    assert pieces == ["he", "ll", " ", "1", "2", " ", "\ufffd", "\ufffd"]  # digits apart, NFC
    prompt = chat.render(tokenizer, [{"role": "user", "content": "he"}], None)
    assert prompt[0] == TOKENS.index(START)
    assert prompt.count(TOKENS.index(START)) == 2
    assert tokenizer.decode(prompt).endswith("he<|im_end|>\n<|im_start|>assistant\n")


def test_a_file_with_an_end_of_turn_ends_answers_there_too(path: Path) -> None:
    gguf_files.write(path, fields={"tokenizer.ggml.eot_token_id": TOKENS.index(START)})
    assert load(path).eos_ids == {TOKENS.index(t) for t in (START, STOP, END)}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"architecture": "nothing"}, "architecture nothing is not supported"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, "lack model.layers.1.mlp.up_proj.weight"),
        ({"fields": {"qwen2.rope.scaling.type": "yarn"}}, "drops the RoPE scaling"),
    ],
)
def test_a_file_that_transformers_does_not_convert_is_one_line(
    path: Path, cache: Path, options: dict[str, Any], reason: str
) -> None:
    gguf_files.write(path, **options)
    with pytest.raises(UsageError, match=reason) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("tiny cannot be converted: ")
    assert not list(cache.glob("**/*.safetensors"))


def test_a_file_that_is_cut_short_is_refused_before_weights_load(path: Path) -> None:
    gguf_files.write(path)
    whole = path.read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, 500, 30):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"tiny.gguf must be an intact GGUF file") as caught:
            targets.check(targets.resolve(str(path)))
        assert "\n" not in str(caught.value)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UsageError, match=r"tiny.gguf is no GGUF file"):
        targets.resolve(str(path))


def test_a_run_takes_a_gguf_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_files.write(path, quantised=True)
    work_in(tmp_path, monkeypatch)
    command = ["--models", str(path), "--datasets", str(ask(tmp_path / "asked.jsonl"))]
    command += ["--methods", "prompt_lookup", "--max-new-tokens", "8", "--limit", "1"]
    assert main([*command, "--repeats", "1", "--no-report"]) == 0
    (run,) = (tmp_path / "results").iterdir()
    assert run.name.startswith("tiny-")
    assert str(tmp_path) not in (run / "records.jsonl").read_text()
