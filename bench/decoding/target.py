"""The target model as decoders see it: prefill, a forward over a token tree, commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.cache import TreeCache, cache_argument
from bench.decoding.engines import forms
from bench.decoding.engines.registry import EAGER
from bench.decoding.finite import LogitsCheck
from bench.decoding.phases import PhaseClock
from bench.decoding.taps import Taps
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict

Function = TypeVar("Function", bound=Callable[..., Any])


def weight_bytes(model: Any) -> int:
    """Bytes of weights that one forward of a transformers causal LM reads: an embedding table that
    is not also the LM head gives one row for each token."""
    read: int = sum(weight.nbytes for weight in model.parameters())  # a tied table counts once
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return read - (0 if head is embedding else embedding.nbytes)


@dataclass(frozen=True)
class Step:
    """What a forward over n tokens gives.

    Attributes:
        logits: [w, V] for a tree of w nodes; [1, V], the last position's, for a prefill.
        hidden: [n, d], after the final norm.
        taps: residual stream [n, d] after k layers, for every k that was asked for by `tap`.
    """

    logits: Tensor
    hidden: Tensor
    taps: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Step]) -> Step:
        """A prefill from its chunks: all states, the last chunk's logits."""
        if len(parts) == 1:
            return parts[0]
        hidden = torch.cat([part.hidden for part in parts])
        taps = {k: torch.cat([part.taps[k] for part in parts]) for k in parts[0].taps}
        return cls(parts[-1].logits, hidden, taps)

    def first(self, n: int) -> Step:
        """The first n nodes' rows."""
        taps = {k: state[:n] for k, state in self.taps.items()}
        return Step(self.logits[:n], self.hidden[:n], taps)


class Reading(Protocol):
    """A step's one host read, in progress."""

    def wait(self) -> Committed:
        """What was committed."""


class Committed(NamedTuple):
    """A verdict on the host: `path` from the root down, `ids` emitted, `also` as asked."""

    path: list[int]
    ids: list[int]
    also: list[int]

    def wait(self) -> Committed:
        """Read already."""
        return self


