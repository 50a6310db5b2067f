"""DFlash: its equations, in training and on every engine, and the trees that follow from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.dflash.decoder import DFlash, DFlashSettings
from baselines.dflash.drafter import Drafter, FusedDrafter
from baselines.dflash.model import DFlash as Model
from baselines.dflash.model import DFlashConfig
from baselines.dflash.trainable import dflash_config, spread
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.norms import Standardise
from bench.decoding.drafts.weights import save_draft
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.exact import ExactTarget
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.training.train import Trainer
from tests.training import drafts
from tests.training.drafts import PREDICTABLE

D, V, DEPTH, LENGTH, HEADS = 16, 11, 4, 12, 2
TAPS, RANK = (1, 2), 5
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NEWEST = 7
ENGINES: dict[str, type[TargetModel]] = {
    "eager": EagerTarget,
    "graph": GraphTarget,
    "compile": CompiledTarget,
    "exact": ExactTarget,
}
each_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
each_rank = pytest.mark.parametrize("rank", [0, RANK])


def config(rank: int, **changes: Any) -> DFlashConfig:
    return DFlashConfig(D, HEADS, 24, 2, DEPTH, TAPS, rank, eps=1e-3, **changes)


def random_draft(rank: int) -> Model:
    """No part at zero and no mean either: each matters."""
    generator = torch.Generator().manual_seed(1)
    model = Model(config(rank)).requires_grad_(False)
    for parameter in model.parameters():
        deviation = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    for module in model.modules():
        if isinstance(module, Standardise):
            module.mean.copy_(torch.randn(module.mean.shape, generator=generator))
            module.scale.copy_(torch.rand(module.scale.shape, generator=generator) + 0.5)
    return model


def small_target(engine: type[TargetModel] = EagerTarget) -> TargetModel:
    shape = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=8,
        num_hidden_layers=max(TAPS),
        num_attention_heads=2,
        initializer_range=0.4,
        tie_word_embeddings=False,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(shape)
    return engine(model.requires_grad_(False).eval())


def by_the_equations(model: Model, target: TargetModel, ids: Sequence[int], t: int) -> Tensor:
    """norm(u_j) [K, d] of the block behind position t of a text, one row at a time."""
    e, (cos, sin) = target.embeddings().weight, model.rotation(torch.arange(LENGTH + DEPTH))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt() * weight

    def heads(x: Tensor, position: int | None = None) -> Tensor:  # [H, D / H]
        a, b = x.view(HEADS, 2, -1).unbind(dim=1)
        if position is None:
            return torch.cat((a, b), dim=-1)
        c, s = cos[position], sin[position]
        return torch.cat((a * c - b * s, b * c + a * s), dim=-1)

    standard = model.tap_norm
    streams = _streams(target, ids)
    context = []
    for i in range(t + 1):
        m = torch.cat([streams[k][i] for k in TAPS])
        m = (m - standard.mean) / standard.scale
        m = m / m.square().mean().add(torch.finfo(torch.float32).eps).sqrt()
        context.append(norm(model.fusion.weight @ m, model.context_norm.weight))
    token = (e[ids[t + 1]] - model.token_norm.mean) / model.token_norm.scale
    u = [token, *(model.mask for _ in range(DEPTH))]
    for layer in model.blocks:
        normed = [norm(x, layer.query_norm.weight) for x in u]
        keys, values = [], []
        for position, c in enumerate([*context, *normed]):
            k, v = (layer.kv_proj.weight @ c).chunk(2)
            keys.append(heads(k, position))
            values.append(heads(v))
        out = []
        for j, x in enumerate(normed):
            q = heads(layer.q_proj.weight @ x, t + 1 + j)
            scores = torch.stack([(q * k).sum(dim=-1) for k in keys]) / math.sqrt(D / HEADS)
            weights = scores.softmax(dim=0)  # [positions, H]
            attended = (weights[..., None] * torch.stack(values)).sum(dim=0).flatten()
            y = u[j] + layer.o_proj.weight @ attended
            gate, up = (layer.gate_up.weight @ norm(y, layer.ffn_norm.weight)).chunk(2)
            out.append(y + layer.down.weight @ (F.silu(gate) * up))
        u = out
    return torch.stack([norm(x, model.out_norm.weight) for x in u[1:]])


def _streams(target: TargetModel, ids: Sequence[int]) -> dict[int, Tensor]:
    """The residual streams [T, d] after TAPS."""
    plain = EagerTarget(target.model)
    plain.tap(*TAPS)
    plain.reserve(len(ids))
    return plain.prefill(list(ids)).taps


def table(model: Model, target: TargetModel) -> Tensor:
    """T [V, V]: what the logits gain behind each token; zero without `markov`."""
    if model.markov is None:
        return torch.zeros(V, V)
    e = (target.embeddings().weight - model.token_norm.mean) / model.token_norm.scale
    added = model.markov.out.weight @ F.silu(model.markov.from_token.weight @ e.T)  # [d, V]
    return (target.head().weight @ (model.state_norm.scale[:, None] * added)).T


@each_rank
def test_training_follows_the_equations(rank: int) -> None:
    model, target = random_draft(rank), small_target()
    ids = [*PROMPT, NEWEST, 0, 8, 10][:LENGTH]
    anchors, streams = [1, 4, LENGTH - DEPTH - 1], _streams(target, ids)
    embedded = target.embeddings()(torch.tensor([ids]))
    _, z = model(embedded, embedded, [streams[k][None] for k in TAPS], torch.tensor([anchors]))
    logits = target.head()(z[0])
    for found, t in zip(logits, anchors, strict=True):
        z_own = model.state_norm.inverse(by_the_equations(model, target, ids, t))
        expected = target.head()(z_own) + table(model, target)[ids[t + 1 : t + 1 + DEPTH]]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@each_engine
@each_rank
def test_drafting_follows_the_equations(engine: type[TargetModel], rank: int) -> None:
    """After a prompt, and after states of a tree's path, which came behind it."""
    model, target = random_draft(rank), small_target(engine)
    target.tap(*TAPS)
    target.reserve(32)
    drafter = (FusedDrafter if target.fuses else Drafter)(model, target, torch.arange(V))
    step = target.prefill(PROMPT[:5])
    drafter.start([step.taps[k] for k in TAPS])
    drafter.logits(torch.tensor([0]))  # whose rows are overwritten
    streams, rest = _streams(target, PROMPT), len(PROMPT) - 5
    target.cache.advance(rest)
    target.length.fill_(len(PROMPT))
    shuffled = torch.tensor([2, 0, 1])  # node i of the tree is position 5 + shuffled[i]
    taps = [streams[k][5:][shuffled] for k in TAPS]
    path = torch.tensor([*shuffled.argsort().tolist(), 0, 0])  # and rows that mean nothing
    drafter.remember(taps, path, torch.tensor([rest - 1]))
    found = drafter.logits(torch.tensor([NEWEST]))
    own = by_the_equations(model, target, [*PROMPT, NEWEST], len(PROMPT) - 1)
    expected = target.head()(model.state_norm.inverse(own))
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(found, expected)
    tokens = torch.tensor([4, 1, 4])
    followed = drafter.followed(found[1:2], tokens)
    close(followed, expected[1] + table(model, target)[tokens])


