"""Both stages on one target: the search of each method, then the final of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from bench.decoding.target import TargetModel
from bench.progress import Progress
from bench.questions import history
from bench.questions import sets as question_sets
from bench.questions.history import Prompt
from bench.questions.parsing import Questions
from bench.records.tuned import FINAL, SEARCH, TunedMethod
from bench.run.grid import PACKAGE
from bench.run.methods import Method
from bench.run.prompting import renderer
from bench.targets.registry import Loaded
from bench.tune import final
from bench.tune.config import QUESTIONS, Effort
from bench.tune.measuring import Answer, Candidate, Measurer, built, total
from bench.tune.search import Search


class Tuner:
    """Tunes methods on one target; `environment` is kept with the results; progress is `shown`."""

    def __init__(
        self,
        target: TargetModel,
        loaded: Loaded,
        effort: Effort,
        environment: Mapping[str, Any],
        shown: bool = True,
    ) -> None:
        self._target, self._loaded, self._effort = target, loaded, effort
        self._environment = dict(environment)
        self._shown = shown
        questions = question_sets.load(QUESTIONS, None)
        self._sha256 = questions.sha256
        self._search, self._final = split(questions, loaded, effort)

    def run(self, methods: Sequence[Method]) -> dict[str, TunedMethod]:
        """The tuned parameters of each method, by name."""
        effort = self._effort
        with Progress("tuning", None, "answer", self._shown) as bar:
            measure = Measurer(self._target, self._loaded.eos_ids, effort.warm_up_tokens, bar)
            search = Search(measure, self._search, effort)
            tried = {method.name: search.run(method) for method in methods}
            finalists = {name: search.finalists(candidates) for name, candidates in tried.items()}
            everyone = [c for candidates in finalists.values() for c in candidates]
            answers = final.measured(measure, everyone, self._final, effort.final_tokens)
        return {
            name: self._tuned(tried[name], [(c, answers[c.method.label]) for c in candidates])
            for name, candidates in finalists.items()
        }

    def _tuned(
        self, tried: Sequence[Candidate], finalists: Sequence[tuple[Candidate, list[Answer]]]
    ) -> TunedMethod:
        best = max(finalists, key=lambda pair: total(pair[1]).speed)[0]
        effort = self._effort
        points = [final.point(c.method.params, SEARCH, [*c.answers.values()]) for c in tried]
        points += [final.point(c.method.params, FINAL, answers) for c, answers in finalists]
        return TunedMethod(
            params=best.method.params,
            checkpoint_sha256=built(best).checkpoint_sha256,
            tuning={
                "set": QUESTIONS,
                "sha256": self._sha256,
                SEARCH: {"questions": effort.search, "max_new_tokens": effort.search_tokens},
                FINAL: {"questions": effort.final, "max_new_tokens": effort.final_tokens},
            },
            package_version=version(PACKAGE),
            environment=self._environment,
            points=tuple(points),
        )


def split(
    questions: Questions, loaded: Loaded, effort: Effort
) -> tuple[list[Prompt], list[Prompt]]:
    """The first turns for both stages: no question in both, each spread over the categories."""
    categories = len(set(questions.dataset["category"]))
    order: list[str] = []  # a question of every category, then another of each ...
    while len(order) < categories + effort.final:
        chosen = question_sets.spread(questions, len(order) + categories).dataset["question_id"]
        order += [name for name in chosen if name not in order]
    first = order[:categories]
    search = [first[i * categories // effort.search] for i in range(effort.search)]
    final = order[categories : categories + effort.final]
    model = loaded.target.name
    render = renderer(loaded, max(effort.search_tokens, effort.final_tokens))
    turns = history.prompts(questions, 1, model, render, {}, _unasked)
    asked = {prompt.prompt_id: prompt for prompt in turns}
    return [asked[name] for name in search], [asked[name] for name in final]


def _unasked(prompt: Prompt) -> dict[str, Any]:
    raise ValueError(f"first turns have no history, and {prompt.prompt_id} asks for one")
