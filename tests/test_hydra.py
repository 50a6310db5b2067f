"""Hydra's heads by their equations, along a tree's paths, and its published layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.hydra import published
from baselines.hydra.decoder import Hydra, HydraSettings, levels
from baselines.hydra.model import Hydra as HydraHeads
from baselines.hydra.model import HydraConfig
from baselines.medusa.model import Medusa as MedusaHeads
from baselines.medusa.model import MedusaConfig
from bench.decoding.drafts.checkpoint import RANDOM, CheckpointError
from bench.decoding.drafts.weights import save_draft
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.decoding.tree import Topology
from tests import harness
from tests.decoding.known import tiny_model

D, V, HEADS = 16, 24, 3


def state(blocks: int = 1) -> dict[str, Tensor]:
    """Random heads under the published names."""
    torch.manual_seed(0)
    found = {}
    for i in range(HEADS):
        for j in range(blocks):
            read = D if j else (i + 2) * D
            found[f"hydra_mlp.{i}.{j}.linear.weight"] = torch.randn(D, read)
            found[f"hydra_mlp.{i}.{j}.linear.bias"] = torch.randn(D)
        found[f"hydra_mlp.{i}.0.res_connection.weight"] = torch.randn(D, (i + 2) * D)
        found[f"hydra_mlp.{i}.0.res_connection.bias"] = torch.randn(D)
        found[f"hydra_lm_head.{i}.weight"] = torch.randn(V, D)
        found[f"hydra_lm_head.{i}.bias"] = torch.randn(V)
    return found


def saved(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A checkpoint with the published settings."""
    folder.mkdir(exist_ok=True)
    torch.save(state() if tensors is None else tensors, folder / published.WEIGHTS)
    (folder / published.CONFIG).write_text(
        json.dumps({"hydra_num_heads": HEADS, "hydra_num_layers": 1} | published.SETTINGS | config)
    )
    return folder


def by_the_equations(tensors: dict[str, Tensor], x: Tensor, i: int, blocks: int) -> Tensor:
    """[V] of head i, counted from 0, from x [(i + 2) d]."""

    def linear(name: str, read: Tensor) -> Tensor:
        return tensors[f"{name}.weight"] @ read + tensors[f"{name}.bias"]

    mlp = f"hydra_mlp.{i}"
    z = linear(f"{mlp}.0.res_connection", x) + F.silu(linear(f"{mlp}.0.linear", x))
    for j in range(1, blocks):
        z = z + F.silu(linear(f"{mlp}.{j}.linear", z))
    return linear(f"hydra_lm_head.{i}", z)


def refuse(_: Tensor) -> Tensor:
    raise AssertionError("these heads have LM heads of their own")


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_layout_gives_the_published_logits(blocks: int, tmp_path: Path) -> None:
    folder = saved(tmp_path, state(blocks), hydra_num_layers=blocks)
    hydra, digest = published.load(folder, D, V)
    assert hydra.config == HydraConfig(D, HEADS, blocks, V)
    assert digest == hashlib.sha256((folder / published.WEIGHTS).read_bytes()).hexdigest()
    assert not any(p.requires_grad for p in hydra.parameters())
    hydra.double()
    tensors = {name: weight.double() for name, weight in state(blocks).items()}
    x = torch.randn(D).double()  # h_t
    for k in range(1, HEADS + 1):
        e = torch.randn(D).double()
        x = hydra.extended(x, e)
        assert torch.equal(x[-D:], e)
        expected = by_the_equations(tensors, x, k - 1, blocks)
        torch.testing.assert_close(hydra.logits(x, k, refuse), expected)


def test_a_file_stands_for_its_folder_and_needs_no_settings(tmp_path: Path) -> None:
    file = saved(tmp_path) / published.WEIGHTS
    (tmp_path / published.CONFIG).unlink()
    assert published.locate(str(file)) == file
    assert published.recognises(file)
    assert published.load(file, D, V)[0].config.depth == HEADS


def complaint(load: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert "known layout: " in message
    return message


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (without("hydra_mlp.1.0.res_connection.bias"), "lacks hydra_mlp.1.0.res_connection.bias;"),
        (without("hydra_lm_head.2.bias"), "lacks hydra_lm_head.2.bias;"),
        (state() | {"prefix_embeding_layer.norm.weight": torch.ones(D)}, "the unexpected prefix_"),
        (state() | {"hydra_lm_head.0.weight": torch.ones(V, D + 1)}, f"[{V}, {D + 1}] where"),
        (state() | {"hydra_mlp.4.0.linear.bias": torch.ones(D)}, "with a gap: 0, 1, 2, 4;"),
        (state() | {"hydra_lm_head.0.bias": torch.ones(V, dtype=torch.int8)}, "torch.int8"),
        ({}, "hydra_lm_head.pt holds no hydra_mlp.0.*"),
    ],
)
def test_names_and_shapes_are_exact(tensors: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, tensors)
    assert said in complaint(lambda: published.load(folder, D, V))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"grounded_heads": False}, "has grounded_heads false, and only true is supported"),
        ({"hydra_head_arch": "prefix-mlp"}, 'has hydra_head_arch "prefix-mlp", and only "mlp"'),
        ({"hidden_state_offset": 1}, "has hidden_state_offset 1, and only 0 is supported"),
    ],
)
def test_other_heads_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, **config)
    assert said in complaint(lambda: published.load(folder, D, V))