def decoder_of(
    model: Model, folder: Path, engine: type[TargetModel] = EagerTarget, **settings: Any
) -> DFlash:
    """A decoder with the draft saved in whole precision as far as the format goes."""
    path = folder / "draft.safetensors"
    paths = [[0], [1], [2], [0, 0], [0, 2], [1, 0], [1, 1], [0, 2, 0], [0, 2, 1], [0, 2, 1, 3]]
    save_draft(path, model, torch.arange(V), {"method": "dflash", "tree": paths}, bits=16)
    return DFlash(small_target(engine), DFlashSettings(checkpoint=str(path), **settings))


def drafted(decoder: DFlash) -> tuple[list[int], list[int]]:
    """(tokens, parents) of the first tree behind PROMPT and NEWEST."""
    target = decoder.target
    target.reserve(32)
    decoder.begin(PROMPT, target.prefill(PROMPT), NEWEST, Sampling())
    tree = decoder.draft()
    return tree.tokens.tolist(), tree.topology.parents.tolist()


def scores_of(decoder: DFlash) -> tuple[Tensor, Tensor]:
    """(logits [K, V] without the table, T [V, V]) of the decoder's own draft."""
    model = decoder._drafter._model
    own = by_the_equations(model, decoder.target, [*PROMPT, NEWEST], len(PROMPT) - 1)
    logits = decoder.target.head()(model.state_norm.inverse(own))
    return logits, table(model, decoder.target)


@each_engine
@each_rank
def test_a_static_tree_has_the_ranks_behind_each_parent(
    engine: type[TargetModel], rank: int, tmp_path: Path
) -> None:
    decoder = decoder_of(random_draft(rank), tmp_path, engine, vocab=0)
    tokens, parents = drafted(decoder)
    logits, T = scores_of(decoder)
    assert len(tokens) == decoder.width - 16  # ten of the 26 nodes that were asked for
    depth, seen, alone = [0], dict[int, list[int]](), dict[int, list[int]]()
    for node, parent in list(enumerate(parents))[1:]:
        depth.append(depth[parent] + 1)
        own = logits[depth[node] - 1]
        for ranks, scores in ((seen, own + T[tokens[parent]]), (alone, own)):
            order = scores.argsort(descending=True).tolist()
            ranks.setdefault(parent, []).append(order.index(tokens[node]))
    assert seen == {0: [0, 1, 2], 1: [0, 2], 2: [0, 1], 5: [0, 1], 9: [3]}
    assert (seen == alone) == (rank == 0), "the table matters"


