"""Speculative sampling with a smaller model of the same tokenizer.

Leviathan et al. (arXiv 2211.17192), Chen et al. (arXiv 2302.01318): the draft model M_q decodes k
tokens x_1, ..., x_k, and the target M_p verifies them in one forward. Above temperature 0 each x_i
is drawn from q_i and accepted with probability min(1, p_i(x_i) / q_i(x_i)); the first refused one
is replaced by a draw from norm(max(p_i - q_i, 0)) (`bench.decoding.verify`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.decoding.decoder import Settings, TargetInfo, TreeDecoder
from bench.decoding.drafts.checkpoint import RANDOM, CheckpointError
from bench.decoding.engines.trial import beside
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel, weight_bytes
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict, accept
from bench.errors import UsageError
from bench.files import sha256_of_bytes
from bench.targets import registry
from bench.targets.registry import SMALLER, Target

AUTO = "auto"


@dataclass(frozen=True)
class DraftModelSettings(Settings):
    """Parameters. A checkpoint takes the place of `model`.

    Attributes:
        model: a registered target, a hub id, a folder or a GGUF file; auto: the target that the
            registry names as smaller.
        k: tokens to draft.
    """

    model: str = AUTO
    k: int = 4

    def __post_init__(self) -> None:
        self.require("draft_model", k=1)

    @property
    def weights(self) -> str | None:
        return self.checkpoint or (None if self.model == AUTO else self.model)

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"k": (1, 2, 3, 4, 5, 6, 8, 10)}


class DraftModel(TreeDecoder):
    """Drafts a chain with a model of its own cache, on the target's engine.

    Each draft starts with a forward of two rows, the newest token and the one before it. So the
    draft model's cache always holds one row less than the target's, also where all of the last
    draft was accepted, whose final token the draft model has not read.
    """

    name: ClassVar[str] = "draft_model"
    lossless: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    takes_checkpoint: ClassVar[bool] = True
    settings_type: ClassVar[type[Settings]] = DraftModelSettings

    @classmethod
    def unavailable(cls, target: TargetInfo, settings: Settings) -> str | None:
        try:
            draft = _draft_of(target.name, settings)
            registry.check(draft)
            return _other_tokenizer(draft, target)
        except UsageError as error:
            return str(error)

    @classmethod
    def weights_sha256(cls, target: TargetInfo, settings: Settings) -> str | None:
        try:
            return _sha256(_draft_of(target.name, settings))
        except UsageError as error:
            raise CheckpointError(str(error)) from error

    def __init__(self, target: TargetModel, settings: DraftModelSettings) -> None:
        super().__init__(target, settings)
        source = _draft_of(target.name, settings)
        if source.argument not in target.companions:
            model = registry.load(source, str(target.device), target.dtype).model
            if reason := _other_size(source.name, model.config, target):
                raise ValueError(reason)
            target.companions[source.argument] = beside(target, model, source.name)
        self.model = target.companions[source.argument]
        self.draft_parameters = sum(p.numel() for p in self.model.model.parameters())
        self.checkpoint_sha256 = _sha256(source)
        self.k, self.width = settings.k, settings.k + 1
        device = target.device
        self._chain = Topology.of(range(-1, self.k), device, lasting=True)
        self._two = Topology.of([-1, 0], device, lasting=True)
        self._one = Topology.of([-1], device, lasting=True)
        self._newest = target.tensor([0, 0])  # the last two tokens of the text
        self._drafted = [target.tensor([0]) for _ in range(self.k)]  # x_1, ..., x_k
        # row i has q_{i+1}, the last is never read
        self._q = torch.zeros(self.width, target.vocab_size, device=device)
        self._sampling = Sampling()
        self._take = self.model.capture(self._take_likeliest)
        self._follow = target.capture(self._read_verdict)

    def draft_bytes(self) -> int:
        return self.k * weight_bytes(self.model.model)

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        model = self.model
        model.reserve(self.target.cache.capacity)
        model.prefill(prompt_ids)
        self._newest.copy_(self.target.tensor([prompt_ids[-1], token]))
        model.length.copy_(self.target.length - 1)
        model.cache.length = self.target.cache.length - 1
        self._sampling = sampling

    def draft(self) -> TokenTree:
        model, tokens, topology = self.model, self._newest, self._two
        for i, drafted in enumerate(self._drafted):
            tree = model.pad(TokenTree(tokens, topology))
            step = model.unpad(tree, model.forward(tree), topology.width)[1]
            if self._sampling.greedy:
                self._take(step, drafted)
            else:
                self._draw(step, drafted, i)
            model.cache.advance(topology.width)
            tokens, topology = drafted, self._one
        return TokenTree(torch.cat((self._newest[1:], *self._drafted)), self._chain)

    def _take_likeliest(self, step: Step, drafted: Tensor) -> None:
        drafted.copy_(self.model.argmax(step.logits[-1:]))
        self.model.length.add_(step.logits.shape[0])

    def _draw(self, step: Step, drafted: Tensor, i: int) -> None:
        self._q[i] = self._sampling.probs(step.logits[-1])
        drafted.copy_(self._sampling.draw(self._q[i : i + 1]))
        self.model.length.add_(step.logits.shape[0])

    def accept(self, tree: TokenTree, step: Step, sampling: Sampling) -> Verdict:
        return accept(tree, step.logits, sampling, draft_probs=self._q)

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        self._follow(tree, verdict)
        # Where work is launched ahead, the host's count is that of the step before; the engines
        # that do so count on the device.
        self.model.cache.length = self.target.cache.length - 1

    def _read_verdict(self, tree: TokenTree, verdict: Verdict) -> None:
        last = verdict.path.gather(0, verdict.length.view(1))  # [1], the deepest accepted node
        self._newest.copy_(torch.cat((tree.tokens[last], verdict.bonus.view(1))))
        self.model.length.copy_(self.target.length - 1)


def _draft_of(target: str, settings: Settings) -> Target:
    """The model that drafts for the target of that name. UsageError where there is none."""
    name = settings.weights or SMALLER.get(target)
    if name in (None, RANDOM):
        raise UsageError(
            f"no smaller model with the tokenizer of {target or 'this model'} is registered; name "
            "one: draft_model(model=NAME)"
        )
    return registry.resolve(name)


def _sha256(draft: Target) -> str:
    """Of what identifies its weights."""
    return sha256_of_bytes(registry.revision(draft).encode())


def _other_tokenizer(draft: Target, target: TargetInfo) -> str | None:
    """Why the models' tokens differ, in one line, as far as it is known without loading weights."""
    config = registry.config(draft)
    if config is not None and (reason := _other_size(draft.name, config, target)):
        return reason
    ours = target.vocabulary() if target.vocabulary else None
    theirs = registry.vocabulary(draft) if ours is not None else None
    if ours is None or theirs is None or ours == theirs:
        return None
    differ = min(dict(ours.items() ^ theirs.items()))
    return (
        f"{draft.name} has another tokenizer than {target.name}: token {differ!r} has id "
        f"{theirs.get(differ)} there and {ours.get(differ)} here; name a model of the same "
        "tokenizer: draft_model(model=NAME)"
    )


def _other_size(name: str, config: Any, target: TargetInfo | TargetModel) -> str | None:
    size: int = config.get_text_config().vocab_size
    if target.vocab_size in (None, size):
        return None
    return (
        f"{name} has {size:,} tokens and {target.name or 'the target'} {target.vocab_size:,}; name "
        "a model of the same tokenizer: draft_model(model=NAME)"
    )
