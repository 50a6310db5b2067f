"""Settings of methods answering questions, interleaved with the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.decoding.decoder import Decoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.errors import UsageError, flat
from bench.progress import Progress
from bench.questions.history import Prompt
from bench.records.runs import REFERENCE
from bench.run import methods
from bench.run.methods import Method
from bench.run.runner import run_turn


class Answer(NamedTuple):
    """The decode loop of an answer and of the reference's to the same question; or their loops."""

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
    return Answer(*map(sum, zip(*answers, strict=True)))


@dataclass(eq=False)
class Candidate:
    """A setting of a method.

    Attributes:
        decoder: while it is being measured.
        answers: of the search, by prompt id; the newest counts.
        dropped: whether a race has dropped it.
    """

    method: Method
    decoder: Decoder | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    dropped: bool = False


class Measurer:
    """Measures candidates on one target.

    Args:
        eos_ids: the target's.
        warm_up_tokens: of a new decoder's first answer.
        bar: advances with every answer.
    """

    def __init__(
        self,
        target: TargetModel,
        eos_ids: frozenset[int],
        warm_up_tokens: int,
        bar: Progress,
    ) -> None:
        self._target, self._eos_ids, self._warm_up_tokens = target, eos_ids, warm_up_tokens
        self.bar = bar
        self._reference = Candidate(methods.method(REFERENCE, methods.discover()))

    def ready(
        self, candidates: Sequence[Candidate], prompts: Sequence[Prompt], tokens: int
    ) -> list[Candidate]:
        """The candidates that can run here, built and warmed up, with room for these prompts.

        UsageError where none can.
        """
        failures: dict[Candidate, str] = {}
        everyone = [self._reference, *candidates]
        for candidate in everyone:
            try:
                candidate.decoder = candidate.decoder or build(candidate.method, self._target)
            except ValueError as error:
                failures[candidate] = flat(error)
        width = max(c.decoder.width for c in everyone if c.decoder)
        self._target.reserve(max(len(p.ids) for p in prompts) + tokens + width)
        for candidate in everyone:  # after `reserve`, which makes engines capture anew
            try:
                if candidate not in failures:
                    self._answer(candidate, prompts[0], self._warm_up_tokens)
            except ValueError as error:  # a tree that is too wide for the engine
                failures[candidate] = flat(error)
        ready = [c for c in candidates if c not in failures]
        if not ready:
            raise UsageError(next(f"{c.method.label}: {why}" for c, why in failures.items()))
        return ready

    def ask(
        self, candidates: Sequence[Candidate], prompt: Prompt, tokens: int, start: int
    ) -> list[Answer]:
        """Each candidate's answer; `start` rotates the order in which all of them run."""
        everyone = [self._reference, *candidates]
        turn = start % len(everyone)
        loops = {}
        for candidate in everyone[turn:] + everyone[:turn]:
            loops[candidate.method.label] = self._answer(candidate, prompt, tokens)
            self.bar.update()
        reference = loops[REFERENCE]
        found = [loops[c.method.label] for c in candidates]
        return [Answer(*each, reference[0], reference[3]) for each in found]

    def _answer(
        self, candidate: Candidate, prompt: Prompt, tokens: int
    ) -> tuple[int, int, int, float]:
        """(tokens, verify steps, drafted nodes, seconds) of the decode loop."""
        decoder, eos = built(candidate), self._eos_ids
        turn = run_turn(decoder, prompt.ids, Sampling(), tokens, eos)
        lengths = turn.accept_lengths or []
        return sum(lengths), len(lengths), turn.drafted or 0, turn.decode_s


def build(method: Method, target: TargetModel) -> Decoder:
    if method.decoder is None:
        raise ValueError(f"{method.name} is not a decoder")
    return method.decoder(target, method.settings)


def built(candidate: Candidate) -> Decoder:
    if candidate.decoder is None:
        raise ValueError(f"{candidate.method.label} is not built")
    return candidate.decoder
