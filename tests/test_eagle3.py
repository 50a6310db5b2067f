"""EAGLE-3: its equations on fabricated checkpoints of every published layout, the loader's
refusals, and trees that are what the equations give."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

from baselines.eagle3 import published
from baselines.eagle3.decoder import Eagle3
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.exact import ExactTarget
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree
from bench.run.methods import discover, method
from bench.run.runner import run_turn
from tests import harness
from tests.decoding.known import Known, known_predictable

D, V, KEPT, LAYERS = 16, 24, 18, 8  # d, V, V', L
HEADS, GROUPS, SIZE, FFN = 4, 2, 4, 20
SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": D,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "num_hidden_layers": 1,
    "intermediate_size": FFN,
    "rms_norm_eps": 1e-3,  # large enough to be seen in the outputs
    "rope_theta": 300.0,
    "vocab_size": V,
    "draft_vocab_size": KEPT,
    "max_position_embeddings": 64,
}
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def fabricated(
    layer: str = "midlayer.", kept: int = KEPT, d: int = D, size: int = SIZE, vocab: int = V
) -> dict[str, Tensor]:
    """Random weights under the published names; every second token from the first can be drafted,
    and then the first of the others."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (0.4 if len(shape) > 1 else 1.0)

    state = {
        "self_attn.q_proj": random(HEADS * size, 2 * d),
        "self_attn.k_proj": random(GROUPS * size, 2 * d),
        "self_attn.v_proj": random(GROUPS * size, 2 * d),
        "self_attn.o_proj": random(d, HEADS * size),
        "mlp.gate_proj": random(FFN, d),
        "mlp.up_proj": random(FFN, d),
        "mlp.down_proj": random(d, FFN),
        "hidden_norm": random(d),
        "input_layernorm": random(d),
        "post_attention_layernorm": random(d),
    }
    named = {f"{layer}{name}.weight": tensor for name, tensor in state.items()}
    named |= {"fc.weight": random(d, 3 * d), "norm.weight": random(d)}
    named["lm_head.weight"] = random(kept, d)
    draftable = torch.zeros(vocab, dtype=torch.bool)
    draftable[torch.tensor([*range(0, vocab, 2), *range(1, vocab, 2)][:kept])] = True
    ids = draftable.nonzero().squeeze(1)
    return named | {"d2t": ids - torch.arange(kept), "t2d": draftable}


