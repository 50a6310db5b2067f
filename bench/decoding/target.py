"""The target model as decoders see it: prefill, a forward over a token tree, commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.cache import TreeCache, round_up
from bench.decoding.phases import PhaseClock
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict

PREFILL_CHUNK = 512  # tokens a prefill forward

Function = TypeVar("Function", bound=Callable[..., Any])


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
    """A step's one host read, under way."""

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


class TargetModel:
    """A causal LM with a cache that keeps accepted paths. Engine `eager`: plain forwards.

    Works with any transformers causal LM whose layers all attend to the full context.

    A step of a decode loop is `place` the drafted tree, `forward`, `record` and `settle` a verdict,
    `commit`.
    Decoders hand functions of tensors alone to `capture` and `fuse`: other engines record them
    once and replay them, here they stay what they are.

    Attributes:
        clock: marks the phases of a decode loop.
        cache: `cache.length` rows are committed: prompt and emitted tokens but the newest.
        length: int64 [1], the same number on the device.
        runs_ahead: whether work may be launched between `commit` and its `wait`.
        fuses: whether products and what stands around them are few kernels here, so that a draft
            had better be written in `bench.decoding.ops`.
    """

    engine: ClassVar[str] = "eager"
    runs_ahead: ClassVar[bool] = False
    fuses: ClassVar[bool] = False

    def __init__(self, model: Any, name: str = "") -> None:
        """Wrap `model`, which the registry knows as `name`.

        ValueError where a layer attends to less than the full context.
        """
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        if kinds or getattr(config, "sliding_window", None):
            raise ValueError(f"only full attention is supported, not {sorted(kinds) or 'sliding'}")
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
        heads = config.num_attention_heads
        self.cache = TreeCache(
            layers=self.layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or self.hidden_size // heads,
            dtype=self.dtype,
            device=self.device,
        )
        self.length = torch.zeros(1, dtype=torch.long, device=self.device)
        self._hidden = torch.empty(0)
        self._taps: dict[int, Tensor] = {}
        model.base_model.register_forward_hook(self._keep_hidden)

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
        for k in layers:
            if not 1 <= k <= self.layers:
                raise ValueError(f"tap must lie in 1..{self.layers}, not {k}")
            if k not in self._taps:
                self._taps[k] = torch.empty(0)
                self.model.base_model.layers[k - 1].register_forward_hook(
                    lambda _module, _args, output, k=k: self._taps.__setitem__(k, output)
                )

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows of keys and values."""
        self.cache.reserve(rows)

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """int64 [n] on the target's device."""
        return torch.tensor(ids, device=self.device)

    def capture(self, function: Function) -> Function:
        """`function` as this engine runs it. It works on the device alone: no host reads, the same
        shapes at every call, state in tensors that stay where they are. Arguments are objects that
        the engine hands out again and again: placed trees, steps, settled verdicts."""
        return function

    def fuse(self, function: Function) -> Function:
        """`function` of tensors, compiled where the engine compiles."""
        return function

    def place(self, tree: TokenTree) -> TokenTree:
        """The tree in the form that this engine's `forward` takes."""
        return tree

    def prefill(self, prompt_ids: Sequence[int]) -> Step:
        """Forget the sequence before, run the prompt and commit it. Hidden states of all of it."""
        self.cache.length = 0
        parts: list[Step] = []
        for chunk in torch.split(self.tensor(prompt_ids), PREFILL_CHUNK):
            n = chunk.shape[0]
            self.cache.begin(n, exact=True)
            positions = torch.arange(n, device=self.device) + self.cache.length
            parts.append(self._forward(chunk, positions, mask=None, logits_to_keep=1))
            self.cache.advance(n)
        if not parts:
            raise ValueError("a prompt needs at least one token")
        self.length.fill_(self.cache.length)
        return Step.joined(parts)

    def forward(self, tree: TokenTree) -> Step:
        """Run the tree behind the committed rows; nothing is committed."""
        w, length = tree.width, self.cache.length
        self.cache.begin(w, exact=w == 1)
        positions = tree.topology.depths + length
        if length + w > self.max_positions:  # drafts past the end are never emitted
            positions = positions.clamp(max=self.max_positions - 1)
        mask = None
        if w > 1:
            mask = torch.full((w, self.cache.live), -torch.inf, device=self.device)
            mask[:, :length] = 0.0
            mask[:, length : length + w] = tree.topology.bias
            mask = mask.to(self.dtype)[None, None]
        return self._forward(tree.tokens, positions, mask, logits_to_keep=0)

    def record(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """The verdict where the engine keeps it, its nodes counted; a function of tensors, to be
        called once, before `settle`."""
        return verdict

    def settle(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """The device's part of a commit: a recorded verdict's rows in order."""
        return verdict

    def commit(self, tree: TokenTree, verdict: Verdict, also: Tensor | None = None) -> Reading:
        """Keep the root's and the accepted rows; the step's one host read.

        Args:
            tree: the tree of the last forward.
            verdict: what to keep, recorded and settled.
            also: int64 [m], more numbers that the decoder wants on the host.
        """
        parts = [verdict.length[None], verdict.bonus[None], verdict.path, tree.tokens]
        if also is not None:
            parts.append(also)
        length, bonus, *rest = torch.cat(parts).tolist()
        w = tree.width
        path, tokens = rest[: length + 1], rest[w : 2 * w]
        if path[-1] == length:  # 0, 1, 2, ...: the rows lie in place
            self.cache.advance(length + 1)
        else:
            self.cache.keep(verdict.path[: length + 1])
        self.length.fill_(self.cache.length)
        return Committed(path, [*(tokens[i] for i in path[1:]), bonus], rest[2 * w :])

    def commit_root(self) -> None:
        """Keep the root's row alone, as plain autoregressive decoding does; no host read."""
        self.cache.advance(1)
        self.length.add_(1)

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, context: bool = True
    ) -> Tensor:
        """Attention of a draft's nodes over its own cache.

        Args:
            q: [n, H, D].
            keys, values: [H, rows, D]; the committed positions' rows and m drafted ones behind.
            visible: bool [n, m].
            context: False hides the committed rows.

        Returns:
            [n, H, D].
        """
        length = self.cache.length
        end = length + visible.shape[1]
        live = min(round_up(end), keys.shape[1])  # few shapes: some kernels are planned for each
        seen = F.pad(F.pad(visible, (length, 0), value=context), (0, live - end), value=False)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None, :, :live],
            values[None, :, :live],
            attn_mask=seen,
        )
        return out[0].transpose(0, 1)

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

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, logits_to_keep: int
    ) -> Step:
        output = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return Step(output.logits[0], self._hidden, self._states())

    def _states(self) -> dict[int, Tensor]:
        """The tapped residual streams of the last forward, each [n, d]."""
        return {k: state[0] for k, state in self._taps.items()}

    def _keep_hidden(self, _module: object, _args: object, output: Any) -> None:
        self._hidden = output.last_hidden_state[0]