def test_heads_of_another_target_and_other_files_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "heads")
    said = complaint(lambda: published.load(folder, 2 * D, V))
    assert f"hydra_lm_head.0.weight of [{V}, {D}] where [{V}, {2 * D}] is expected" in said
    assert f"[{V}] where [{V + 8}]" in complaint(lambda: published.load(folder, D, V + 8))
    (tmp_path / "README.md").touch()
    said = complaint(lambda: published.load(tmp_path, D, V))
    assert "is not a Hydra checkpoint: found README.md, heads;" in said
    (folder / published.CONFIG).write_text("[]")
    assert "holds no settings" in complaint(lambda: published.load(folder, D, V))


def test_a_run_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    saved(tmp_path / "heads", without("hydra_lm_head.2.bias"))
    flags = ("--methods", "hydra", "--checkpoint", "hydra=heads", "--limit", "1")
    assert harness.run(*flags, "--out", "new", "--device", "cpu") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "hydra_lm_head.pt lacks hydra_lm_head.2.bias, has " in line
    assert "known layout: " in line
    assert not Path("new").exists()


def test_heads_start_as_the_targets_own() -> None:
    hydra = HydraHeads(HydraConfig(D, HEADS))
    hydra.initialise(0)
    hidden, embeddings = torch.randn(2, 9, D), torch.randn(2, 9, D)
    anchors = torch.tensor([[1, 4], [2, 5]])
    _, z = hydra(embeddings, hidden, [], anchors)
    assert z.shape == (2, 2, HEADS, D)
    for k in range(HEADS):
        torch.testing.assert_close(z[1, 1, k], hidden[1, 5])


def test_training_reads_the_true_tokens_and_none_later() -> None:
    """Head k reads e_{t+1} .. e_{t+k}, in the size of h."""
    torch.manual_seed(0)
    hydra = HydraHeads(HydraConfig(D, HEADS))
    hidden, embeddings = torch.randn(1, 9, D), 0.1 * torch.randn(1, 9, D)
    hydra.standardise(embeddings[0], hidden[0], [])
    assert 5 < hydra.scale.item() < 20
    t, anchors = 3, torch.tensor([[3]])
    _, z = hydra(embeddings, hidden, [], anchors)
    x = hidden[0, t]
    for k in range(1, HEADS + 1):
        x = torch.cat((x, hydra.scale * embeddings[0, t + k]))
        torch.testing.assert_close(z[0, 0, k - 1], hydra.heads[k - 1](x))
    changed = embeddings.clone()
    changed[0, t + 2] += 1.0
    _, other = hydra(changed, hidden, [], anchors)
    assert [torch.equal(z[0, 0, k], other[0, 0, k]) for k in range(HEADS)] == [True, False, False]


def test_heads_of_medusa_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    medusa = MedusaHeads(MedusaConfig(96, 2))
    save_draft(Path("x.safetensors"), medusa, torch.arange(64), {"method": "medusa"}, bits=8)
    flags = ("--methods", "hydra", "--checkpoint", "hydra=x.safetensors", "--device", "cpu")
    assert harness.run(*flags) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "x.safetensors is no hydra draft (its card says 'medusa': " in line


def test_levels_are_in_the_order_of_the_topology() -> None:
    paths = [(0,), (1,), (0, 0), (1, 2), (0, 1), (1, 2, 0)]
    found = levels(paths, torch.device("cpu"))
    assert [level.rank.tolist() for level in found] == [[0, 1], [0, 1, 2], [0]]
    assert [level.parent.tolist() for level in found] == [[0, 0], [0, 0, 1], [0]]
    assert [level.inner.tolist() for level in found] == [[0, 1], [2], []]
    assert [level.ranks for level in found] == [2, 3, 1]
    assert Topology.from_rank_paths(paths).parents.tolist() == [-1, 0, 0, 1, 1, 2, 5]


@torch.inference_mode()
def test_a_node_is_drafted_from_its_own_path() -> None:
    """Every node's token is what its head ranks there of h_t and the tokens above it, and of
    nothing beside them."""
    target = EagerTarget(tiny_model(V, seed=1))
    decoder = Hydra(target, HydraSettings(nodes=20, checkpoint=RANDOM))
    prompt = [3, 1, 4, 1, 5]
    target.reserve(64)
    step = target.prefill(prompt)
    decoder.begin(prompt, step, 7, Sampling())
    tree = decoder.draft()
    tokens, parents = tree.tokens.tolist(), tree.topology.parents.tolist()
    children = [0] * tree.width
    for node in range(1, tree.width):
        path: list[int] = []
        above = parents[node]
        while above >= 0:
            path.insert(0, tokens[above])
            above = parents[above]
        e = target.embeddings()(target.tensor(path)).flatten()
        logits = decoder.heads.logits(torch.cat((step.hidden[-1], e)), len(path), refuse)
        rank = children[parents[node]]  # siblings have consecutive ranks in the paper's tree
        assert tokens[node] == int(logits.argsort(descending=True)[rank])
        children[parents[node]] += 1
    assert max(tree.topology.depths.tolist()) >= 2
    assert len(set(tokens)) > 5
