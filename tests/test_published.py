"""Loaders of published drafts, on small checkpoints fabricated in exactly those layouts."""

import fnmatch
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import chimera.published
from baselines.medusa import published
from bench.decoding.drafts.checkpoint import CheckpointError

D, V, DEPTH = 16, 24, 3
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def medusa_state(blocks: int = 1, own: bool = True, depth: int = DEPTH) -> dict[str, Tensor]:
    """Random heads under the published names."""
    torch.manual_seed(0)
    state = {}
    for i in range(depth):
        for j in range(blocks):
            state[f"{i}.{j}.linear.weight"] = torch.randn(D, D)
            state[f"{i}.{j}.linear.bias"] = torch.randn(D)
        if own:
            state[f"{i}.{blocks}.weight"] = torch.randn(V, D)
    return state


def with_own_heads(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """One file with LM heads, beside a configuration that understates them."""
    folder.mkdir(exist_ok=True)
    torch.save(medusa_state() if state is None else state, folder / "medusa_lm_head.pt")
    (folder / "config.json").write_text(json.dumps({"medusa_num_heads": 2}))
    return folder


def with_shared_head(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """One file without LM heads."""
    folder.mkdir(exist_ok=True)
    state = medusa_state(blocks=2, own=False) if state is None else state
    save_file(state, folder / "medusa_lm_head.safetensors")
    return folder


def in_a_model(
    folder: Path, kind: str = "safetensors", sharded: bool = True, split: bool = True
) -> Path:
    """A whole model; its heads lie in the second shard, one of them in a third if `split`."""
    folder.mkdir(exist_ok=True)
    heads = {f"medusa_head.{name}": tensor for name, tensor in medusa_state().items()}
    parts = [{"model.embed_tokens.weight": torch.zeros(V, D)}, {"lm_head.weight": torch.ones(V, D)}]
    if split:
        parts.append({name: heads.pop(name) for name in list(heads) if ".0.0." in name})
    parts[1] |= heads
    if not sharded:
        parts = [{name: tensor for part in parts for name, tensor in part.items()}]
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}-{i + 1:05}-of-{len(parts):05}.{kind}" for i in range(len(parts))]
    for name, part in zip(names if sharded else [f"{stem}.{kind}"], parts, strict=True):
        if kind == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    if sharded:
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return folder


def complaint(load: Callable[[], object]) -> str:
    """The message of the refusal, which is one line and tells the known layouts."""
    with pytest.raises(CheckpointError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert "known layouts: " in message
    return message


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def medusa_logits(state: dict[str, Tensor], h: Tensor, blocks: int, shared: Tensor) -> Tensor:
    """[K, V] of h [d], by the equations."""
    logits = []
    for i in range(DEPTH):
        z = h
        for j in range(blocks):
            z = z + F.silu(state[f"{i}.{j}.linear.weight"] @ z + state[f"{i}.{j}.linear.bias"])
        logits.append(state.get(f"{i}.{blocks}.weight", shared) @ z)
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (with_own_heads, 1),
        (with_shared_head, 2),
        (in_a_model, 1),
        (lambda folder: in_a_model(folder, "bin"), 1),
        (lambda folder: in_a_model(folder, sharded=False), 1),
        (lambda folder: in_a_model(folder, "bin", sharded=False), 1),
    ],
    ids=["own", "shared", "shards", "bin-shards", "model", "bin-model"],
)
def test_medusa_layouts_give_the_published_logits(
    make: Callable[[Path], Path], blocks: int, tmp_path: Path
) -> None:
    own = make is not with_shared_head
    medusa, _ = published.load(make(tmp_path), D, V)
    assert medusa.config.depth == DEPTH  # the configuration that says 2 does not count
    assert (medusa.config.blocks, medusa.config.own_heads) == (blocks, V if own else 0)
    # float64: how a processor orders float32 sums is not what is tested
    h, shared = torch.randn(D).double(), torch.randn(V, D).double()
    state = {name: weight.double() for name, weight in medusa_state(blocks, own).items()}
    expected = medusa_logits(state, h, blocks, shared)
    torch.testing.assert_close(
        medusa.double().logits(h, partial(F.linear, weight=shared)), expected
    )


