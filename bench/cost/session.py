"""One target on one engine: its forwards by width and context, and a step of every method."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from bench.cli import without_paths
from bench.cost.config import CostConfig
from bench.cost.device import Bandwidth, facts, shortage
from bench.decoding.decoder import Decoder, TargetInfo
from bench.decoding.drafts.checkpoint import RANDOM, CheckpointError
from bench.decoding.engines import trial as engines
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.timing import timed
from bench.decoding.tree import TokenTree, Topology
from bench.errors import UsageError, one_line
from bench.files import canonical_sha256
from bench.records.costs import (
    ENGINE,
    FORWARD,
    IDENTITY,
    QUIET,
    STEP,
    TURN,
    CostFolder,
    failure,
    key,
    ok,
)
from bench.records.runs import Record
from bench.run.grid import PACKAGE
from bench.run.methods import Method
from bench.run.runner import Turn, run_turn
from bench.targets import registry as targets
from bench.targets.registry import Target

WARM_UP = 3  # forwards at each width before any is timed


def with_weights(method: Method, target: Target) -> Method:
    """`method` with the weights that were given or that ship; random weights where a draft has
    neither."""
    decoder, settings = method.decoder, method.settings
    if decoder is None or not decoder.takes_checkpoint or settings.checkpoint is not None:
        return method
    if decoder.unavailable(TargetInfo(target.name), settings) is None:
        return method
    return replace(method, settings=replace(settings, checkpoint=RANDOM))


class Job(NamedTuple):
    """One measurement to make; `method` is None for an engine or a forward."""

    identity: Record
    method: Method | None = None


class CostSession:
    """Measures one target on one engine into a study's folder."""

    def __init__(
        self,
        config: CostConfig,
        target: Target,
        engine: str,
        methods: Sequence[Method],
        device_name: str,
        folder: CostFolder,
        cards: int = 1,
    ) -> None:
        """`config` has device and dtype resolved; `methods` are those that it names; the model lies
        over so many `cards`."""
        self.cards = cards
        self.config = config
        self.target = target
        self.methods = [with_weights(method, target) for method in methods]
        self.folder = folder
        self.device = torch.device(config.device)
        self.engine = engine
        self._same = {
            "package_version": version(PACKAGE),
            "model": target.name,
            "dtype": config.dtype,
            "device": device_name,
            "engine": engine,
            "seed": config.seed,
        }
        self._facts: Record = {}
        self._unfit: dict[int, tuple[str, str]] = {}  # widths that the engine cannot run
        self._left: list[Job] = []  # without a record yet
        self._advance: Callable[[], object] = lambda: None

    @property
    def title(self) -> str:
        return f"{self.target.name} {self.engine}"

    def todo(self) -> list[Job]:
        """The measurements that the folder does not have."""
        config = self.config
        jobs = [Job(self._identity(ENGINE))]
        for context in config.contexts:
            jobs += [
                Job(self._identity(FORWARD, context=context, width=w, repeats=config.repeats))
                for w in config.widths
            ]
        jobs += [Job(self._step(m, c), m) for c in config.contexts for m in self.methods]
        done = self.folder.done()
        return [job for job in jobs if key(job.identity) not in done]

    def _identity(self, kind: str, **facts: object) -> Record:
        identity = {"kind": kind, **self._same, **facts}
        assert identity.keys() == IDENTITY[kind].keys()
        return identity

    def _step(self, method: Method, context: int) -> Record:
        settings, config = method.settings, self.config
        return self._identity(
            STEP,
            context=context,
            method=method.name,
            params=method.params,
            checkpoint=without_paths(settings.checkpoint),
            tree=without_paths(settings.tree),
            max_new_tokens=config.max_new_tokens,
            repeats=config.turns,
        )

    def run(self, jobs: Sequence[Job], speed: Bandwidth, advance: Callable[[], object]) -> None:
        """Make the measurements, as `todo` returned them; `advance` is called after each."""
        self._facts = {"copy_bytes_per_s": speed.copy, "read_bytes_per_s": speed.read}
        self._advance = advance
        self._left = list(jobs)
        try:
            reason = self._measure(jobs)
            why = None if reason is None else ("skipped", reason)
        except UsageError:
            raise
        except Exception as error:
            why = _failed(error)
        if why is not None:  # one record where the whole engine failed
            whole = [job for job in self._left if job.identity["kind"] == ENGINE]
            for job in whole or list(self._left):
                self._fail(job, *why)

    def _measure(self, jobs: Sequence[Job]) -> str | None:
        """Why the engine cannot run, or None when all was measured."""
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        reason = shortage(self.target, self.device, dtype, self.cards)
        if reason is not None:
            return reason
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        loaded = targets.load(self.target, self.config.device, dtype, self.config.parallel)
        self._facts |= {"revision": loaded.revision, **facts(loaded.model)}
        started = time.perf_counter()
        target, reason = engines.make(loaded.model, self.target.name, self.engine)
        if reason is not None:
            return reason
        self._start(target)
        startup_s = time.perf_counter() - started
        self._forwards(target, [job for job in jobs if job.identity["kind"] == FORWARD])
        for job in jobs:
            if job.identity["kind"] == ENGINE:
                peak = None
                if self.device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(self.device)
                self._keep(job, {"startup_s": startup_s, "peak_memory_bytes": peak})
        self._steps(target, [job for job in jobs if job.identity["kind"] == STEP])
        return None

    def _keep(self, job: Job, figures: Record) -> None:
        self.folder.append(ok(job.identity, self._facts | figures))
        self._left.remove(job)
        self._advance()

    def _fail(self, job: Job, status: str, reason: str) -> None:
        self.folder.append(failure(job.identity, status, reason))
        self._left.remove(job)
        self._advance()

    # Forwards

    def _start(self, target: TargetModel) -> None:
        """What the engine does once: allocation for the longest context, a prefill of the shortest
        and forwards at every width."""
        config, limit = self.config, target.max_positions
        target.reserve(min(max(config.contexts) + max(config.widths), limit))
        with torch.inference_mode():
            target.prefill(self._ids(target, min(*config.contexts, limit)))
            for width in config.widths:
                if target.cache.length + width > limit:
                    continue
                try:
                    self._warm_up(target, self._tree(target, width))
                except Exception as error:
                    self._unfit[width] = _failed(error)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

    def _forwards(self, target: TargetModel, jobs: Sequence[Job]) -> None:
        for context in dict.fromkeys(job.identity["context"] for job in jobs):
            here = {
                job.identity["width"]: job for job in jobs if job.identity["context"] == context
            }
            for width in list(here):
                why = _no_room(target, context + width) or self._unfit.get(width)
                if why is not None:
                    self._fail(here.pop(width), *why)
            try:
                seconds = self._time(target, context, list(here))
            except Exception as error:
                for job in here.values():
                    self._fail(job, *_failed(error))
                continue
            for width, job in here.items():
                self._keep(job, {"seconds": seconds[width]})

    def _time(
        self, target: TargetModel, context: int, widths: Sequence[int]
    ) -> dict[int, list[float]]:
        """Seconds of each forward by width, after `context` committed rows; commits nothing.

        Widths are interleaved within a repeat, in a new order for each, so that drift affects all.
        """
        seconds: dict[int, list[float]] = {width: [] for width in widths}
        if not widths:
            return seconds
        trees = {width: self._tree(target, width) for width in widths}
        with torch.inference_mode():
            target.prefill(self._ids(target, context))
            for tree in trees.values():
                self._warm_up(target, tree)
            for repeat in range(self.config.repeats):
                for width in self._shuffled(widths, context, repeat):
                    placed = target.pad(trees[width])
                    seconds[width].append(timed(self.device, partial(target.forward, placed)))
        return seconds

    def _warm_up(self, target: TargetModel, tree: TokenTree) -> None:
        for _ in range(WARM_UP):
            target.forward(target.pad(tree))

    def _tree(self, target: TargetModel, width: int) -> TokenTree:
        """A random tree of random tokens."""
        draw = self._random("tree", width)
        parents = [-1, *(draw.randrange(node) for node in range(1, width))]
        tokens = target.tensor([draw.randrange(target.vocab_size) for _ in parents])
        return TokenTree(tokens, Topology.of(parents, target.device))

    def _ids(self, target: TargetModel, count: int, repeat: int = 0) -> list[int]:
        draw = self._random("prompt", count, repeat)
        return [draw.randrange(target.vocab_size) for _ in range(count)]

    def _shuffled(self, items: Sequence[Any], *place: object) -> list[Any]:
        order = list(items)
        self._random("order", *place).shuffle(order)
        return order

    def _random(self, *place: object) -> random.Random:
        return random.Random(canonical_sha256([self.config.seed, *place]))

    # Steps

    def _steps(self, target: TargetModel, jobs: Sequence[Job]) -> None:
        methods = {job.method.label: job.method for job in jobs if job.method is not None}
        prepared = {name: _PreparedMethod.build(method, target) for name, method in methods.items()}
        contexts = list(dict.fromkeys(job.identity["context"] for job in jobs))
        widths = [p.decoder.width for p in prepared.values() if p.decoder is not None]
        if widths:  # all of it now: an engine that has to grow captures its graphs again
            longest = min(max(contexts) + self.config.max_new_tokens, target.max_positions)
            target.reserve(longest + max(widths))
        for context in contexts:
            running: list[tuple[Job, _PreparedMethod]] = []
            for job in (job for job in jobs if job.identity["context"] == context):
                assert job.method is not None
                method = prepared[job.method.label]
                why = method.failure
                if method.decoder is not None:  # what failed at another context may run here
                    why = _no_room(target, context + self.config.max_new_tokens)
                if why is not None:
                    self._fail(job, *why)
                else:
                    running.append((job, method))
            self._turns(target, context, [method for _, method in running])
            for job, method in running:
                if method.failure:
                    self._fail(job, *method.failure)
                else:
                    self._keep(job, method.figures())

    def _turns(self, target: TargetModel, context: int, methods: Sequence[_PreparedMethod]) -> None:
        """Timed turns of every method on the same random prompts, after an untimed one.

        Each turn runs with the phase clock and without, alternating which is first. Methods are
        interleaved within a repeat, in a new order for each.
        """
        for method in methods:
            method.turns, method.quiet, method.failure = [], [], None
        for repeat in range(-1, self.config.turns):
            prompt = self._ids(target, context, repeat)
            for method in self._shuffled(methods, context, repeat):
                for quiet in (False, True) if repeat % 2 else (True, False):
                    if method.failure is None:
                        method.run(prompt, self.config.max_new_tokens, repeat < 0, quiet)


