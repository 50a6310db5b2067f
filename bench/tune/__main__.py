"""python -m bench.tune: which parameters of a method are fastest on this device and engine.

A setting is worth its accepted length / its step's cost; times the reference's step that is its
speedup. The accepted length depends on the drafts and their tree, the step's cost on the machine,
the engine and the tree's width and depth. Both are measured by decoding answers to the question set
`tuning`, which no report evaluates on.

1. Search, a method at a time: coordinate descent from the method's defaults over the values that it
   declares (`Settings.grid`). The values of one parameter race: each answers the same questions in
   turn with the reference, and after each question those too far behind the leader drop out. A
   setting whose step costs too much for any accepted length that it could have is gone after its
   first short answer. The first parameter, the draft's size, depends on the others most: at the
   end the neighbours of its best value race once more.
2. Final: the best of every method, all interleaved with one reference, on other questions, so that
   a setting is not chosen for its luck in the search. The fastest of each method is kept.

Answers are greedy. Orders are fixed, only the times vary from run to run.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from bench import cli as settings
from bench import environment, statistics
from bench.cli import device_option, dtype_option, option
from bench.decoding.decoder import Decoder, TargetInfo
from bench.decoding.engines import trial as engines
from bench.decoding.engines.registry import ENGINES
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.errors import UsageError
from bench.questions import history
from bench.questions import sets as prompts
from bench.questions.history import Prompt
from bench.questions.parsing import Questions
from bench.records import tuned
from bench.records.runs import REFERENCE, label
from bench.records.tuned import FINAL, SEARCH, Entry, Point, Tuned
from bench.run import methods
from bench.run import tuning as shelf
from bench.run.methods import Method
from bench.run.prompting import renderer
from bench.run.runner import run_turn
from bench.targets import registry as targets
from bench.targets import synthetic
from bench.targets.registry import Loaded

QUESTIONS = "tuning"
BEHIND = 0.25  # of the leader's speed; divided by the questions asked it is what a race forgives


@dataclass(frozen=True)
class Effort:
    """How much is asked of each setting.

    Attributes:
        search, final: questions of the two stages.
        search_tokens, final_tokens: budgets of an answer.
        warm_up_tokens: of the answer that a fresh decoder gives outside any figure.
        finalists: settings of a method that reach the final.
    """

    search: int
    search_tokens: int
    final: int
    final_tokens: int
    warm_up_tokens: int
    finalists: int


SLOW = Effort(2, 32, 6, 40, warm_up_tokens=4, finalists=2)
FAST = Effort(4, 96, 8, 128, warm_up_tokens=48, finalists=3)
EFFORT = {"eager": SLOW, "graph": FAST, "compile": FAST}  # steps of some 50 and some 2 ms


@dataclass(frozen=True)
class TuneConfig:
    """What `python -m bench.tune` is asked to do; every field is a flag."""

    model: str = option(targets.DEFAULT, "target model: a registered name, a hub id or a path")
    methods: list[str] = option(
        [], "methods to tune; every lossless one that can be tuned if left out", metavar="METHOD"
    )
    engine: str = option("eager", "engine to tune for", choices=ENGINES)
    device: str = device_option()
    dtype: str = dtype_option()
    checkpoint: list[str] = option(
        [], "draft weights for a method: a path or a hub id", metavar="METHOD=WEIGHTS"
    )
    out: str | None = option(
        None, "folder for the file; the user's cache if left out", metavar="DIR", local=True
    )

    def __post_init__(self) -> None:
        """UsageError for a value that no tuning can have."""
        settings.check_choices(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = settings.Parser(
        prog="python -m bench.tune",
        description="Measure which parameters are fastest here, for bench.run --tree tuned.",
        allow_abbrev=False,
    )
    settings.add_arguments(parser, TuneConfig)

    def run(flags: dict[str, Any]) -> int:
        found, path = tune(TuneConfig(**flags))
        print("\n".join(table(found)))
        print(f"wrote {path}")
        return 0

    return settings.run_command(parser, run, argv, stopped="stopped; nothing was written")


def tune(config: TuneConfig) -> tuple[Tuned, Path]:
    """What was found, and the file that it was written to."""
    device, dtype = environment.settled(config.device, config.dtype)
    target = targets.resolve(config.model)
    if target.name in synthetic.SHAPES:
        raise UsageError(f"{target.name} has random weights, which accept nothing; tune on a model")
    chosen = [
        m for m in methods.resolve(_names(config.methods), config.checkpoint) if m.name != REFERENCE
    ]
    place = shelf.place(target, config.engine, dtype, device)
    folder = Path(config.out) if config.out else shelf.cache()
    tuned.read(folder / place.file)  # a damaged file is refused before the work
    chosen = list(_available(chosen, TargetInfo(target.name)))
    loaded = targets.load(target, device, getattr(torch, dtype))
    model, reason = engines.make(loaded.model, target.name, config.engine)
    if reason is not None:
        raise UsageError(f"--engine {config.engine} cannot run here: {reason}")
    seen = environment.collect(device, {})
    entries = Tuner(model, loaded, EFFORT[config.engine], seen).run(chosen)
    found = Tuned(place, entries)
    return found, tuned.write(folder, found)


def _names(given: Sequence[str]) -> list[str]:
    """Methods by name; those that can be tuned where none is given."""
    known = methods.discover()
    for text in given:
        if methods.parse(text)[1]:
            raise UsageError(f"--methods {text}: bench.tune chooses the parameters; name it alone")
    if given:
        return list(given)
    decoders = {name: point.load() for name, point in known.items()}
    return [n for n, kind in decoders.items() if kind.lossless and kind.settings_type.grid()]


def _available(chosen: Sequence[Method], target: TargetInfo) -> Iterator[Method]:
    """Those that can be tuned; the others are named on stderr. UsageError where none can."""
    left = False
    for method in chosen:
        if method.decoder is None or not method.settings.grid():
            raise UsageError(f"{method.name} has no parameters to tune")
        reason = method.decoder.unavailable(target, method.settings)
        if reason is None:
            left = True
            yield method
        else:
            print(f"{method.name} is left out: {reason}", file=sys.stderr)
    if not left:
        raise UsageError(f"none of the methods can run on {target.name}; choose other --methods")


# Measuring


class Answer(NamedTuple):
    """One answer's decode loop, and the reference's to the same question; or sums of several."""

    tokens: int
    steps: int
    drafted: int
    seconds: float
    reference_tokens: int
    reference_s: float

    @property
    def speed(self) -> float:
        """Tokens a second; 0 where the answer ended with its first token."""
        return self.tokens / self.seconds if self.steps else 0.0

    @property
    def speedup(self) -> float:
        return self.speed * self.reference_s / max(self.reference_tokens, 1)


def total(answers: Iterable[Answer]) -> Answer:
    """Their sums."""
    return Answer(*map(sum, zip(*answers, strict=True)))


@dataclass(eq=False)
class Candidate:
    """A setting of a method.

    Attributes:
        decoder: while it is being measured.
        answers: of the search, by the question's place; the newest counts.
        dropped: whether a race has dropped it.
    """

    method: Method
    decoder: Decoder | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    dropped: bool = False


class Tuner:
    """Searches and finals on one target."""

    def __init__(
        self, target: TargetModel, loaded: Loaded, effort: Effort, seen: Mapping[str, Any]
    ) -> None:
        self._target, self._loaded, self._effort = target, loaded, effort
        self._environment = dict(seen)
        questions = prompts.load(QUESTIONS, None)
        self._sha256 = questions.sha256
        self._search, self._final = _stages(questions, loaded, effort)
        self._reference = Candidate(methods.method(REFERENCE, methods.discover()))
        self._bar = tqdm(unit="answer", disable=None)

    def run(self, chosen: Sequence[Method]) -> dict[str, Entry]:
        """An entry for each method, by name."""
        with self._bar:
            searched = {method.name: self._searched(method) for method in chosen}
            finalists = {name: self._finalists(tried) for name, tried in searched.items()}
            final = self._finals([c for found in finalists.values() for c in found])
            return {
                name: self._entry(searched[name], [(c, final[c.method.label]) for c in found])
                for name, found in finalists.items()
            }

    def _searched(self, method: Method) -> list[Candidate]:
        """Every setting that was tried, in order."""
        best = Candidate(method)
        tried = {method.label: best}
        grid = method.settings.grid()
        for place, parameter in enumerate([*grid, *list(grid)[:1]]):
            self._bar.set_description(f"{method.name} {parameter}")
            values = grid[parameter]
            if place == len(grid):
                values = _neighbours(values, best.method.params[parameter])
            variants = {m.label: Candidate(m) for m in _variants(best.method, parameter, values)}
            fresh = {name: c for name, c in variants.items() if name not in tried}
            tried |= fresh
            if fresh:
                best = self._race([best, *fresh.values()])
        best.decoder = None
        return [candidate for candidate in tried.values() if candidate.answers]

    def _race(self, entered: Sequence[Candidate]) -> Candidate:
        """The fastest on the search's questions; the others are dropped or lose."""
        alive = self._ready(entered, self._search, self._effort.search_tokens)
        raced = {c.method.label: list[Answer]() for c in alive}
        for asked, prompt in enumerate(self._search, start=1):
            answers = self._ask(alive, prompt, self._effort.search_tokens, asked)
            for candidate, answer in zip(alive, answers, strict=True):
                raced[candidate.method.label].append(answer)
                candidate.answers[prompt.prompt_id] = answer
            rates = {c: total(raced[c.method.label]).speed for c in alive}
            best = max(alive, key=rates.__getitem__)
            alive = [c for c in alive if rates[c] >= rates[best] * (1 - BEHIND / asked)]
            if len(alive) == 1:
                break
        for candidate in entered:
            candidate.dropped = candidate not in alive
            if candidate is not best:
                candidate.decoder = None
        gc.collect()  # what an engine recorded for them goes with them
        return best

    def _finalists(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """The fastest of those that no race dropped, relative to the reference beside them."""
        left = [c for c in tried if not c.dropped]
        left.sort(key=lambda c: -total(c.answers.values()).speedup)
        return left[: self._effort.finalists]

    def _finals(self, finalists: Sequence[Candidate]) -> dict[str, list[Answer]]:
        """Answers to the final questions, by label."""
        self._bar.set_description("final")
        self._ready(finalists, self._final, self._effort.final_tokens)
        found: dict[str, list[Answer]] = {c.method.label: [] for c in finalists}
        for number, prompt in enumerate(self._final):
            answers = self._ask(finalists, prompt, self._effort.final_tokens, number)
            for candidate, answer in zip(finalists, answers, strict=True):
                found[candidate.method.label].append(answer)
        return found

    def _ready(
        self, field: Sequence[Candidate], asked: Sequence[Prompt], tokens: int
    ) -> list[Candidate]:
        """Those of the field that can run here, built and warm, with room for all they are asked.

        UsageError where none can.
        """
        failures: dict[Candidate, str] = {}
        everyone = [self._reference, *field]
        for candidate in everyone:
            try:
                candidate.decoder = candidate.decoder or _build(candidate.method, self._target)
            except ValueError as error:
                failures[candidate] = " ".join(str(error).split())
        width = max(c.decoder.width for c in everyone if c.decoder)
        self._target.reserve(max(len(p.ids) for p in asked) + tokens + width)
        for candidate in everyone:  # all anew: more room makes an engine record its work again
            try:
                if candidate not in failures:
                    self._answer(candidate, asked[0], self._effort.warm_up_tokens)
            except ValueError as error:  # a tree that the engine is too narrow for
                failures[candidate] = " ".join(str(error).split())
        ready = [c for c in field if c not in failures]
        if not ready:
            raise UsageError(next(f"{c.method.label}: {why}" for c, why in failures.items()))
        return ready

    def _ask(
        self, field: Sequence[Candidate], prompt: Prompt, tokens: int, start: int
    ) -> list[Answer]:
        """Each one's answer in the order of `field`, given in another order for every `start`."""
        everyone = [self._reference, *field]
        turn = start % len(everyone)
        sums = {}
        for candidate in everyone[turn:] + everyone[:turn]:
            sums[candidate.method.label] = self._answer(candidate, prompt, tokens)
            self._bar.update()
        reference = sums[REFERENCE]
        own = [sums[c.method.label] for c in field]
        return [Answer(*each, reference[0], reference[3]) for each in own]

    def _answer(
        self, candidate: Candidate, prompt: Prompt, tokens: int
    ) -> tuple[int, int, int, float]:
        """(tokens, verify steps, drafted nodes, seconds) of the decode loop."""
        decoder, eos = _decoder(candidate), self._loaded.eos_ids
        turn = run_turn(decoder, prompt.ids, Sampling(), tokens, eos)
        lengths = turn.accept_lengths or []
        return sum(lengths), len(lengths), turn.drafted or 0, turn.decode_s

    def _entry(
        self, tried: Sequence[Candidate], final: Sequence[tuple[Candidate, list[Answer]]]
    ) -> Entry:
        best = max(final, key=lambda pair: total(pair[1]).speed)[0]
        effort = self._effort
        points = [_point(c.method.params, SEARCH, [*c.answers.values()]) for c in tried]
        points += [_point(c.method.params, FINAL, answers) for c, answers in final]
        return Entry(
            params=best.method.params,
            checkpoint_sha256=_decoder(best).checkpoint_sha256,
            tuning={
                "set": QUESTIONS,
                "sha256": self._sha256,
                SEARCH: {"questions": effort.search, "max_new_tokens": effort.search_tokens},
                FINAL: {"questions": effort.final, "max_new_tokens": effort.final_tokens},
            },
            package_version=version("chimera-bench"),
            environment=self._environment,
            points=tuple(points),
        )


def _stages(
    questions: Questions, loaded: Loaded, effort: Effort
) -> tuple[list[Prompt], list[Prompt]]:
    """The first turns of both stages, no question in both, each spread over the categories."""
    categories = len(set(questions.dataset["category"]))
    order: list[str] = []  # a question of every category, then another of each ...
    while len(order) < categories + effort.final:
        chosen = prompts.spread(questions, len(order) + categories).dataset["question_id"]
        order += [name for name in chosen if name not in order]
    first = order[:categories]
    search = [first[i * categories // effort.search] for i in range(effort.search)]
    final = order[categories : categories + effort.final]
    model, render = loaded.target.name, renderer(loaded)
    turns = history.prompts(questions, 1, model, render, {}, _unasked)
    asked = {prompt.prompt_id: prompt for prompt in turns}
    return [asked[name] for name in search], [asked[name] for name in final]


def _unasked(prompt: Prompt) -> dict[str, Any]:
    raise ValueError(f"first turns have no history, and {prompt.prompt_id} asks for one")


def _variants(method: Method, name: str, values: Iterable[Any]) -> Iterator[Method]:
    """The method with each of the values that its settings allow."""
    for value in values:
        try:
            yield replace(method, settings=replace(method.settings, **{name: value}))
        except ValueError:
            continue


def _neighbours(values: Sequence[Any], value: Any) -> list[Any]:
    """The values before and behind `value`; all where it is none of them."""
    if value not in values:
        return list(values)
    place = list(values).index(value)
    return [*values[max(place - 1, 0) : place], *values[place + 1 : place + 2]]


def _point(params: Mapping[str, Any], stage: str, answers: Sequence[Answer]) -> Point:
    """The answers' figures. UsageError where nothing was decoded."""
    sums = total(answers)
    if not (sums.steps and sums.reference_tokens):
        raise UsageError("the target ends every answer at once; nothing can be tuned on it")
    low, high = statistics.interval(np.array(answers, dtype=float), _speedups)
    known = np.isfinite([low, high]).all()
    return Point(
        params=dict(params),
        stage=stage,
        questions=len(answers),
        steps=sums.steps,
        width=sums.drafted / sums.steps + 1,
        accepted=sums.tokens / sums.steps,
        step_s=sums.seconds / sums.steps,
        reference_s=sums.reference_s / sums.reference_tokens,
        speedup=sums.speedup,
        low=low if known else None,
        high=high if known else None,
    )


def _speedups(sums: statistics.Floats) -> statistics.Floats:
    """[..., 6], each the fields of an `Answer`, to [...]; nan where nothing was decoded."""
    tokens, _, _, seconds, reference_tokens, reference_s = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: statistics.Floats = tokens * reference_s / (seconds * reference_tokens)
    return found


def _build(method: Method, target: TargetModel) -> Decoder:
    if method.decoder is None:
        raise ValueError(f"{method.name} is no decoder")
    return method.decoder(target, method.settings)


def _decoder(candidate: Candidate) -> Decoder:
    if candidate.decoder is None:
        raise ValueError(f"{candidate.method.label} is not built")
    return candidate.decoder


# What is printed


def table(found: Tuned) -> list[str]:
    """What was chosen, a line a method."""
    lines = [str(found.place)]
    lines.append(f"{'method':<16}{'width':>7}{'accepted':>10}{'ms/step':>9}{'speedup':>9}  95 %")
    for name, entry in found.entries.items():
        point = entry.chosen
        span = "" if point.low is None else f"[{point.low:.2f}, {point.high:.2f}]"
        lines.append(
            f"{name:<16}{point.width:>7.1f}{point.accepted:>10.2f}{1000 * point.step_s:>9.2f}"
            f"{point.speedup:>8.2f}x  {span}"
        )
        lines.append(f"  {label(name, entry.params)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