class TargetModel(ABC):
    """A causal LM with a cache that keeps accepted paths; each engine is a subclass.

    Works with any transformers causal LM whose layers all attend to the full context.

    One step of a decode loop: `pad` the drafted tree, `forward`, `store_verdict` and
    `move_accepted`, `commit`. Decoders hand functions of tensors alone to `capture` and `fuse`:
    engines with static shapes record them once and replay them, `eager` calls them as they are.

    Attributes:
        clock: marks the phases of a decode loop.
        logits_check: sees the logits of every forward, for the runner.
        cache: `cache.length` rows are committed: the prompt and every emitted token but the newest.
        length: int64 [1], the same number on the device.
        companions: other models on the same engine, by name, shared by the decoders that draft
            with them.
        runs_ahead: whether work may be launched between `commit` and its `wait`.
        exact: whether a node's logits are the same at every width of the tree, bit for bit.
        fuses: whether matmuls are fused with their neighbours here, so that a draft should be
            written in `bench.decoding.engines.ops`.
    """

    engine: ClassVar[str]
    runs_ahead: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    fuses: ClassVar[bool] = False

    def __init__(self, model: Any, name: str = "") -> None:
        """Wrap `model`, which the registry knows as `name`.

        ValueError for a form of model that no engine takes.
        """
        config = model.config.get_text_config()
        if reason := forms.unsupported(config, EAGER):
            raise ValueError(reason)
        self.model = model
        self.name = name
        self.config = config
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.layers: int = config.num_hidden_layers
        self.max_positions: int = config.max_position_embeddings
        self.clock = PhaseClock(self.device)
        self.logits_check = LogitsCheck(self.device)
        self.cache = self._make_cache()
        self.length = torch.zeros(1, dtype=torch.long, device=self.device)
        self.companions: dict[str, TargetModel] = {}
        self._cache_argument = cache_argument(model)
        self._taps = Taps(model)
        self._taps.add_final()

    def _make_cache(self) -> TreeCache:
        return TreeCache.of(self.config, self.dtype, self.device)

    @classmethod
    def unavailable(cls, model: Any) -> str | None:  # noqa: ARG003
        """Why the engine cannot run `model` on its device, in one line, or None."""
        return None

    def embeddings(self) -> nn.Embedding:
        """The target's token embeddings, [V, d]."""
        module: nn.Embedding = self.model.get_input_embeddings()
        return module

    def head(self) -> nn.Linear:
        """The target's LM head, [V, d]."""
        module: nn.Linear = self.model.get_output_embeddings()
        return module

    def tap(self, *layers: int) -> None:
        """Hand out the residual stream after k layers, 1 <= k <= layers, in every `Step`."""
        self._taps.add(*layers)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows of keys and values."""
        self.cache.reserve(rows)

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """int64 [n] on the target's device."""
        return torch.tensor(ids, device=self.device)

    def capture(self, function: Function) -> Function:
        """`function` as this engine runs it. It works on the device alone: no host reads, the same
        shapes at every call, state in tensors that stay where they are. Arguments are objects that
        the engine hands out again and again: padded trees, steps, stored verdicts."""
        return function

    def fuse(self, function: Function) -> Function:
        """`function` of tensors, compiled where the engine compiles."""
        return function

    def product(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """x [..., K] by a draft's matrix [N, K] -> [..., N], as this engine multiplies."""
        return partial(F.linear, weight=weight)

    def prepare(self, module: nn.Module) -> None:  # noqa: B027
        """Put a draft's linear layers in the form that this engine multiplies fastest."""

    # A step

    @abstractmethod
    def prefill(self, prompt_ids: Sequence[int]) -> Step:
        """Forget the sequence before, run the prompt and commit it. Hidden states of all of it."""

    @abstractmethod
    def pad(self, tree: TokenTree) -> TokenTree:
        """The tree in the form that this engine's `forward` takes."""

    @abstractmethod
    def forward(self, tree: TokenTree) -> Step:
        """Run a padded tree behind the committed rows; nothing is committed. Where shapes are
        static, the next forward of the same width overwrites the step's tensors."""

    def unpad(self, tree: TokenTree, step: Step, width: int) -> tuple[TokenTree, Step]:
        """A padded tree and its forward as the decoder drafted it, `width` nodes: the same objects
        at every call with the same ones, so that functions of them can be captured."""
        return tree, step

    @abstractmethod
    def store_verdict(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """The verdict in the engine's own buffers, its nodes added to `length`; a function of
        tensors, to be called once, before `move_accepted`."""

    @abstractmethod
    def move_accepted(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """The device's part of a commit: the accepted path's rows of the cache in order."""

    @abstractmethod
    def commit(self, tree: TokenTree, verdict: Verdict, also: Tensor | None = None) -> Reading:
        """Keep the root's and the accepted rows; the step's one host read.

        Args:
            tree: the tree of the last forward.
            verdict: what to keep, after `store_verdict` and `move_accepted`.
            also: int64 [m], more numbers that the decoder wants on the host.
        """

    def keep_root(self, tree: TokenTree, token: Tensor) -> Tensor:
        """The device's part of plain autoregressive decoding: the root's row is counted, `token`,
        int64 [1], becomes the tree's root. A function of tensors; returns `token`."""
        tree.tokens[:1].copy_(token)
        self.length.add_(1)
        return token

    def commit_root(self, token: Tensor) -> Reading:
        """Keep the root's row alone; `token`, which `keep_root` returned, is read."""
        self.cache.advance(1)
        return Committed([0], [int(token)], [])

    def choose_root_width(self) -> None:  # noqa: B027
        """Find out which of the engine's widths runs one token fastest; once, after its trial."""

    def faulty_product(self, rows: int) -> str | None:
        """Which product of the forward is wrong at `rows` rows, in one line; None where they are
        right or the library's. Part of an engine's trial."""
        return None

    # What drafts and acceptance rules compute

    @abstractmethod
    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, context: bool = True
    ) -> Tensor:
        """Attention of a draft's nodes over its own cache.

        Args:
            q: [n, H, D].
            keys, values: [G, rows, D], H a multiple of G; the committed positions' rows and m
                drafted ones behind.
            visible: bool [n, m].
            context: False hides the committed rows.

        Returns:
            [n, H, D].
        """

    def argmax(self, logits: Tensor) -> Tensor:
        """int64 [n]: where each row of [n, V] is largest, the lowest index among equals."""
        return logits.argmax(dim=-1)

    def top(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(values, indices), each [n, count]: the largest of each row of [n, V], best first."""
        best = logits.topk(count, dim=-1)
        return best.values, best.indices

    def likeliest(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(log-probabilities in float32, indices), each [n, count], of each row of [n, V]."""
        best, index = self.top(logits, count)
        return best.float() - logits.float().logsumexp(dim=-1, keepdim=True), index

    def _run_model(self, **inputs: Any) -> Step:
        """One call of the transformers model; logits of the positions that it was asked for."""
        inputs[self._cache_argument] = self.cache
        output = self.model(use_cache=True, **inputs)
        self.logits_check.see(output.logits[0])
        # Layers of a model that is spread over cards give theirs where they lie.
        taps = {k: state[0].to(self.device) for k, state in self._taps.states.items()}
        return Step(output.logits[0], self._taps.hidden[0], taps)