@dataclass
class _PreparedMethod:
    """A method with its decoder and its turns.

    Attributes:
        failure: (status, reason) where it cannot be built, or where its last turn failed.
        startup_s: building it and its first turn.
        warm: whether it has had that turn.
        turns: timed ones at the context that is being measured.
        quiet: the same without the phase clock's marks.
    """

    decoder: Decoder | None = None
    failure: tuple[str, str] | None = None
    startup_s: float = 0.0
    warm: bool = False
    turns: list[Turn] = field(default_factory=list)
    quiet: list[Turn] = field(default_factory=list)

    @classmethod
    def build(cls, method: Method, target: TargetModel) -> _PreparedMethod:
        """With the decoder loaded, or with the reason why not."""
        assert method.decoder is not None
        prepared = cls()
        info = TargetInfo(target.name, target.hidden_size, target.vocab_size, target.layers)
        reason = method.decoder.unavailable(info, method.settings)
        if reason is not None:
            prepared.failure = "skipped", reason
            return prepared
        started = time.perf_counter()
        try:
            prepared.decoder = method.decoder(target, method.settings)
        except Exception as error:
            prepared.failure = _failed(error)
            if method.settings.checkpoint == RANDOM and isinstance(error, CheckpointError):
                prepared.failure = "skipped", str(error)  # there is no such draft to time
        prepared.startup_s = time.perf_counter() - started
        return prepared

    def run(self, prompt: Sequence[int], max_new_tokens: int, warm_up: bool, quiet: bool) -> None:
        """One turn of full length: EOS does not end it."""
        assert self.decoder is not None
        started = time.perf_counter()
        try:
            turn = run_turn(self.decoder, prompt, Sampling(), max_new_tokens, (), not quiet)
        except Exception as error:
            self.failure = _failed(error)
            return
        if not self.warm:
            self.startup_s += time.perf_counter() - started
            self.warm = True
        if not warm_up:
            (self.quiet if quiet else self.turns).append(turn)

    def figures(self) -> Record:
        decoder = self.decoder
        assert decoder is not None
        return {
            "turns": [
                {name: getattr(turn, name) for name in TURN} | {QUIET: quiet.decode_s}
                for turn, quiet in zip(self.turns, self.quiet, strict=True)
            ],
            "width": decoder.width,
            "draft_parameters": decoder.draft_parameters,
            "draft_bytes": decoder.draft_bytes(),
            "startup_s": self.startup_s,
            "checkpoint_sha256": decoder.checkpoint_sha256,
            "tree_sha256": decoder.tree_sha256,
            "warnings": [warning for turn in self.turns for warning in turn.warnings],
        }


def _no_room(target: TargetModel, rows: int) -> tuple[str, str] | None:
    """(status, reason) where the model has fewer positions than that."""
    if rows <= target.max_positions:
        return None
    return "skipped", f"{rows} positions are needed, the model has {target.max_positions}"


def _failed(error: Exception) -> tuple[str, str]:
    """(status, reason): out of memory is skipped, everything else is an error."""
    status = "skipped" if isinstance(error, torch.OutOfMemoryError) else "error"
    return status, one_line(error)