@each_engine
@each_rank
def test_a_dynamic_tree_has_the_likeliest_paths(
    engine: type[TargetModel], rank: int, tmp_path: Path
) -> None:
    nodes, depth = 9, 3
    settings = {"nodes": nodes, "depth": depth, "dynamic": True, "beam": V, "vocab": 0}
    decoder = decoder_of(random_draft(rank), tmp_path, engine, **settings)
    tokens, parents = drafted(decoder)
    logits, T = scores_of(decoder)
    score: dict[tuple[int, ...], float] = {}
    for length in range(1, depth + 1):
        for path in itertools.product(range(V), repeat=length):
            before = (NEWEST, *path)[:length]
            steps = zip(range(length), before, path, strict=True)
            score[path] = sum(float((logits[j] + T[b]).log_softmax(-1)[x]) for j, b, x in steps)
    paths: list[tuple[int, ...]] = [()]
    for token, parent in list(zip(tokens, parents, strict=True))[1:]:
        paths.append((*paths[parent], token))
    assert len(set(paths)) == nodes + 1
    assert set(paths[1:]) == set(sorted(score, key=score.__getitem__, reverse=True)[:nodes])


def test_beam_1_drafts_the_greedy_chain(tmp_path: Path) -> None:
    decoder = decoder_of(random_draft(RANK), tmp_path, dynamic=True, beam=1, nodes=DEPTH, vocab=0)
    tokens, parents = drafted(decoder)
    logits, T = scores_of(decoder)
    assert parents == [*range(-1, DEPTH)]
    for j, (before, token) in enumerate(itertools.pairwise(tokens)):
        assert token == int((logits[j] + T[before]).argmax())


def test_a_reduced_vocabulary_is_kept_to(tmp_path: Path) -> None:
    tokens, _ = drafted(decoder_of(random_draft(RANK), tmp_path, vocab=4))
    assert set(tokens[1:]) <= set(range(4))


def test_weights_that_a_draft_reads(tmp_path: Path) -> None:
    """The layers and the LM head once; a level of a draft with a table reads V' r numbers."""
    shallow, deep, whole = (
        decoder_of(random_draft(RANK), tmp_path, vocab=v, depth=k).draft_bytes()
        for v, k in ((4, 2), (4, 3), (0, 2))
    )
    assert deep - shallow == 4 * 4 * RANK
    assert whole - shallow == 4 * (V - 4) * (D + 2 * RANK)


def test_taps_are_spread_as_published() -> None:
    assert spread(36) == (2, 10, 18, 26, 34)
    assert [spread(n) for n in (1, 2, 6)] == [(1,), (1, 2), (2, 3, 4)]
    assert dflash_config(TargetInfo("a", 576, 8, 30)).heads == 9
    with pytest.raises(ValueError, match="hidden size 16 does not split into 3 even heads"):
        DFlashConfig(16, 3, 24, 2, DEPTH, TAPS)


def test_weights_that_are_not_dflash(tmp_path: Path) -> None:
    info = TargetInfo("tiny", D, V, 2)
    published = DFlashSettings(checkpoint="org/Model-DFlash-b16")
    with pytest.raises(CheckpointError, match="is no local file"):
        DFlash(small_target(), published)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"nothing")
    reason = DFlash.unavailable(info, DFlashSettings(checkpoint=str(other)))
    assert reason is not None
    assert reason.startswith("other.safetensors is not a chimera-bench-draft")
    missing = DFlash.unavailable(info, DFlashSettings())
    assert missing is not None
    assert "--methods dflash " in missing


def test_it_is_trained(tmp_path: Path) -> None:
    """Without a table, with the weights of the levels that D-PACE gives."""
    run = {"method": ["dflash"], "steps": 6, "eval_every": 3, "muon_lr": 0.05, "adam_lr": 0.01}
    run |= {"depth_weights": "dpace", "warm_up": 2}
    Trainer(drafts.settings(drafts.data(PREDICTABLE), tmp_path, **run)).run()
    curve = [entry["methods"]["dflash-0"]["loss"] for entry in drafts.log(tmp_path)]
    assert curve[1] < curve[0] - 0.1