def test_a_medusa_file_stands_for_its_folder(tmp_path: Path) -> None:
    file = with_own_heads(tmp_path) / "medusa_lm_head.pt"
    medusa, digest = published.load(file, D, V)
    assert medusa.config.depth == DEPTH
    assert digest == sha256(file)
    assert published.locate(str(file)) == file


def test_the_digest_is_that_of_the_files_with_heads(tmp_path: Path) -> None:
    folder = in_a_model(tmp_path)
    _, digest = published.load(folder, D, V)
    sums = [sha256(folder / f"model-0000{i}-of-00003.safetensors") for i in (2, 3)]
    assert digest == hashlib.sha256("\n".join(sums).encode()).hexdigest()
    (folder / "model-00001-of-00003.safetensors").unlink()  # holds none, is not read
    assert published.load(folder, D, V)[1] == digest


def test_precision_is_the_files(tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in medusa_state().items()}
    medusa, _ = published.load(with_own_heads(tmp_path, half), D, V)
    assert {p.dtype for p in medusa.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in medusa.parameters())


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in medusa_state().items() if key != name}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (without("1.0.linear.bias"), "medusa_lm_head.pt lacks 1.0.linear.bias;"),
        (without("2.1.weight"), "lacks 2.1.weight;"),
        (medusa_state() | {"extra": torch.ones(1)}, "has the unexpected extra;"),
        (medusa_state(blocks=2), "has the unexpected 0.1.linear.bias, 0.1.linear.weight"),
        (medusa_state() | {"0.1.weight": torch.ones(V + 1, D)}, f"[{V + 1}, {D}] where [{V}, {D}]"),
        (medusa_state() | {"4.1.weight": torch.ones(V, D)}, "with a gap: 0, 1, 2, 4;"),
        (medusa_state() | {"0.1.weight": torch.ones(V, D, dtype=torch.int8)}, "torch.int8"),
        (medusa_state() | {"0.1.weight": torch.ones(V, D).to_sparse()}, "has 0.1.weight without"),
        ({"two\nlines": torch.ones(1)}, "medusa_lm_head.pt holds no 0.*"),
        (medusa_state() | {"two\nlines": torch.ones(1)}, r"the unexpected 'two\nlines'"),
        ({}, "holds no 0.*"),
    ],
)
def test_medusa_keys_and_shapes_are_exact(
    state: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    folder = with_own_heads(tmp_path, state)
    assert said in complaint(lambda: published.load(folder, D, V))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (medusa_state(own=True), "unexpected 0.1.weight, 1.1.weight, 2.1.weight"),
        (
            {k: v for k, v in medusa_state(3, own=False).items() if ".1.linear" not in k},
            "medusa_lm_head.safetensors numbers from 0 with a gap: 0, 2;",
        ),
        (
            {k: v for k, v in medusa_state(2, own=False).items() if not k.startswith("1.1.")},
            "lacks 1.1.linear.bias, 1.1.linear.weight",
        ),
    ],
)
def test_shared_heads_are_exact(state: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    folder = with_shared_head(tmp_path, state)
    assert said in complaint(lambda: published.load(folder, D, V))


def test_heads_of_another_target_are_refused(tmp_path: Path) -> None:
    folder = with_own_heads(tmp_path)
    said = complaint(lambda: published.load(folder, 2 * D, V))
    assert f"0.0.linear.bias of [{D}] where [{2 * D}] is expected" in said
    assert f"[{V}, {D}] where [{2 * V}, {D}]" in complaint(lambda: published.load(folder, D, 2 * V))


def test_an_unknown_layout_names_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "heads.npz").touch()
    (tmp_path / "README.md").touch()
    said = complaint(lambda: published.load(tmp_path, D, V))
    assert "found README.md, heads.npz;" in said
    for name in ("medusa_lm_head.pt", "medusa_lm_head.safetensors", "medusa_head."):
        assert name in said
    said = complaint(lambda: published.load(tmp_path / "heads.npz", D, V))
    assert "found heads.npz;" in said


