"""What a run on a target will leave out, or cannot do at all, known before weights load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts import static_trees
from bench.decoding.drafts.checkpoint import RANDOM
from bench.decoding.engines import forms
from bench.decoding.engines.registry import EAGER
from bench.errors import UsageError
from bench.questions import chat, history
from bench.questions.parsing import Questions
from bench.records import tuned
from bench.run.config import RunConfig
from bench.run.methods import Method
from bench.run.prompting import Renderer
from bench.targets import registry as targets
from bench.targets.registry import Target


def notes(
    target: Target, config: RunConfig, methods: Sequence[Method], sets: Sequence[Questions]
) -> Iterator[str]:
    """A line for each engine, method and prompt that the target cannot have. UsageError for a
    target that cannot run, and for a chat template that fails or drops a question."""
    targets.check(target)
    shape = targets.config(target)
    if shape is not None:
        for engine in config.engine:
            if reason := forms.unsupported(shape, engine):
                yield f"{target.name} runs on {EAGER}, not on {engine}: {reason}"
    info = describe(target)
    for method in methods:
        if reason := method.unavailable(info):
            yield f"{target.name} has no {method.label}: {reason}"
    tokenizer = None if shape is None else targets.tokenizer(target)
    if tokenizer is None:
        yield f"{target.name}: prompts are checked when it is loaded"
        return
    render = Renderer.of(target, tokenizer, shape, config.max_new_tokens)
    for questions in sets:
        for prompt in history.rehearse(questions, config.turns, render):
            if prompt.skip:
                place = f"{prompt.dataset} question {prompt.prompt_id} turn {prompt.turn}"
                yield f"{target.name} skips {place}: {prompt.skip}"


def check_files(methods: Sequence[Method], known: Sequence[Target], tree: str | None) -> None:
    """UsageError for a chat template, a tree or draft weights that cannot be read, or that fit none
    of the targets."""
    for target in known:
        chat.source(target.chat_template)
    if tree not in (None, static_trees.PAPER, tuned.TREE):
        try:
            static_trees.read(Path(tree))
        except ValueError as error:
            raise UsageError(f"--tree: {error}") from error
    for method in methods:
        given = method.settings.checkpoint
        if method.decoder is None or given in (None, RANDOM):
            continue
        reasons = [method.decoder.unavailable(describe(t), method.settings) for t in known]
        if all(reasons):
            raise UsageError(f"--checkpoint {method.name}={given}: {reasons[0]}")


def describe(target: Target) -> TargetInfo:
    """What drafts must know of a target, as far as it is known without loading weights."""
    config = targets.config(target)
    if config is None:
        return TargetInfo(target.name, argument=target.argument)
    text = config.get_text_config()
    return TargetInfo(
        target.name, text.hidden_size, text.vocab_size, text.num_hidden_layers, target.argument
    )
