"""The search: coordinate descent over a method's parameters by races of their values."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.questions.history import Prompt
from bench.run.methods import Method
from bench.tune.config import BEHIND, Effort
from bench.tune.measuring import Answer, Candidate, Measurer, total


class Search:
    """Searches the grid of a method."""

    def __init__(self, measure: Measurer, prompts: Sequence[Prompt], effort: Effort) -> None:
        self._measure, self._prompts, self._effort = measure, prompts, effort

    def run(self, method: Method) -> list[Candidate]:
        """Every setting that was tried, in order."""
        best = Candidate(method)
        tried = {method.label: best}
        grid = method.settings.grid()
        for number, parameter in enumerate([*grid, *list(grid)[:1]]):
            self._measure.bar.title(f"{method.name} {parameter}")
            values = grid[parameter]
            if number == len(grid):  # the first parameter again
                values = _neighbours(values, best.method.params[parameter])
            variants = {m.label: Candidate(m) for m in _variants(best.method, parameter, values)}
            fresh = {name: c for name, c in variants.items() if name not in tried}
            tried |= fresh
            if fresh:
                best = self._race([best, *fresh.values()])
        best.decoder = None
        return [candidate for candidate in tried.values() if candidate.answers]

    def _race(self, entered: Sequence[Candidate]) -> Candidate:
        """The fastest on the search's questions; those far behind are dropped."""
        alive = self._measure.ready(entered, self._prompts, self._effort.search_tokens)
        raced = {c.method.label: list[Answer]() for c in alive}
        for asked, prompt in enumerate(self._prompts, start=1):
            answers = self._measure.ask(alive, prompt, self._effort.search_tokens, asked)
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
        gc.collect()  # frees the graphs that an engine captured for them
        return best

    def finalists(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """The fastest of those that no race dropped, relative to the interleaved reference."""
        left = [c for c in tried if not c.dropped]
        left.sort(key=lambda c: -total(c.answers.values()).speedup)
        return left[: self._effort.finalists]


def _variants(method: Method, name: str, values: Iterable[Any]) -> Iterator[Method]:
    """The method with each of the values that its settings allow."""
    for value in values:
        try:
            yield replace(method, settings=replace(method.settings, **{name: value}))
        except ValueError:
            continue


def _neighbours(values: Sequence[Any], value: Any) -> list[Any]:
    """The neighbours of `value`, or all values if it is not listed."""
    if value not in values:
        return list(values)
    at = list(values).index(value)
    return [*values[max(at - 1, 0) : at], *values[at + 1 : at + 2]]