def test_a_model_without_heads_is_refused(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(V, D)}, tmp_path / "model.safetensors")
    said = complaint(lambda: published.load(tmp_path, D, V))
    assert "model.safetensors holds no medusa_head.0.*" in said


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"lm_head.weight": SHARDS[0]}}, "lists no medusa_head.*"),
        ({"weight_map": {"medusa_head.0.1.weight": "../secret.bin"}}, "not a file of its folder"),
        ({"weight_map": {"medusa_head.0.1.weight": "*.safetensors"}}, "not a file of its folder"),
        ({"weight_map": {"medusa_head.0.1.weight": "run.py"}}, "not a file of its folder"),
        ({"weight_map": {"medusa_head.0.1.weight": SHARDS[1]}}, f"{SHARDS[1]} is missing"),
        ({"weights": {}}, "is not the index of a model"),
        ([], "is not the index of a model"),
    ],
)
def test_broken_indexes(index: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in complaint(lambda: published.load(tmp_path, D, V))


class Malicious:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [None, 2, 4])
@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "pytorch_model.bin"])
def test_code_in_a_pickle_is_refused(name: str, protocol: int | None, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    payload = medusa_state() | {"0.1.weight": Malicious(marker)}
    if protocol is None:
        torch.save(payload, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(payload, protocol))
    said = complaint(lambda: published.load(tmp_path, D, V))
    assert f"{name} is refused" in said
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()  # it would have run


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04 no archive"])
@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_broken_files_are_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in complaint(lambda: published.load(tmp_path, D, V))


def test_other_things_than_tensors_by_name_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "medusa_lm_head.pt")
    assert "holds list" in complaint(lambda: published.load(tmp_path, D, V))


# Chimera

SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-3,  # large enough to be seen in the outputs
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    "attn_implementation": "eager",
}


def target(**changes: Any) -> Any:
    return LlamaConfig(**{**SHAPE, **changes})


