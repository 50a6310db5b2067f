"""The contract between the harness and a decoding method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, TypeAlias

from torch import Tensor

from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict, accept, exact_match

AUTO: Final = "auto"  # a parameter's value that the method chooses by itself
Count: TypeAlias = int | Literal["auto"]


@dataclass(frozen=True)
class Block:
    """What one step emits.

    Attributes:
        ids: token ids: the one of prefill, or a verify step's accepted tokens and bonus token.
        drafted: nodes drafted for it, the root not counted.
        path: node indices of the accepted tokens.
        depth: levels drafted for it below the root; None where the host does not know.
    """

    ids: tuple[int, ...]
    drafted: int = 0
    path: tuple[int, ...] = ()
    depth: int | None = None


@dataclass(frozen=True)
class TargetInfo:
    """What is known of a target before its weights are loaded; None where it is not.

    Attributes:
        argument: what `--model` takes for it; None: its name.
        vocabulary: gives the ids of its tokens; None where they are not known yet.
    """

    name: str
    hidden_size: int | None = None
    vocab_size: int | None = None
    layers: int | None = None
    argument: str | None = None
    vocabulary: Callable[[], Mapping[str, int] | None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Settings:
    """How a method is set up. A subclass's own fields are the parameters of `name(key=value)`.

    Attributes:
        checkpoint: path or hub id of draft weights; None for those that ship.
        tree: a named tree, or a file; None for the method's default.
    """

    checkpoint: str | None = field(default=None, kw_only=True)
    tree: str | None = field(default=None, kw_only=True)

    @classmethod
    def parameters(cls) -> tuple[Field[Any], ...]:
        """The fields that `name(key=value)` sets, in order."""
        return tuple(f for f in fields(cls) if not f.kw_only)

    @property
    def weights(self) -> str | None:
        """The draft's weights as the user named them, None where the method has its own."""
        return self.checkpoint

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        """Values worth trying of each parameter, in ascending order, for `bench.tune`. It searches
        them in this order, so the draft's size comes first; none for a method that is not tuned."""
        return {}

    def require(self, method: str, **least: float) -> None:
        """ValueError, one line, where a parameter lies below its least value."""
        for name, bound in least.items():
            value = getattr(self, name)
            if value != AUTO and value < bound:
                raise ValueError(f"{method} needs {name} >= {bound}, not {value}")


