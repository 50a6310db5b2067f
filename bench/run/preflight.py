"""What a run on a target will leave out, or cannot do at all, known before weights load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts import static_trees
from bench.decoding.drafts.checkpoint import RANDOM, CheckpointError, on_hub
from bench.decoding.engines import forms
from bench.errors import UsageError
from bench.questions import chat, history
from bench.questions.history import Entries, HistoryEntry, Prompt
from bench.questions.parsing import Questions
from bench.records import tuned
from bench.run.config import RunConfig
from bench.run.methods import Method
from bench.run.prompting import Renderer, check_room
from bench.targets import registry as targets
from bench.targets.registry import Target


def notes(
    target: Target,
    config: RunConfig,
    methods: Sequence[Method],
    sets: Sequence[Questions],
    answers: Entries | None,
) -> Iterator[str]:
    """A line for each engine, method and prompt that the target cannot have. UsageError for a chat
    template that fails or drops a question, a given history (`answers`) without an answer that is
    needed, and where no question fits the context."""
    shape = targets.config(target)
    if shape is not None:
        for engine in config.engine:
            if reason := forms.unsupported(shape, engine):
                yield f"{target.name} does not run on {engine}: {reason}"
    info = describe(target)
    for method in methods:
        if reason := method.unavailable(info):
            yield f"{target.name} has no {method.label}: {reason}"
        elif on_hub(method.settings.checkpoint):
            yield f"{method.name}: its weights are checked when they are fetched"
    tokenizer = None if shape is None else targets.tokenizer(target)
    if tokenizer is None:
        yield f"{target.name}: prompts are checked when it is loaded"
        return
    render = Renderer.of(target, tokenizer, shape, config.max_new_tokens)
    asked = [_prompts(target.name, questions, config.turns, render, answers) for questions in sets]
    check_room(target.name, asked)
    for prompt in chain.from_iterable(asked):
        if prompt.skip:
            place = f"{prompt.dataset} question {prompt.prompt_id} turn {prompt.turn}"
            yield f"{target.name} skips {place}: {prompt.skip}"


def _prompts(
    model: str, questions: Questions, turns: int | None, render: Renderer, answers: Entries | None
) -> list[Prompt]:
    """The turns of a set as a run will ask them, as far as earlier answers are known."""
    if answers is None:
        return history.rehearse(questions, turns, render)

    def refuse(prompt: Prompt) -> HistoryEntry:
        raise history.lacks(model, prompt)

    return list(history.prompts(questions, turns, model, render, answers, refuse))


def check_files(methods: Sequence[Method], known: Sequence[Target], tree: str | None) -> None:
    """UsageError for a target that cannot run, and for a chat template, a tree or draft weights
    that cannot be read, or that fit none of the targets."""
    for target in known:
        targets.check(target)
        chat.source(target.chat_template)
    if tree not in (None, static_trees.PAPER, tuned.TREE):
        try:
            static_trees.read(Path(tree))
        except ValueError as error:
            raise UsageError(f"--tree: {error}") from error
    for method in methods:
        given = method.settings.weights
        reason = _unavailable(method, known)
        if reason and tree and not _unavailable(_without_tree(method), known):
            raise UsageError(f"--tree for {method.name}: {reason}")
        if reason and given not in (None, RANDOM):
            named = f"--checkpoint {method.name}={given}" if method.settings.checkpoint else None
            raise UsageError(f"{named or method.label}: {reason}")


def fetch(methods: Sequence[Method], known: Sequence[Target]) -> None:
    """Fetches the draft weights that are on the hub. UsageError where that fails."""
    for method in methods:
        given = method.settings.checkpoint
        if method.decoder is None or not on_hub(given):
            continue
        try:
            method.decoder.weights_sha256(describe(known[0]), method.settings)
        except CheckpointError as error:
            raise UsageError(f"--checkpoint {method.name}={given}: {error}") from error


def _unavailable(method: Method, known: Sequence[Target]) -> str | None:
    """Why the method can run on none of the targets, or None."""
    if method.decoder is None:
        return None
    reasons = [method.decoder.unavailable(describe(t), method.settings) for t in known]
    return reasons[0] if all(reasons) else None


def _without_tree(method: Method) -> Method:
    return replace(method, settings=replace(method.settings, tree=None))


def describe(target: Target) -> TargetInfo:
    """What drafts must know of a target, as far as it is known without loading weights."""
    config = targets.config(target)
    info = TargetInfo(
        target.name, argument=target.argument, vocabulary=partial(targets.vocabulary, target)
    )
    if config is None:
        return info
    text = config.get_text_config()
    return replace(
        info,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        layers=text.num_hidden_layers,
    )