class Residual(nn.Module):
    """x + SiLU(linear x)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class Draft(nn.Module):
    """The published modules, with random weights."""

    def __init__(self, older: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.older = older
        inputs = D if older else 2 * D
        self.trimlp = nn.Sequential(Residual(3 * D), nn.Linear(3 * D, D, bias=False))
        self.layer = nn.Sequential(LlamaDecoderLayer(target(), 0))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, V, bias=False)) for _ in range(DEPTH)
        )
        self.rotary = LlamaRotaryEmbedding(target())
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """By file."""
        return {
            "trimlp.pt": self.trimlp.state_dict(),
            f"fast_layer{0 if self.older else 1}.pt": self.layer.state_dict(),
            "chimera_head.pt": self.heads.state_dict(),
        }

    def run(self, rows: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """The layer on rows [n, d] at positions [n]; seen: bool [n, n]."""
        mask = torch.full(seen.shape, -torch.inf).masked_fill(seen, 0.0)[None, None]
        cos_sin = self.rotary(rows[None], positions[None])
        out: Tensor = self.layer[0](rows[None], attention_mask=mask, position_embeddings=cos_sin)
        return out.reshape(rows.shape)


def save_draft(folder: Path, states: dict[str, dict[str, Tensor]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, state in states.items():
        torch.save(state, folder / name)
    (folder / "config.json").write_text(json.dumps({"chimera_num_heads": 1}))
    return folder


def published_graph(draft: Draft, e: Tensor, h: Tensor) -> list[Tensor]:
    """o [n, d] of each level behind the positions 0 .. n - 1, all of them in one run of the layer.

    Rows are [H_0 .. H_{n-1} ; o of level 1 ; o of level 2 ; .. ; G], blocks of n rows whose row t
    lies at position t, t + 1, t + 2, ... A row of G sees H up to t, and of every block behind it
    the row t alone. e: [T, d] of the tokens, h: [n, d].
    """
    n = len(h)
    line = torch.arange(n)
    before, same = torch.ones(n, n).tril().bool(), torch.eye(n).bool()
    outs: list[Tensor] = []
    for level in range(1, DEPTH + 1):
        newest = line + level
        windows = torch.cat([e[(newest - back).clamp(min=0)] for back in (2, 1, 0)], dim=-1)
        rows = torch.cat([h, *outs, draft.trimlp(windows)])
        positions = torch.cat([line + block for block in range(level + 1)])
        row = torch.cat([before, *[same] * level], dim=-1)
        seen = row.repeat(level + 1, 1)
        outs.append(draft.run(rows, positions, seen)[-n:])
    return outs


@torch.no_grad()
@pytest.mark.parametrize("older", [False, True])
def test_chimera_computes_the_published_graph(older: bool, tmp_path: Path) -> None:
    draft, n = Draft(older), 7
    chimera, _ = chimera_load(save_draft(tmp_path, draft.states()))
    e, h = torch.randn(n + DEPTH, D), torch.randn(n, D)
    anchors = torch.tensor([[1, 2, 4, n - 1]])
    padded = torch.cat((h, torch.zeros(DEPTH, D)))
    o, z = chimera(e[None], padded[None], [], anchors)
    outs = published_graph(draft, e, h)
    for level, expected in enumerate(outs):
        torch.testing.assert_close(o[0, :, level], expected[anchors[0]], atol=1e-5, rtol=1e-5)
        inputs = expected if older else torch.cat((h, expected), dim=-1)
        logits = draft.heads[level](inputs)[anchors[0]]
        torch.testing.assert_close(z[0, :, level], logits, atol=2e-5, rtol=1e-5)


def chimera_load(folder: Path, **changes: Any) -> Any:
    return chimera.published.load(folder, target(**changes))


def test_chimera_takes_shape_and_digest_from_the_files(tmp_path: Path) -> None:
    states = Draft().states()
    states["fast_layer1.pt"]["0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    model, digest = chimera_load(save_draft(tmp_path, states))
    config = model.config
    assert (config.depth, config.own_heads, config.ffn, config.heads) == (DEPTH, V, 20, 4)
    assert (config.rope_theta, config.eps) == (300.0, 1e-3)
    assert (config.head_state, config.out_norm, config.taps) == (True, False, ())
    assert not any(t.is_meta for t in model.state_dict().values())
    sums = [sha256(tmp_path / n) for n in ("trimlp.pt", "fast_layer1.pt", "chimera_head.pt")]
    assert digest == hashlib.sha256("\n".join(sums).encode()).hexdigest()


Change = Callable[[dict[str, dict[str, Tensor]]], Any]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["trimlp.pt"].pop("0.linear.bias"), "trimlp.pt lacks 0.linear.bias;"),
        (lambda s: s["trimlp.pt"].update({"1.bias": torch.ones(D)}), "has the unexpected 1.bias;"),
        (
            lambda s: s["fast_layer1.pt"].pop("0.self_attn.v_proj.weight"),
            "fast_layer1.pt lacks 0.self_attn.v_proj.weight;",
        ),
        (
            lambda s: s["fast_layer1.pt"].update({"1.norm.weight": torch.ones(D)}),
            "fast_layer1.pt has the unexpected 1.norm.weight;",
        ),
        (
            lambda s: s["fast_layer1.pt"].update({"0.mlp.up_proj.weight": torch.ones(9, D)}),
            f"0.mlp.up_proj.weight of [9, {D}] where [20, {D}] is expected",
        ),
        (
            lambda s: s["chimera_head.pt"].update({"0.0.weight": torch.ones(V, D)}),
            f"chimera_head.pt has 0.0.weight of [{V}, {D}] where [{V}, {2 * D}] is expected",
        ),
        (
            lambda s: s["chimera_head.pt"].update({"4.0.weight": torch.ones(V, 2 * D)}),
            "chimera_head.pt numbers from 0 with a gap: 0, 1, 2, 4",
        ),
        (
            lambda s: s["chimera_head.pt"].update({"0.0.linear.weight": torch.ones(D, D)}),
            "unexpected 0.0.linear.weight",
        ),
        (lambda s: s["chimera_head.pt"].clear(), "chimera_head.pt holds no 0.0.weight"),
        (lambda s: s.pop("trimlp.pt"), "found chimera_head.pt, config.json, fast_layer1.pt;"),
        (lambda s: s.pop("fast_layer1.pt"), "found chimera_head.pt, config.json, trimlp.pt;"),
        (
            lambda s: s.update({"fast_layer0.pt": s["fast_layer1.pt"]}),
            "is not a Chimera checkpoint with one decoder layer: found chimera_head.pt",
        ),
        (
            lambda s: s.update({"fast_layer0.pt": s.pop("fast_layer1.pt")}),
            f"[{V}, {2 * D}] where [{V}, {D}] is expected",
        ),
        (
            lambda s: s["trimlp.pt"].update({"1.weight": Malicious(Path("executed"))}),
            "trimlp.pt is refused",
        ),
    ],
)
def test_chimera_keys_and_shapes_are_exact(
    change: Change, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    states = Draft().states()
    change(states)
    assert said in complaint(lambda: chimera_load(save_draft(tmp_path, states)))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 2}, "2 key-value heads for 4 attention heads"),
        ({"vocab_size": V + 1}, f"[{V}, {2 * D}] where [{V + 1}, {2 * D}] is expected"),
        ({"hidden_size": 2 * D}, f"where [{6 * D}, {6 * D}] is expected"),
        ({"hidden_act": "gelu"}, "not plain Llama layers (positions default, activation gelu)"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
            "not plain Llama layers (positions linear",
        ),
    ],
)
def test_chimera_of_another_target_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = save_draft(tmp_path, Draft().states())
    assert said in complaint(lambda: chimera_load(folder, **changes))


# The hub

ID = "someone/heads"


def remote(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub whose one repository is the folder `source`; what is fetched lies in `cache`."""

    def download(repository: str, *, allow_patterns: list[str], **_: object) -> str:
        assert repository == ID
        for path in source.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                cache.mkdir(exist_ok=True)
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return cache


