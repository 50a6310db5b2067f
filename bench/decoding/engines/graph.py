"""Engines with static shapes: every forward at one of a few widths, every tensor at an address of
its own, so that CUDA graphs can replay a step's work.

`graph` replays the model's own modules; `compile` (in `fused.py`) replays fused kernels. Without a
GPU the same functions run uncaptured, which is how they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AttentionInterface

from bench.decoding.cache import TreeCache, round_up
from bench.decoding.engines import ops
from bench.decoding.engines.buffers import StaticBuffers, pinned
from bench.decoding.target import Committed, Function, Reading, Step, TargetModel
from bench.decoding.timing import median_seconds
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict

WIDTHS = (1, 16, 32, 64, 128, 256)  # of captured forwards; a tree takes the next one up
ROWS = 2048  # cached rows from the start: growing means capturing again
ATTENTION = "chimera_tree"
SURELY = 0.97  # of the other's time: far beyond what replays scatter


class GraphTarget(TargetModel):
    """Engine `graph`: the model's own modules in CUDA graphs."""

    engine: ClassVar[str] = "graph"
    runs_ahead: ClassVar[bool] = True

    def __init__(self, model: Any, name: str = "") -> None:
        super().__init__(model, name)
        AttentionInterface.register(ATTENTION, _attend)
        self.epoch = 0  # goes up when captured addresses are no longer valid
        self._buffers: dict[int, StaticBuffers] = {}
        self._unpadded: dict[tuple[int, ...], tuple[TokenTree, Step, tuple[TokenTree, Step]]] = {}
        self._replays = self.device.type == "cuda"
        self._widths: tuple[int, ...] = WIDTHS
        self._root_landing = pinned(1, self.device)
        self.reserve(min(ROWS, round_up(self.max_positions)))

    @classmethod
    def unavailable(cls, model: Any) -> str | None:
        if model.device.type != "cuda":
            return f"CUDA graphs need a GPU, not {model.device.type}"
        return None

    def reserve(self, rows: int) -> None:
        """Room for `rows` rows and a padded tree behind them; captures again if it has to grow."""
        before = self.cache.capacity
        super().reserve(rows + WIDTHS[-1])
        if self.cache.capacity != before:
            self._start_anew()

    def tap(self, *layers: int) -> None:
        known = len(self._taps.states)
        super().tap(*layers)
        if len(self._taps.states) > known:
            self._start_anew()

    def _start_anew(self) -> None:
        """Addresses that graphs were captured with are no longer valid."""
        self.epoch += 1
        self._buffers.clear()
        self._unpadded.clear()

    def capture(self, function: Function) -> Function:
        return _Captured(self, function)  # type: ignore[return-value]

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, context: bool = True
    ) -> Tensor:
        return ops.attend(q, keys, values, self.length, visible, context)

    def argmax(self, logits: Tensor) -> Tensor:
        return ops.argmax(logits)

    def top(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return ops.top(logits, count)[:2]

    def likeliest(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best, index, total = ops.top(logits, count)
        return best - total[:, None], index

    # A step

    def prefill(self, prompt_ids: Sequence[int]) -> Step:
        """In chunks, each a chain of a captured width, padded behind its end."""
        if not prompt_ids:
            raise ValueError("a prompt needs at least one token")
        self.cache.length = 0
        self.length.zero_()
        parts: list[Step] = []
        for chunk in torch.split(self.tensor(prompt_ids), WIDTHS[-1]):
            n = chunk.shape[0]
            buffers = self._buffers_for(n)
            buffers.tokens[:n].copy_(chunk)
            step = self.forward(buffers.chain()).first(n)
            self.cache.advance(n)
            self.length.add_(n)
            # Out of the buffers that the next forward overwrites.
            taps = {k: state.clone() for k, state in step.taps.items()}
            parts.append(Step(step.logits[-1:].clone(), step.hidden.clone(), taps))
        return Step.joined(parts)

    def pad(self, tree: TokenTree) -> TokenTree:
        """Padded to a captured width, in its buffers; the same object for the same shape."""
        return self._buffers_for(tree.width).take(tree)

    def forward(self, tree: TokenTree) -> Step:
        """Run a padded tree behind the committed rows; nothing is committed. The step's tensors
        are overwritten by the next forward of the same width."""
        self.cache.begin(tree.width, exact=True)  # refuses what does not fit
        buffers = self._buffers[tree.width]
        buffers.show(tree)
        return buffers.run()

    def unpad(self, tree: TokenTree, step: Step, width: int) -> tuple[TokenTree, Step]:
        if tree.width == width:
            return tree, step
        if not self._replays:  # nothing is told apart by identity, and every step is a new object
            return tree.first(width), step.first(width)
        key = (id(tree), id(step), width)
        if key not in self._unpadded:  # arguments are kept, so that their ids stay theirs
            own = tree.first(width), step.first(width)
            self._unpadded[key] = tree, step, own
        return self._unpadded[key][2]

    def store_verdict(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """In the buffers of its width, and counted on the device."""
        kept = self._buffers[tree.width].verdict
        kept.length.copy_(verdict.length)
        kept.bonus.copy_(verdict.bonus)
        kept.path[: verdict.path.shape[0]].copy_(verdict.path)
        self.length.add_(verdict.length + 1)
        return kept

    def move_accepted(self, tree: TokenTree, verdict: Verdict) -> Verdict:
        """Move the accepted rows, on the device."""
        height = tree.topology.height
        most = tree.width - 1 if height is None else height
        ops.move(self.cache.rows, self.length, verdict.path, verdict.length, most)
        return verdict

    def commit(self, tree: TokenTree, verdict: Verdict, also: Tensor | None = None) -> Reading:
        buffers = self._buffers[tree.width]
        return _Copy(self.cache, buffers.packed, also, buffers.landing, tree.width)

    def commit_root(self, token: Tensor) -> Reading:
        self.cache.advance(1)
        return _RootCopy(token, self._root_landing)

    def _buffers_for(self, width: int) -> StaticBuffers:
        """Those of the captured width that takes `width` tokens."""
        w = next((w for w in self._widths if w >= width), None)
        if w is None:
            raise ValueError(f"engine {self.engine} takes trees of {WIDTHS[-1]} nodes, not {width}")
        if w not in self._buffers:
            buffers = StaticBuffers(w, self.device)
            buffers.run = self.capture(partial(self.run, buffers))
            self._buffers[w] = buffers
        return self._buffers[w]

    def choose_root_width(self) -> None:
        """One token runs in the next width's buffers where that is faster: kernels for a few rows
        can be, by more than SURELY, for the largest matrices; nothing to choose without a GPU."""
        if not self._replays:
            return
        one, few = WIDTHS[:2]
        self._widths = WIDTHS
        seconds = {width: self._forward_seconds(width) for width in (one, few)}
        if seconds[few] < SURELY * seconds[one]:
            self._widths = WIDTHS[1:]

    def _forward_seconds(self, width: int) -> float:
        """Median of a few replays of a forward behind a committed token."""
        self.prefill([0])
        return median_seconds(partial(self.forward, self._buffers_for(width).chain()), self.device)

    def run(self, buffers: StaticBuffers) -> Step:
        """The forward of what lies in `buffers`, as a function of tensors."""
        rows = self.length + torch.arange(buffers.width, device=self.device)
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        self.cache.write_to = rows
        try:
            return self._run_model(
                input_ids=buffers.tokens[None],
                # drafts past the last position are never emitted
                position_ids=(self.length + buffers.depths).clamp(max=self.max_positions - 1)[None],
                attention_mask=buffers.visible[None, None],
                committed=self.length,
            )
        finally:
            self.cache.write_to = None
            self.model.set_attn_implementation(usual)


class _RootCopy:
    """One token on its way to the host."""

    def __init__(self, token: Tensor, landing: Tensor) -> None:
        self._landing = landing
        self._arrived = _start_copy(token, landing)

    def wait(self) -> Committed:
        if self._arrived is not None:
            self._arrived.synchronize()
        return Committed([0], self._landing.tolist(), [])


class _Copy:
    """A verdict on its way to the host; what is launched meanwhile does not delay it."""

    def __init__(
        self, cache: TreeCache, packed: Tensor, also: Tensor | None, landing: Tensor, width: int
    ) -> None:
        self._cache, self._landing, self._width = cache, landing, width
        self._arrived: torch.cuda.Event | None = None
        if also is not None:
            self._landing = torch.cat((packed, also)).cpu()
            return
        self._arrived = _start_copy(packed, landing)

    def wait(self) -> Committed:
        if self._arrived is not None:
            self._arrived.synchronize()
        w = self._width
        length, bonus, *rest = self._landing.tolist()
        path, tokens = rest[: length + 1], rest[w : 2 * w]
        self._cache.advance(length + 1)
        return Committed(path, [*(tokens[i] for i in path[1:]), bonus], rest[2 * w :])


def _start_copy(numbers: Tensor, landing: Tensor) -> torch.cuda.Event | None:
    """Starts a copy to pinned memory; the event after it, None where there is none to wait for."""
    landing.copy_(numbers, non_blocking=True)
    if not numbers.is_cuda:
        return None
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return arrived


@dataclass
class _Recording:
    """A function's call with certain arguments: run as it is, then captured, then replayed."""

    arguments: tuple[object, ...]  # kept, so that their ids stay theirs
    graph: torch.cuda.CUDAGraph | None = None
    result: Any = None


class _Captured:
    """A function whose work a GPU replays; its arguments are told apart by identity."""

    def __init__(self, target: GraphTarget, function: Callable[..., Any]) -> None:
        self._target = target
        self._function = function
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        self._epoch = target.epoch

    def __call__(self, *arguments: object) -> Any:
        if not self._target._replays:
            return self._function(*arguments)
        if self._epoch != self._target.epoch:
            self._recordings.clear()
            self._epoch = self._target.epoch
        key = tuple(map(id, arguments))
        recording = self._recordings.get(key)
        if recording is None:  # the first run warms up: compilers, handles, allocations
            self._recordings[key] = _Recording(arguments)
            return self._function(*arguments)
        if recording.graph is None:
            recording.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recording.graph):
                recording.result = self._function(*arguments)
        recording.graph.replay()
        return recording.result


def _attend(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    committed: Tensor,
    scaling: float,
    **_kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention over the whole cache, of which the committed rows and the tree's
    count.

    query: [1, H, w, D]; key, value: [1, G, rows, D]; mask: bool [1, 1, w, w]; committed: int64 [1].
    """
    q = query[0].transpose(0, 1)
    out = ops.attend(q, key[0], value[0], committed, attention_mask[0, 0], scale=scaling)
    return out[None], None
