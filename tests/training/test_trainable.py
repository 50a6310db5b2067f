"""Drafts of other packages: found by entry point, trained, given a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts import trainable
from bench.decoding.drafts.trainable import Draft, TrainableDraft
from bench.decoding.drafts.weights import load_state, read_draft, save_draft
from bench.errors import UsageError
from bench.training.train import Trainer
from bench.training.trees import TreesConfig, grow
from tests.training import drafts
from tests.training.drafts import METHODS, PREDICTABLE, chat_target


@dataclass(frozen=True)
class LinearConfig:
    hidden_size: int
    depth: int
    layer: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Linear(Draft):
    """One matrix a level, of an inner layer's state; no estimate of hidden states."""

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.levels = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(config.depth))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Linear:
        return cls(LinearConfig(**config))

    @property
    def taps(self) -> tuple[int, ...]:
        assert isinstance(self.config, LinearConfig)
        return (self.config.layer,)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    def forward(
        self, embeddings: Tensor, hidden: Tensor, taps: list[Tensor], anchors: Tensor
    ) -> tuple[None, Tensor]:
        del embeddings
        batch = torch.arange(len(anchors), device=anchors.device)[:, None]
        h, inner = hidden[batch, anchors], taps[0][batch, anchors]
        return None, torch.stack([h + level(inner) for level in self.levels], dim=2)


def linear_config(target: TargetInfo) -> LinearConfig:
    return LinearConfig(trainable.known_size(target.hidden_size), depth=2, layer=1)


LINEAR = TrainableDraft(Linear, linear_config, 0.0, "a matrix a level")
NO_DRAFT = "a string"


def install(monkeypatch: pytest.MonkeyPatch, **drafts: str) -> None:
    """Makes attributes of this module look like drafts of another installed package."""
    points = [
        EntryPoint(name, f"{__name__}:{attribute}", trainable.GROUP)
        for name, attribute in drafts.items()
    ]
    installed = lambda group: [*entry_points(group=group), *points]  # noqa: E731
    monkeypatch.setattr(trainable, "entry_points", installed)


def test_a_draft_of_another_package_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, linear="LINEAR")
    run = {"method": ["linear"], "steps": 30, "eval_every": 10, "warm_up": 2, "muon_lr": 0.1}
    Trainer(drafts.settings(drafts.data(PREDICTABLE), tmp_path, **run)).run()
    curve = [entry["methods"]["linear-0"]["loss"] for entry in drafts.log(tmp_path)]
    assert len(curve) == 3
    assert curve == sorted(curve, reverse=True)
    saved = read_draft(tmp_path / "linear-0.safetensors")
    assert (saved.card["method"], saved.card["note"]) == ("linear", LINEAR.note)
    assert (saved.config["depth"], saved.config["layer"]) == (2, 1)
    load_state(Linear.from_dict(saved.config), saved, "linear")


SIZE, VOCAB = 384, 352  # of the target: six heads of 64


def test_trees_of_every_kind_of_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, linear="LINEAR")
    target = chat_target(tmp_path / "small", VOCAB)
    paths = []
    for name in (*METHODS, "linear"):
        draft = trainable.load(name).build(TargetInfo("small", SIZE, VOCAB, 2))
        draft.initialise(0)
        paths.append(tmp_path / f"{name}.safetensors")
        save_draft(paths[-1], draft, torch.arange(VOCAB), {"method": name}, bits=8)
    before = [read_draft(path) for path in paths]
    grow(tree_config(paths, target))
    for path, old in zip(paths, before, strict=True):
        new = read_draft(path)
        assert new.card["tree_source"]["set"] == "tuning"
        assert new.card["tree_source"]["anchors"] > 0
        changed = {key for key, value in new.card.items() if old.card.get(key) != value}
        assert changed == {"tree", "tree_source"}
        assert all(torch.equal(new.state[key], value) for key, value in old.state.items())
    other = chat_target(tmp_path / "other", VOCAB - 32)
    with pytest.raises(UsageError, match="give its target as --model"):
        grow(tree_config(paths, other))


def tree_config(paths: Sequence[Path], target: str) -> TreesConfig:
    weights = [str(path) for path in paths]
    return TreesConfig(weights, target, length=160, device="cpu", dtype="float32")


def test_every_installed_draft_can_be_built() -> None:
    target = TargetInfo("a", 96, 64, 2)
    for name in trainable.discover():
        draft = trainable.load(name).build(target)
        assert type(draft).from_dict(draft.config.to_dict()).config == draft.config


@pytest.mark.parametrize(
    ("installed", "asked", "match"),
    [
        ({}, "linear", "unknown method 'linear'; choose from chimera, "),
        ({"linear": "NO_DRAFT"}, "linear", "NO_DRAFT is not a TrainableDraft"),
        ({"linear": "missing"}, "linear", "cannot be imported: AttributeError"),
        ({"medusa": "LINEAR"}, "medusa", "draft 'medusa' is both "),
    ],
)
def test_drafts_that_cannot_be_loaded(
    installed: dict[str, str], asked: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, **installed)
    with pytest.raises(UsageError, match=match):
        trainable.load(asked)


def test_trees_of_files_that_are_not_drafts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights needs at least one file"):
        grow(TreesConfig())
    with pytest.raises(UsageError, match="there is no file missing"):
        grow(TreesConfig(["missing"]))
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"--weights: other\.safetensors is not a"):
        grow(TreesConfig([str(path)]))
