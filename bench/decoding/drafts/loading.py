"""Decoders with a draft model: which weights it has, and which static tree."""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from bench.decoding.decoder import Settings, TargetInfo, TreeDecoder
from bench.decoding.drafts import static_trees
from bench.decoding.drafts.checkpoint import RANDOM, CheckpointError, check_file, on_hub
from bench.decoding.drafts.ranks import RankPath
from bench.decoding.drafts.trainable import Draft
from bench.decoding.drafts.weights import load_state, read_card, read_draft, shipped
from bench.decoding.target import TargetModel
from bench.errors import one_line
from bench.files import sha256_of_files

Model = TypeVar("Model", bound=Draft)


class PublishedLayouts(Protocol):
    """What a module about a method's published checkpoints offers."""

    def locate(self, text: str, /) -> Path:
        """A path, or the local copy of a hub id. CheckpointError if it is neither."""

    def recognises(self, location: Path, /) -> bool:
        """Whether a location is a published checkpoint, not a file written by training."""

    def files(self, location: Path, /) -> list[Path]:
        """The files with the draft's weights. CheckpointError if there are none."""


class TrainedOnly:
    """The `PublishedLayouts` of a method whose published checkpoints are not read."""

    def locate(self, text: str, /) -> Path:
        path = Path(text).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f"{text} is no local file; give one that bench.training.train wrote"
            )
        return path

    def recognises(self, location: Path, /) -> bool:
        return False

    def files(self, location: Path, /) -> list[Path]:
        return [location]