def saved(
    folder: Path,
    state: dict[str, Tensor] | None = None,
    kind: str = "pytorch_model.bin",
    **changes: Any,
) -> Path:
    """A folder with the weights and `config.json`; a setting None is left out."""
    folder.mkdir(exist_ok=True)
    state = fabricated() if state is None else state
    if kind.endswith(".bin"):
        torch.save(state, folder / kind)
    else:
        save_file(state, folder / kind)
    shape = {key: value for key, value in (SHAPE | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def load(folder: Path, d: int = D, vocab: int = V, layers: int = LAYERS) -> Any:
    return published.load(folder, d, vocab, layers)[0]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    size: Tensor = x.square().mean(dim=-1, keepdim=True) + SHAPE["rms_norm_eps"]
    return x / size.sqrt() * weight


def published_graph(
    state: dict[str, Tensor], taps: list[Tensor], e: Tensor, t: int, depth: int, rope: Any
) -> Tensor:
    """logits [depth, V'] of the levels behind position t, by the equations: every level is a run of
    the layer over all positions so far. e: [T, d]; taps: [T, d] each."""
    w = {name.removesuffix(".weight"): tensor for name, tensor in state.items()}
    f = (torch.cat(taps, dim=-1) @ w["fc"].T)[: t + 1]
    logits = []
    for level in range(depth):
        n = t + 1 + level
        joined = (
            norm(e[1 : n + 1], w["midlayer.input_layernorm"]),
            norm(f, w["midlayer.hidden_norm"]),
        )
        x = torch.cat(joined, dim=-1)
        q, k, v = (
            (x @ w[f"midlayer.self_attn.{name}_proj"].T).view(n, -1, SIZE).transpose(0, 1)
            for name in "qkv"
        )
        cos, sin = rope(x, torch.arange(n)[None])
        q, k = (y * cos[0] + rotate_half(y) * sin[0] for y in (q, k))
        k, v = (y.repeat_interleave(HEADS // GROUPS, dim=0) for y in (k, v))
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        y = f + attended.transpose(0, 1).flatten(1) @ w["midlayer.self_attn.o_proj"].T
        z = norm(y, w["midlayer.post_attention_layernorm"])
        inner = F.silu(z @ w["midlayer.mlp.gate_proj"].T) * (z @ w["midlayer.mlp.up_proj"].T)
        a = (y + inner @ w["midlayer.mlp.down_proj"].T)[-1:]
        logits.append(norm(a, w["norm"]) @ w["lm_head"].T)
        f = torch.cat((f, a))
    return torch.cat(logits)


@pytest.mark.parametrize(
    ("layer", "kind", "changes"),
    [
        ("midlayer.", "pytorch_model.bin", {}),
        ("midlayer.", "model.safetensors", {"rope_theta": None}),
        ("layers.0.", "model.safetensors", {"rope_scaling": SCALED, "target_hidden_size": D}),
        ("layers.0.", "pytorch_model.bin", {"eagle_config": {published.LAYERS: [1, 3, 4]}}),
    ],
    ids=["authors", "default-rope", "llama3-rope", "layers-named"],
)
@torch.no_grad()
def test_layouts_give_the_published_logits(
    layer: str, kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    draft = load(saved(tmp_path, fabricated(layer), kind, **changes))
    assert draft.taps == (2, 4, 5)
    assert draft.vocabulary.tolist() == fabricated()["t2d"].nonzero().squeeze(1).tolist()
    config = LlamaConfig(**{k: v for k, v in (SHAPE | changes).items() if v is not None})
    rope = LlamaRotaryEmbedding(config)
    depth, length = draft.config.depth, 20
    generator = torch.Generator().manual_seed(1)
    *taps, e = torch.randn(4, length, D, generator=generator)
    anchors = torch.tensor([[1, 5, length - depth - 2]])
    _, z = draft(e[None], taps[0][None], [tap[None] for tap in taps], anchors)
    for place, t in enumerate(anchors[0].tolist()):
        expected = published_graph(fabricated(), taps, e, t, depth, rope)
        torch.testing.assert_close(draft.lm_head(z[0, place]), expected, atol=2e-4, rtol=1e-4)


def test_a_whole_vocabulary_needs_no_maps(tmp_path: Path) -> None:
    state = {name: t for name, t in fabricated(kept=V).items() if name not in ("d2t", "t2d")}
    draft = load(saved(tmp_path, state, draft_vocab_size=V, num_hidden_layers=40))
    assert draft.vocabulary.tolist() == list(range(V))
    assert load(saved(tmp_path, fabricated(kept=V), draft_vocab_size=V)).config.vocabulary == V


def complaint(folder: Path, **target: int) -> str:
    """The message of the refusal, which is one line and tells the known layouts."""
    with pytest.raises(CheckpointError) as caught:
        load(folder, **target)
    message = str(caught.value)
    assert "\n" not in message
    assert "known layouts: " in message
    return message


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("fc.weight"), "pytorch_model.bin lacks fc.weight;"),
        (lambda s: s.pop("midlayer.hidden_norm.weight"), "lacks midlayer.hidden_norm.weight;"),
        (lambda s: s.update({"embed_tokens.weight": torch.ones(V, D)}), "unexpected embed_tokens."),
        (
            lambda s: s.update({"layers.0.hidden_norm.weight": torch.ones(D)}),
            "has the unexpected layers.0.hidden_norm.weight;",
        ),
        (
            lambda s: s.update({"midlayer.self_attn.q_proj.weight": torch.ones(D, D)}),
            f"q_proj.weight of [{D}, {D}] where [{D}, {2 * D}] is expected",
        ),
        (lambda s: s.pop("d2t"), "lacks d2t;"),
        (lambda s: s.update({"t2d": s["t2d"][1:]}), f"has t2d of [{V - 1}] (torch.bool)"),
        (lambda s: s.update({"d2t": s["d2t"].float()}), f"has d2t of [{KEPT}] (torch.float32)"),
        (lambda s: s.update({"d2t": s["d2t"] + 1}), "d2t and t2d name different tokens;"),
        (lambda s: s["t2d"].logical_not_(), "d2t and t2d name different tokens;"),
    ],
)
def test_keys_and_shapes_are_exact(change: Change, said: str, tmp_path: Path) -> None:
    state = fabricated()
    change(state)
    assert said in complaint(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"draft_vocab_size": None}, "config.json lacks draft_vocab_size;"),
        ({"hidden_size": 2 * D}, f"is for hidden size {2 * D}, and the target has {D};"),
        ({"target_hidden_size": 2 * D}, f"is for a target of hidden size {2 * D}, and the"),
        ({"vocab_size": V + 1}, f"is for a vocabulary of {V + 1}, and the target has {V};"),
        ({"hidden_act": "gelu"}, "is not of a plain Llama layer"),
        ({published.LAYERS: [1, 2, 3]}, "reads layers [1, 2, 3], and [2, 4, 5] are known;"),
        ({"num_attention_heads": "four"}, "config.json is no Llama's ("),
    ],
)
def test_settings_of_another_draft_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in complaint(saved(tmp_path, **changes))


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    assert "holds no EAGLE-3 draft: found nothing;" in complaint(tmp_path)
    saved(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in complaint(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json is missing beside the weights" in complaint(tmp_path)
    saved(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin cannot be read" in complaint(tmp_path)


def test_the_digest_is_of_settings_and_weights(tmp_path: Path) -> None:
    first = published.load(saved(tmp_path), D, V, LAYERS)[1]
    assert published.load(tmp_path / "pytorch_model.bin", D, V, LAYERS)[1] == first
    settings = Eagle3.settings_type(checkpoint=str(tmp_path))
    assert Eagle3.weights_sha256(TargetInfo("any"), settings) == first
    assert published.load(saved(tmp_path, rope_theta=500.0), D, V, LAYERS)[1] != first


# On a target

SMALL = "eagle3(nodes=9,depth=4,beam=3)"
WIDE = "eagle3(nodes=40,depth=3,beam=20)"  # random drafts are accepted now and then


@pytest.fixture(scope="module")
def known() -> Known:
    return known_predictable(kv_heads=2)


@pytest.fixture(scope="module")
def checkpoint(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the published form that fit the target."""
    d, vocab = known.model.config.hidden_size, known.vocab
    state = fabricated(kept=vocab // 2, d=d, size=SIZE, vocab=vocab)
    shape = {"hidden_size": d, "vocab_size": vocab, "draft_vocab_size": vocab // 2}
    return saved(tmp_path_factory.mktemp("draft"), state, head_dim=SIZE, **shape)


def decoder_on(target: TargetModel, checkpoint: Path, text: str = SMALL) -> Eagle3:
    chosen = method(text, discover(), {"eagle3": str(checkpoint)})
    decoder = Eagle3(target, chosen.settings)  # type: ignore[arg-type]
    target.reserve(128)
    return decoder


@torch.inference_mode()
def check_trees(decoder: Eagle3, known: Known) -> None:
    """The log-probability of every drafted path is that of the training graph behind the same
    text: AssertionError where a draft's rows, positions, mask or state are off."""
    prompt, grown, lengths = list(known.prompts[0]), [], []
    draft, stay = decoder.draft, decoder._grower._stay

    def noted(parents: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        chosen, above = stay(parents, scores)
        grown.append(scores[chosen].tolist())
        return chosen, above

    def drafted() -> TokenTree:
        trees.append(copy.deepcopy(draft()))
        return trees[-1]

    trees: list[TokenTree] = []
    decoder._grower._stay = noted
    decoder.draft = drafted  # type: ignore[method-assign]
    text = prompt
    for _, block in zip(range(7), decoder.decode(prompt, Sampling()), strict=False):
        text = [*text, *block.ids]
        lengths.append(len(text))
    assert max(b - a for a, b in pairwise(lengths[:-1])) > 1, "a draft was accepted"
    for tree, scores, length in zip(trees, grown, lengths, strict=False):
        assert int(tree.tokens[0]) == text[length - 1]
        found = path_scores(decoder, known, tree, text[:length])
        assert scores == pytest.approx(found, abs=1e-3)


def path_scores(decoder: Eagle3, known: Known, tree: TokenTree, text: list[int]) -> list[float]:
    """Log-probabilities of the paths to a tree's drafted nodes, by the training graph."""
    model, ids = decoder.model, torch.as_tensor(decoder.model.vocabulary).tolist()
    fresh = known.fresh()
    fresh.tap(*model.taps)
    fresh.reserve(len(text))
    states = fresh.prefill(text).taps
    parents, tokens = tree.topology.parents.tolist(), tree.tokens.tolist()
    scores, paths = [0.0], [[]]  # type: ignore[var-annotated]
    for node in range(1, tree.width):
        above = paths[parents[node]]
        line = [*text, *above, *[0] * (model.config.depth + 2)]
        embeddings = decoder.target.embeddings()(torch.tensor([line]))
        taps = [F.pad(states[k][None], (0, 0, 0, len(line) - len(text))) for k in model.taps]
        _, z = model(embeddings, embeddings, taps, torch.tensor([[len(text) - 2]]))
        row = model.lm_head(z[0, 0, len(above)]).log_softmax(dim=-1)
        scores.append(scores[parents[node]] + float(row[ids.index(tokens[node])]))
        paths.append([*above, tokens[node]])
    return scores[1:]


@pytest.mark.parametrize("engine", [EagerTarget, CompiledTarget])
def test_trees_are_what_the_equations_give(
    engine: type[TargetModel], known: Known, checkpoint: Path
) -> None:
    check_trees(decoder_on(engine(copy.deepcopy(known.model)), checkpoint, WIDE), known)


@pytest.mark.parametrize("defect", ["siblings", "position", "path"])
def test_the_check_of_trees_notices(
    defect: str, known: Known, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_on(EagerTarget(copy.deepcopy(known.model)), checkpoint, WIDE)
    if defect == "siblings":  # the rows of a level see each other
        attend = decoder.target.attend
        everything = lambda q, k, v, seen: attend(  # noqa: E731
            q, k, v, torch.ones_like(seen) if seen.shape[0] > 1 else seen
        )
        monkeypatch.setattr(decoder.target, "attend", everything)
    elif defect == "position":  # drafted levels lie a position late
        heads = decoder._level_heads

        def late(qkv: Tensor, level: int, *rest: Any) -> Tensor:
            return heads(qkv, level + (level > 1), *rest)

        monkeypatch.setattr(decoder, "_level_heads", late)
    else:  # committed positions read their own tokens, not the next ones
        inputs = decoder._path_inputs

        def own(tokens: Tensor, path: Tensor, *rest: Any) -> Tensor:
            return inputs(tokens, path.roll(1), *rest)

        monkeypatch.setattr(decoder, "_path_inputs", own)
    with pytest.raises(AssertionError, match="comparison failed"):
        check_trees(decoder, known)


@pytest.mark.parametrize("engine", [EagerTarget, GraphTarget, CompiledTarget, ExactTarget])
def test_a_published_draft_changes_no_answer(
    engine: type[TargetModel], known: Known, checkpoint: Path
) -> None:
    decoder = decoder_on(engine(copy.deepcopy(known.model)), checkpoint)
    assert decoder.checkpoint_sha256
    assert decoder.width == 10
    prompt = known.prompts[1]
    turn = run_turn(decoder, prompt, Sampling(), 16, eos_ids=())
    assert turn.output_ids == known.expected(tuple(prompt), 16)
    assert turn.drafted == 9 * len(turn.accept_lengths or [])


def test_bytes_of_a_step(known: Known, checkpoint: Path) -> None:
    decoder = decoder_on(EagerTarget(known.model), checkpoint)
    model = decoder.model
    fc, qkv = (4 * part.weight.numel() for part in (model.fc, model.qkv))
    assert decoder.draft_bytes() == 4 * (4 * decoder.draft_parameters - fc) + fc + qkv


def test_a_target_without_weights_gets_a_command(known: Known) -> None:
    reason = Eagle3.unavailable(TargetInfo("mine", 96, known.vocab, 2), Eagle3.settings_type())
    assert reason is not None
    assert "--methods eagle3" in reason


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "holds no EAGLE-3 draft: found asked.jsonl, bare, other;"),
        ("missing", "is no local file or folder"),
        ("other", f"config.json is for hidden size {D}, and the target has 96;"),
        ("bare", "config.json is missing; fetch it"),
    ],
)
def test_a_folder_that_is_no_draft_for_the_target_is_one_line(
    name: str,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    saved(tmp_path / "other")
    (saved(tmp_path / "bare") / "config.json").unlink()
    flags = ("--methods", "eagle3", "--checkpoint", f"eagle3={tmp_path / name}")
    assert harness.run(*flags) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: --checkpoint eagle3=")
    assert said in line
