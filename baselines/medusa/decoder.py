"""Medusa as a decoder: lossless on its tree, or with typical acceptance (lossy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from baselines.medusa import published
from baselines.medusa.model import Medusa as MedusaHeads
from baselines.medusa.model import MedusaConfig
from bench.decoding.decoder import Settings, TargetInfo, TreeDecoder
from bench.decoding.drafts import static_trees
from bench.decoding.drafts.checkpoint import RANDOM, CheckpointError, digest
from bench.decoding.drafts.weights import load_state, read_draft, shipped
from bench.decoding.engines import ops
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict, typical

WEIGHTS = "baselines.medusa.weights"
PAPER_TREE = (10, 28, 23, 2)  # nodes a level, 63 in all


@dataclass(frozen=True)
class MedusaSettings(Settings):
    """Parameters.

    Attributes:
        nodes: drafted nodes of the tree, the root not counted.
    """

    nodes: int = 26

    def __post_init__(self) -> None:
        self.require("medusa", nodes=1)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"nodes": (3, 5, 7, 10, 15, 26, 63)}


class Medusa(TreeDecoder):
    """Parallel heads on h_t; every path of the tree takes its tokens from the heads' ranks."""

    name: ClassVar[str] = "medusa"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    takes_checkpoint: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = MedusaSettings

    @classmethod
    def unavailable(cls, target: TargetInfo, settings: Settings) -> str | None:
        if settings.checkpoint or shipped(WEIGHTS, "medusa", target.name):
            return None
        return (
            f"no heads for {target.name}; run python -m chimera.distill --model {target.name} and "
            f"python -m chimera.train --model {target.name} --method medusa, then pass "
            f"--checkpoint {cls.name}=trained/medusa-0.safetensors"
        )

    @classmethod
    def weights_sha256(cls, target: TargetInfo, settings: Settings) -> str | None:
        path = cls._locate(target.name, settings.checkpoint)
        return digest(published.files(path) if _is_published(path) else [path])

    @classmethod
    def _locate(cls, target: str, checkpoint: str | None) -> Path:
        """A file of ours, shipped or given, or where a published checkpoint lies."""
        path = published.locate(checkpoint) if checkpoint else shipped(WEIGHTS, "medusa", target)
        if path is None:
            raise CheckpointError(f"no heads for {target}")
        return path

    def __init__(self, target: TargetModel, settings: MedusaSettings) -> None:
        super().__init__(target, settings)
        self.heads, card, vocabulary = self._load(target, settings.checkpoint)
        self.heads.to(target.device, target.dtype).requires_grad_(False).eval()
        self.draft_parameters = sum(p.numel() for p in self.heads.parameters())
        self._vocabulary = vocabulary.to(target.device)
        self._head = target.head().weight[self._vocabulary].contiguous()
        paths, self.tree_sha256 = static_trees.resolve(
            settings.tree, card.get("tree"), PAPER_TREE, settings.nodes, self.heads.config.depth
        )
        self.topology = Topology.from_rank_paths(paths, target.device)
        self.width = self.topology.width
        ordered = sorted(paths, key=lambda path: (len(path), path))
        self._depth = torch.tensor([len(p) - 1 for p in ordered], device=target.device)
        self._rank = torch.tensor([p[-1] for p in ordered], device=target.device)
        self._ranks = int(self._rank.max()) + 1
        self._state = torch.zeros(target.hidden_size, dtype=target.dtype, device=target.device)
        self._root = target.tensor((0,))  # the newest token
        self._draft, self._follow = target.capture(self._tree), target.capture(self._observe)

    def _load(
        self, target: TargetModel, checkpoint: str | None
    ) -> tuple[MedusaHeads, dict[str, object], Tensor]:
        """(heads, card, draft vocabulary int64 [V']) of the shipped weights, of a file of ours or
        of a published checkpoint."""
        if checkpoint == RANDOM:
            heads, self.checkpoint_sha256 = published.random(
                target.hidden_size, target.vocab_size, target.device, target.dtype
            )
            return heads, {}, torch.arange(target.vocab_size)
        path = self._locate(target.name, checkpoint)
        if _is_published(path):
            heads, self.checkpoint_sha256 = published.load(
                path, target.hidden_size, target.vocab_size
            )
            return heads, {}, torch.arange(target.vocab_size)
        saved = read_draft(path)
        self.checkpoint_sha256 = saved.sha256
        config = MedusaConfig(**saved.config)
        if config.hidden_size != target.hidden_size:
            raise CheckpointError(f"{path.name} is for {config.hidden_size} hidden dimensions")
        heads = MedusaHeads(config)
        load_state(heads, saved, path.name)
        return heads, saved.card, saved.vocabulary

    def draft_bytes(self) -> int:
        shared = 0 if self.heads.config.own_heads else self._head.nbytes
        return super().draft_bytes() + shared

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        self._state.copy_(step.hidden[-1])
        self._root.fill_(token)

    def draft(self) -> TokenTree:
        return self._draft()

    def _tree(self) -> TokenTree:
        logits = self._fused() if self.target.fuses else self.heads.logits(self._state, self._head)
        best = self.target.top(logits, self._ranks)[1]
        drafted = self._vocabulary[best[self._depth, self._rank]]
        return TokenTree(torch.cat((self._root, drafted)), self.topology)

    def _fused(self) -> Tensor:
        """logits [K, V'], as `Medusa.logits` says, in few kernels."""
        states = []
        for head in self.heads.heads:
            z = self._state[None]
            for block in cast(list[nn.Linear], head):
                z = ops.linear(z, block.weight, bias=block.bias, silu=True, residual=z)
            states.append(z)
        if not self.heads.lm_heads:
            return ops.linear(torch.cat(states), self._head)
        heads = cast(list[nn.Linear], self.heads.lm_heads)
        own = zip(states, heads, strict=True)
        return torch.cat([ops.linear(z, head.weight) for z, head in own])

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(step, verdict)

    def _observe(self, step: Step, verdict: Verdict) -> None:
        last = verdict.path.gather(0, verdict.length.view(1))
        self._state.copy_(step.hidden[last][0])
        self._root.copy_(verdict.bonus.view(1))


def _is_published(path: Path) -> bool:
    return path.is_dir() or path.name in (published.OWN, published.SHARED)


class MedusaTypical(Medusa):
    """Typical acceptance above temperature 0: longer blocks, another distribution."""

    name: ClassVar[str] = "medusa_typical"
    lossless: ClassVar[bool] = False

    def accept(self, tree: TokenTree, step: Step, sampling: Sampling) -> Verdict:
        return typical(tree, sampling.probs(step.logits), sampling)