class DraftModelDecoder(TreeDecoder, Generic[Model]):
    """A tree decoder with a draft model.

    The weights are those that ship for the target, a file written by training, a published
    checkpoint or random ones, as `Settings.checkpoint` says.

    Attributes:
        trained_as: the draft's name in training, and in the names of shipped files.
        package: holds the shipped files.
        layouts: reads the published checkpoints.
        paper_tree: nodes of each level of the published tree.
        draft_model: class of the draft model.
    """

    takes_checkpoint: ClassVar[bool] = True
    trained_as: ClassVar[str]
    package: ClassVar[str]
    layouts: ClassVar[PublishedLayouts] = TrainedOnly()
    paper_tree: ClassVar[Sequence[int]]
    draft_model: type[Model]

    @classmethod
    def unavailable(cls, target: TargetInfo, settings: Settings) -> str | None:
        name = cls.trained_as
        if settings.checkpoint or shipped(cls.package, name, target.name):
            return cls._misfit(target, settings)
        model = shlex.quote(target.argument or target.name)
        folder = target.name.replace("/", "-").replace(":", "-")
        data, out = (shlex.quote(f"{parent}/{folder}") for parent in ("data", "trained"))
        return (
            f"no {name} weights for {target.name}; run "
            f"`python -m bench.training.distill --models {model} --out {data} && "
            f"python -m bench.training.train --models {model} --methods {name} --data {data} "
            f"--out {out}`, then pass --checkpoint {cls.name}={out}/{name}-0.safetensors"
        )

    @classmethod
    def _misfit(cls, target: TargetInfo, settings: Settings) -> str | None:
        """Why weights or a tree on this machine cannot be the target's, or None; weights of a hub
        repository are fetched when the draft is loaded."""
        checkpoint = settings.checkpoint
        if checkpoint == RANDOM or on_hub(checkpoint):
            return None
        try:
            location = cls._locate(target.name, checkpoint)
            if cls.layouts.recognises(location):
                for file in cls.layouts.files(location):
                    check_file(file)
                cls.check_published(target, location)
                return None
            config = cls._config(location)
            if target.hidden_size not in (None, config.hidden_size):
                return _other_size(location, config.hidden_size, target)
            if settings.tree not in (None, static_trees.PAPER):
                return static_trees.misfit(Path(settings.tree), config.depth, target.vocab_size)
        except ValueError as error:  # CheckpointError is one
            return str(error)
        return None

    @classmethod
    def check_published(cls, target: TargetInfo, location: Path) -> None:
        """CheckpointError for a published checkpoint that cannot be the target's, as far as its
        files say so before the model loads; what loading says otherwise."""

    @classmethod
    def _config(cls, path: Path) -> Any:
        """The settings of the draft in a file that training wrote. CheckpointError where they are
        another method's."""
        card = read_card(path)
        try:
            with torch.device("meta"):
                return cls.draft_model.from_dict(card["config"]).config
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path.name} is no {cls.trained_as} draft (its card says {card.get('method')!r}: "
                f"{one_line(error)})"
            ) from error

    @classmethod
    def weights_sha256(cls, target: TargetInfo, settings: Settings) -> str | None:
        location = cls._locate(target.name, settings.checkpoint)
        published = cls.layouts.recognises(location)
        return sha256_of_files(cls.layouts.files(location) if published else [location])

    @classmethod
    def _locate(cls, target: str, checkpoint: str | None) -> Path:
        if checkpoint:
            return cls.layouts.locate(checkpoint)
        path = shipped(cls.package, cls.trained_as, target)
        if path is None:
            raise CheckpointError(f"no {cls.trained_as} weights for {target}")
        return path

    def load_published(self, target: TargetModel, location: Path) -> tuple[Model, str]:
        """The draft of a published checkpoint that `layouts` recognises, and the sha256 of its
        files."""
        raise NotImplementedError

    @abstractmethod
    def random_draft(self, target: TargetModel) -> tuple[Model, str]:
        """A draft of the published shape with random weights, and a sha256 that identifies it."""

    def load_draft(self, target: TargetModel, settings: Settings) -> tuple[Model, Tensor, object]:
        """The draft, ready for inference; its vocabulary int64 [V']; the static tree that came with
        it, or None. Sets `checkpoint_sha256` and `draft_parameters`."""
        vocabulary, tree = torch.arange(target.vocab_size), None
        if settings.checkpoint == RANDOM:
            draft, self.checkpoint_sha256 = self.random_draft(target)
        else:
            location = self._locate(target.name, settings.checkpoint)
            if self.layouts.recognises(location):
                draft, self.checkpoint_sha256 = self.load_published(target, location)
            else:
                draft, vocabulary, tree = self._load_trained(target, location)
        if settings.tree not in (None, static_trees.PAPER):
            depth, choices = draft.config.depth, len(vocabulary)
            if reason := static_trees.misfit(Path(settings.tree), depth, choices):
                raise CheckpointError(reason)
        draft.to(target.device, target.dtype).requires_grad_(False).eval()
        self.draft_parameters = sum(p.numel() for p in draft.parameters())
        target.prepare(draft)
        return draft, vocabulary, tree

    def _load_trained(self, target: TargetModel, path: Path) -> tuple[Model, Tensor, object]:
        size = self._config(path).hidden_size
        if size != target.hidden_size:
            raise CheckpointError(_other_size(path, size, target))
        saved = read_draft(path)
        self.checkpoint_sha256 = saved.sha256
        draft = self.draft_model.from_dict(saved.config)
        load_state(draft, saved, path.name)
        return draft, saved.vocabulary, saved.card.get("tree")

    def static_tree(
        self, settings: Settings, own: object, nodes: int, depth: int
    ) -> list[RankPath]:
        """The first `nodes` rank paths, none deeper than `depth`, of the tree that the settings
        name, of the draft's own tree or of the published one. Sets `tree_sha256`."""
        paths, self.tree_sha256 = static_trees.resolve(
            settings.tree, own, self.paper_tree, nodes, depth
        )
        return paths


def _other_size(path: Path, size: int, target: TargetInfo | TargetModel) -> str:
    return f"{path.name} is for hidden size {size}, and {target.name} has {target.hidden_size}"