@pytest.mark.parametrize(
    ("make", "fetched"),
    [
        (with_own_heads, {"medusa_lm_head.pt"}),
        (with_shared_head, {"medusa_lm_head.safetensors"}),
        (
            lambda folder: in_a_model(folder, split=False),
            {"model.safetensors.index.json", SHARDS[1]},
        ),
        (lambda folder: in_a_model(folder, sharded=False), {"model.safetensors"}),
        (lambda folder: in_a_model(folder, "bin", sharded=False), {"pytorch_model.bin"}),
    ],
    ids=["own", "shared", "shards", "model", "bin-model"],
)
def test_only_files_with_heads_are_fetched(
    make: Callable[[Path], Path],
    fetched: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = remote(make(tmp_path / "remote"), tmp_path / "cache", monkeypatch)
    assert published.locate(ID) == cache
    assert {path.name for path in cache.iterdir()} == fetched
    assert published.load(cache, D, V)[0].config.depth == DEPTH


def test_chimera_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_draft(tmp_path / "remote", Draft().states())
    cache = remote(source, tmp_path / "cache", monkeypatch)
    assert chimera.published.locate(ID) == cache
    assert sorted(p.name for p in cache.iterdir()) == sorted(Draft().states())
    assert chimera_load(cache)[0].config.depth == DEPTH


def test_a_repository_without_known_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote").mkdir()
    remote(tmp_path / "remote", tmp_path / "cache", monkeypatch)
    location = published.locate(ID)
    assert "found nothing" in complaint(lambda: published.load(location, D, V))
    location = chimera.published.locate(ID)
    assert "found nothing" in complaint(lambda: chimera_load(location))


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (errors.LocalEntryNotFoundError("no\nnetwork"), "connect to the network, or give a folder"),
        (errors.HFValidationError("no\nid"), "(no); check the name"),
        (RuntimeError("proxy\ndown"), "(proxy); check the name, and log in"),
        (errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError), "check the name"),
        (errors.GatedRepoError.__new__(errors.GatedRepoError), "hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    error: Exception, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for locate in (published.locate, chimera.published.locate):
        with pytest.raises(CheckpointError) as caught:
            locate(ID)
        message = str(caught.value)
        assert message.startswith(f"{ID} is ")
        assert mend in message
        assert "\n" not in message


@pytest.mark.parametrize("text", ["", "heads", "missing/folder/heads.pt"])
def test_neither_a_path_nor_a_hub_id(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="or a hub id as organisation/name"):
        published.locate(text)