class Decoder(ABC):
    """A decoding method on one target.

    A decoder never reads a clock, never trims at EOS or a length, never sees the token budget:
    the runner owns all of that. It keeps no state from one `decode` to the next, unless a setting
    asks for it.

    Attributes:
        name: the method's name, as the entry point has it.
        lossless: whether the output equals (follows, when sampling) the target's own.
        takes_checkpoint: whether `Settings.checkpoint` means something to it.
        settings_type: the `Settings` subclass with the method's parameters.
        width: most tokens of one verify forward, so that the runner can size the cache.
        carries_over: whether settings ask for what was learnt in one `decode` to be used in the
            next; figures then depend on the order of the prompts, and records say so.
        draft_parameters: weights beyond the target's.
        checkpoint_sha256, tree_sha256: of the files used, None where there is none.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool]
    takes_checkpoint: ClassVar[bool] = False
    settings_type: ClassVar[type[Settings]] = Settings
    width: int = 1
    carries_over: bool = False
    draft_parameters: int = 0
    checkpoint_sha256: str | None = None
    tree_sha256: str | None = None

    @classmethod
    def unavailable(cls, target: TargetInfo, settings: Settings) -> str | None:  # noqa: ARG003
        """Why the method cannot run on `target` with `settings`, in one line, or None."""
        return None

    @classmethod
    def weights_sha256(cls, target: TargetInfo, settings: Settings) -> str | None:  # noqa: ARG003
        """What `checkpoint_sha256` will be, without loading the weights; None where there are none.

        ValueError where they cannot be found.
        """
        return None

    def __init__(self, target: TargetModel, settings: Settings) -> None:
        """Load everything that decoding needs. ValueError for settings that make no sense."""
        self.target = target
        self.settings = settings

    def draft_bytes(self) -> int:
        """Bytes of weights that drafting one step reads: the draft's parameters once, unless a
        method says otherwise."""
        return self.draft_parameters * self.target.dtype.itemsize

    @abstractmethod
    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        """Yield the token that prefill gives, then a block for each verify forward, for ever.

        Phases are marked with `with self.target.clock.phase("draft"): ...`.
        """


class TreeDecoder(Decoder):
    """Draft a tree, verify it in one forward, accept, repeat.

    A subclass drafts. Its state of the running sequence is set by `begin`, read by `draft` and
    brought up to date by `advance` on the device or by `observe` on the host; work in all of them
    counts as drafting. What of it runs on the device alone goes through `target.capture`.

    Attributes:
        on_device: whether `advance` and `draft` need nothing that the host reads, so that an
            engine may launch the next draft before the host has read this step.
    """

    on_device: ClassVar[bool] = False

    def __init__(self, target: TargetModel, settings: Settings) -> None:
        super().__init__(target, settings)
        self._match = target.fuse(self._matched)
        self._settle_greedy = target.capture(self._settle_matched)

    def begin(self, prompt_ids: Sequence[int], step: Step, token: int, sampling: Sampling) -> None:
        """A sequence starts.

        Args:
            prompt_ids: the prompt.
            step: its prefill.
            token: the first one emitted.
            sampling: for a draft that draws: lossless holds over its randomness too.
        """

    @abstractmethod
    def draft(self) -> TokenTree:
        """The next tree; its root is the newest emitted token."""

    def accept(self, tree: TokenTree, step: Step, sampling: Sampling) -> Verdict:
        """The acceptance rule above temperature 0; lossless unless a subclass says otherwise."""
        return accept(tree, step.logits, sampling)

    def also(self, step: Step) -> Tensor | None:
        """int64 [m]: numbers of this step that `observe` wants on the host."""
        return None

    def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
        """The step's outcome on the device, before the next draft."""

    def observe(self, block: Block, also: Sequence[int]) -> None:
        """The step's outcome on the host, before the next draft."""

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        target, clock = self.target, self.target.clock
        step = target.prefill(prompt_ids)
        token = int(sampling.pick(step.logits[-1]))
        with clock.phase("draft"):
            self.begin(prompt_ids, step, token, sampling)
        yield Block((token,))
        with clock.phase("draft"):
            drafted, tree = self._draft_and_pad()
        while True:
            with clock.phase("verify"):
                step = target.forward(tree)
            with clock.phase("accept"):
                own = target.unpad(tree, step, drafted.width)
                verdict = self._settle(drafted, tree, step, sampling)
                reading = target.commit(tree, verdict, self.also(own[1]))
            drafts, depth = drafted.width - 1, drafted.topology.height
            ahead = self.on_device and target.runs_ahead
            if ahead:
                clock.ahead()
                drafted, tree = self._following(own, verdict)
            with clock.phase("accept"):
                path, ids, also = reading.wait()
            block = Block(tuple(ids), drafts, tuple(path[1:]), depth)
            yield block
            if not ahead:
                drafted, tree = self._following(own, verdict, block, also)

    def _following(
        self,
        verified: tuple[TokenTree, Step],
        verdict: Verdict,
        block: Block | None = None,
        also: Sequence[int] = (),
    ) -> tuple[TokenTree, TokenTree]:
        with self.target.clock.phase("draft"):
            self.advance(*verified, verdict)
            if block is not None:
                self.observe(block, also)
            return self._draft_and_pad()

    def _draft_and_pad(self) -> tuple[TokenTree, TokenTree]:
        """(the next tree as drafted, as padded)."""
        drafted = self.draft()
        if drafted.worth is not None:  # the host launches forwards, so it must know their width
            drafted = drafted.first(int(drafted.worth))
        return drafted, self.target.pad(drafted)

    def _settle(
        self, drafted: TokenTree, tree: TokenTree, step: Step, sampling: Sampling
    ) -> Verdict:
        if sampling.greedy:
            return self._settle_greedy(tree, step)
        decided = self.accept(drafted, step.first(drafted.width), sampling)
        return self.target.move_accepted(tree, self.target.store_verdict(tree, decided))

    def _settle_matched(self, tree: TokenTree, step: Step) -> Verdict:
        return self.target.move_accepted(tree, self._match(tree, self.target.argmax(step.logits)))

    def _matched(self, tree: TokenTree, best: Tensor) -> Verdict:
        """The greedy rule's verdict, stored; best: int64 [w], the argmax at every node."""
        return self.target.store_verdict(tree, exact_match(tree, best))
