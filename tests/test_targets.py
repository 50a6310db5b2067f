"""Targets: names, loading, the synthetic models, and the cache of the converted one."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from transformers import AutoModelForCausalLM, DynamicCache

from bench.errors import UsageError
from bench.targets import packaged, synthetic
from bench.targets import registry as targets

EXPECTED_PARAMETERS = {
    "synthetic:llama-7b": 6_738_415_616,
    "synthetic:llama-13b": 13_015_864_320,
    "synthetic:llama-33b": 32_528_943_616,
    "synthetic:smollm2-135m": 134_515_008,
    "synthetic:qwen2.5-0.5b": 494_032_768,
    "synthetic:qwen2.5-1.5b": 1_543_714_304,
}


# Names


def test_registered_names_resolve_to_themselves() -> None:
    assert targets.DEFAULT == "smollm2-135m"
    assert all(targets.resolve(name).name == name for name in targets.TARGETS)
    assert targets.resolve("vicuna-13b-v1.3").chat_template == "vicuna"
    assert targets.resolve("llama-2-7b-chat").chat_template == "llama-2-chat"
    assert targets.resolve("synthetic:llama-7b").synthetic
    assert not targets.resolve("smollm2-135m").synthetic
    assert all(target.licence and target.source for target in targets.TARGETS.values())


def test_a_hub_id_resolves_and_a_registered_one_keeps_its_template() -> None:
    other = targets.resolve("some-org/some-model-1.5B")
    assert (other.name, other.revision) == ("some-org/some-model-1.5B", None)
    assert targets.resolve("lmsys/vicuna-7b-v1.3") is targets.resolve("vicuna-7b-v1.3")


@pytest.mark.parametrize(
    "name", ["smolm2-135m", "vicuna-7b", "nothing like it", "", "a/b/c", "/no"]
)
def test_an_unknown_name_is_one_line_with_the_registered_names(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        targets.resolve(name)
    message = str(caught.value)
    assert "\n" not in message
    assert all(known in message for known in targets.TARGETS)


def test_an_unknown_name_shows_close_matches() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'smollm2-135m'"):
        targets.resolve("smolm2-135m")


def test_a_folder_resolves_by_its_name_only(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"config\.json"):
        targets.resolve(str(folder))
    (folder / "config.json").write_text("{}")
    target = targets.resolve(str(folder))
    assert target.name == "my-model"
    assert str(tmp_path) not in target.name + target.source + target.licence


# Loading


@pytest.fixture
def tiny() -> targets.Loaded:
    return targets.load(targets.resolve("synthetic:tiny"), "cpu", torch.float32)


def test_tiny_loads_ready_for_inference(tiny: targets.Loaded) -> None:
    ids = tiny.tokenizer("Hello, world", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = tiny.model(ids).logits
    assert torch.isfinite(logits).all()
    assert not tiny.model.training
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert {p.dtype for p in tiny.model.parameters()} == {torch.float32}
    assert tiny.model.config._attn_implementation == "sdpa"
    assert tiny.eos_ids == {tiny.tokenizer.eos_token_id}


def test_tiny_is_the_same_every_time_and_leaves_the_global_seed_alone(
    tiny: targets.Loaded,
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = targets.load(tiny.target, "cpu", torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert again.revision == tiny.revision
    for one, other in zip(tiny.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["synthetic:tiny", "synthetic:predictable"])
def test_half_precision_stays_finite_and_near_float32(name: str) -> None:
    full = targets.load(targets.resolve(name), "cpu", torch.float32)
    half = targets.load(targets.resolve(name), "cpu", torch.bfloat16)
    ids = torch.arange(40).unsqueeze(0)
    with torch.inference_mode():
        difference = half.model(ids).logits.float() - full.model(ids).logits
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert difference.abs().mean() < 0.05 * full.model(ids).logits.std()


@pytest.mark.parametrize("name", EXPECTED_PARAMETERS)
def test_synthetic_shapes_have_the_published_number_of_parameters(name: str) -> None:
    target = targets.resolve(name)
    config = targets.config(target)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == EXPECTED_PARAMETERS[name]
    assert targets.status(target) is None


def test_a_qwen2_shape_has_random_biases_and_unit_norms() -> None:
    config = synthetic.config("synthetic:qwen2.5-0.5b")
    config.num_hidden_layers, config.vocab_size = 1, 512
    model = synthetic.random(config, "cpu", torch.float32)
    vectors = {name: p for name, p in model.named_parameters() if p.dim() == 1}
    biases = [p for name, p in vectors.items() if name.endswith("bias")]
    assert len(biases) == 3
    assert all(0.01 < float(p.std()) < 0.03 for p in biases)
    assert all(bool((p == 1).all()) for name, p in vectors.items() if not name.endswith("bias"))
    with torch.inference_mode():
        assert torch.isfinite(model(torch.arange(9)[None]).logits).all()


@pytest.mark.parametrize("name", ["synthetic:tiny", "synthetic:predictable"])
def test_synthetic_tokenizers_take_any_text(name: str) -> None:
    loaded = targets.load(targets.resolve(name), "cpu", torch.float32)
    text = "Zoë asks:\n\t2 + 2 = ? ✓"
    for ids in (
        loaded.tokenizer(text).input_ids,
        loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        ).input_ids,
    ):
        assert len(ids) >= len(text)
        assert max(ids) < loaded.model.config.vocab_size
        assert not loaded.eos_ids & set(ids)
    assert "2 + 2 = ?" in loaded.tokenizer.decode(loaded.tokenizer(text).input_ids)
    assert loaded.tokenizer.decode(list(range(loaded.model.config.vocab_size)))


def test_a_folder_loads_with_the_sum_of_its_weights_and_every_eos_id(
    tiny: targets.Loaded, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    tiny.model.generation_config.eos_token_id = [7, 9]
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    target = targets.resolve(str(folder))
    assert targets.status(target) is None
    config = targets.config(target)
    assert config is not None
    assert config.vocab_size == 512
    loaded = targets.load(target, "cpu", torch.float32)
    weights = (folder / "model.safetensors").read_bytes()
    assert loaded.revision.partition("+")[0] == hashlib.sha256(weights).hexdigest()
    assert loaded.eos_ids == {7, 9, tiny.tokenizer.eos_token_id}
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in str(targets.status(target))
    with pytest.raises(UsageError, match="mine cannot be loaded"):
        targets.load(target, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("package", "module"), [("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")]
)
def test_a_sentencepiece_tokenizer_names_the_extra_that_it_needs(
    tiny: targets.Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, module: str
) -> None:
    folder = tmp_path / "mine"
    tiny.model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"not read")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    monkeypatch.setattr(f"transformers.utils.is_{package}_available", lambda: False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"'chimera-bench\[sentencepiece\]'") as caught:
        targets.load(targets.resolve(str(folder)), "cpu", torch.float32)
    assert "\n" not in str(caught.value)


def _failing(error: type[Exception]) -> Callable[..., str]:
    def download(*_: Any, **__: Any) -> str:
        raise error.__new__(error)

    return download


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (errors.LocalEntryNotFoundError, "give a folder with the checkpoint"),
        (errors.GatedRepoError, "hf auth login"),
        (errors.RepositoryNotFoundError, "check the id"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], fix: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _failing(error))
    target = targets.resolve("llama-2-7b-chat")
    with pytest.raises(UsageError, match=fix) as caught:
        targets.load(target, "cpu", torch.float32)
    assert "\n" not in str(caught.value)
    assert "on the hub" in str(targets.status(target))
    assert targets.config(target) is None


# The predictable target


PROMPTS, PROMPT, NEW, EOS = 24, 8, 64, 63


def greedy(model: Any) -> torch.Tensor:
    """Greedy continuations [PROMPTS, PROMPT + NEW] of random prompts, not stopped at EOS."""
    prompts = torch.randint(0, EOS, (PROMPTS, PROMPT), generator=torch.Generator().manual_seed(1))
    ids: torch.Tensor = model.generate(
        prompts, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=EOS
    )
    return ids


def steps(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the last token before, the token chosen) at each greedy step, both [PROMPTS, NEW]."""
    return ids[:, PROMPT - 1 : -1], ids[:, PROMPT:]


def entropy(logits: torch.Tensor) -> float:
    """Mean entropy in nats of the softmax over the last axis."""
    log = logits.log_softmax(-1)
    return float(-(log.exp() * log).sum(-1).mean())


@pytest.fixture(scope="module", params=[2, 4], ids=["grouped-query", "multi-head"])
def predictable(request: pytest.FixtureRequest) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(model, table, greedy ids)"""
    model, table = synthetic.predictable(kv_heads=request.param)
    return model, table, greedy(model)


def test_predictable_text_is_predicted_by_the_table_often_but_not_always(
    predictable: tuple[Any, torch.Tensor, torch.Tensor],
) -> None:
    _, table, ids = predictable
    last, chosen = steps(ids)
    best, second = table.topk(2).indices[last].unbind(-1)
    assert 0.5 <= (best == chosen).float().mean() <= 0.75
    assert (second == chosen).float().mean() >= 0.1


def test_predictable_text_does_not_repeat_itself_and_ends_at_times(
    predictable: tuple[Any, torch.Tensor, torch.Tensor],
) -> None:
    model, _, ids = predictable
    tail = ids[:, -32:]
    for period in range(1, 8):
        assert not (tail[:, period:] == tail[:, :-period]).all(1).any()
    assert 0.2 <= (ids[:, PROMPT:] == EOS).any(1).float().mean() <= 0.8
    with torch.inference_mode():
        assert 0.5 <= entropy(model(ids).logits) <= 2.5


def test_mistakes_of_position_cache_and_mask_change_the_predictable_text(
    predictable: tuple[Any, torch.Tensor, torch.Tensor],
) -> None:
    model, _, ids = predictable
    siblings = torch.randint(0, EOS, (PROMPTS, 1), generator=torch.Generator().manual_seed(2))

    def step(at: int, new: torch.Tensor, **changes: torch.Tensor) -> torch.Tensor:
        """Argmax [PROMPTS] after `new`, with the first `at` tokens in the cache."""
        cache = DynamicCache()
        with torch.inference_mode():
            model(ids[:, :at], past_key_values=cache)
            logits: torch.Tensor = model(new, past_key_values=cache, **changes).logits
        return logits[:, -1].argmax(-1)

    def mask(rows: int, columns: int, *hidden: tuple[int, int]) -> torch.Tensor:
        values = torch.zeros(PROMPTS, 1, rows, columns)
        for row, column in hidden:
            values[..., row, column] = torch.finfo(torch.float32).min
        return values

    changed = {"position": 0.0, "row": 0.0, "mask": 0.0}
    places = range(12, PROMPT + NEW - 1, 4)
    for t in places:
        token, right = ids[:, t : t + 1], ids[:, t + 1]
        pair = torch.cat([siblings, token], dim=1)  # at one position, as in a tree
        same = torch.full((PROMPTS, 2), t)
        assert torch.equal(step(t, token), right)
        tree = mask(2, t + 2, (0, t + 1), (1, t))
        assert torch.equal(step(t, pair, position_ids=same, attention_mask=tree), right)
        leaky = mask(2, t + 2, (0, t + 1))
        wrong = {
            "position": step(t, token, position_ids=torch.full((PROMPTS, 1), t + 1)),
            "row": step(t, token, attention_mask=mask(1, t + 1, (0, t - 1))),
            "mask": step(t, pair, position_ids=same, attention_mask=leaky),
        }
        for name, found in wrong.items():
            changed[name] += float((found != right).float().mean()) / len(places)
    assert min(changed.values()) >= 0.1, changed


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_favourite_id_is_often_chosen(kv_heads: int) -> None:
    model, table = synthetic.predictable(kv_heads=kv_heads, favourite=0)
    last, chosen = steps(greedy(model))
    assert (chosen == 0).float().mean() >= 0.1
    assert 0.35 <= (table.argmax(-1)[last] == chosen).float().mean() <= 0.75


@pytest.mark.parametrize("vocab", [6, 8, 100, 512])
def test_predictable_takes_other_vocabularies(vocab: int) -> None:
    model, table = synthetic.predictable(vocab, dtype=torch.float64)
    again, _ = synthetic.predictable(vocab, dtype=torch.float64)
    other, _ = synthetic.predictable(vocab, seed=1, dtype=torch.float64)
    ids = torch.arange(vocab).unsqueeze(0)
    with torch.inference_mode():
        logits = model(ids).logits
    assert logits.shape == (1, vocab, vocab)
    assert logits.dtype == torch.float64
    assert table.shape == (vocab, vocab)
    assert torch.equal(logits, again(ids).logits)
    assert not torch.equal(logits, other(ids).logits)
    assert 0.3 < entropy(logits) < 2.5


# SmolLM2 itself: fetched when the cache does not have it


@pytest.fixture(scope="module")
def real() -> targets.Loaded:
    try:
        return targets.load(targets.SMOLLM2, "cpu", torch.float32)
    except UsageError as error:
        pytest.skip(str(error))


def test_smollm2_answers_a_known_question(real: targets.Loaded) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = real.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = real.model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = ids[0, prompt["input_ids"].shape[1] :].tolist()
    assert "Paris" in real.tokenizer.decode(answer)
    assert answer[-1] in real.eos_ids


def test_smollm2_is_a_plain_float32_checkpoint(real: targets.Loaded) -> None:
    config = json.loads((packaged.SMOLLM2.cached.folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert {p.dtype for p in real.model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in real.model.parameters()) == 134_515_008
    assert real.model.config.tie_word_embeddings
    assert real.revision == targets.SMOLLM2.revision
    assert targets.status(targets.SMOLLM2) is None
    assert real.model.config.max_position_embeddings == 8192
    assert targets.config(targets.SMOLLM2) is not None


def test_smollm2_tokenizer_keeps_specials_whole_and_digits_apart(real: targets.Loaded) -> None:
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(real.tokenizer(token).input_ids) == 1
    assert real.tokenizer.convert_ids_to_tokens(sorted(real.eos_ids)) == ["<|im_end|>"]
    text = "a  42\n\n1. b"
    pieces = [real.tokenizer.decode([i]) for i in real.tokenizer(text).input_ids]
    assert pieces == ["a", "  ", "4", "2", "\n\n", "1", ".", " b"]
