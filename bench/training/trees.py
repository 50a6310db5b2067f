"""python -m bench.training.trees: grow the static trees of trained drafts on the set `tuning`.

The target answers the set's questions. The ranks that each draft gives the true tokens from every
position of the answers determine the tree, which is written into the draft's file and card.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import cli, environment
from bench.cli import option
from bench.decoding.drafts import trainable
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.trainable import Draft
from bench.decoding.drafts.weights import SavedDraft, load_state, read_draft, rewrite_card
from bench.errors import UsageError
from bench.progress import Progress, note
from bench.questions import sets
from bench.targets import registry as targets
from bench.training import memory
from bench.training.anchors import answer_anchors, drafted_tokens
from bench.training.conversations import Conversation
from bench.training.given import table
from bench.training.states import DraftHead, TargetStates
from bench.training.statistics import statistics, tree
from bench.training.writer import Writer, WriterSettings


@dataclass(frozen=True)
class TreesConfig:
    """What to grow trees for; every field is a flag."""

    weights: list[str] = option([], "files that bench.training.train wrote")
    model: str = option(targets.DEFAULT, "their target")
    chat_template: str | None = cli.chat_template_option()
    length: int = option(256, "tokens of a conversation; long answers repeat themselves")
    device: str = cli.device_option()
    dtype: str = cli.dtype_option()


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.training.trees") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = cli.Parser(
        prog=prog,
        description="Grow the static trees of trained drafts on the question set `tuning`.",
        allow_abbrev=False,
    )
    cli.add_arguments(parser, TreesConfig)
    return cli.run_command(parser, _command, argv, "stopped; finished files have their trees")


def _command(flags: dict[str, Any]) -> int:
    with memory.refused("give a smaller --length, or another --device"):
        grow(TreesConfig(**flags))
    return 0


def grow(config: TreesConfig) -> None:
    """Write the tree of every file."""
    cli.check_choices(config)
    drafts = [(path, *_read(path)) for path in map(Path, config.weights)]
    if not drafts:
        raise UsageError("--weights needs at least one file")
    device, dtype = environment.settled(config.device, config.dtype)
    target = targets.resolve(config.model, config.chat_template)
    loaded = targets.load(target, device, getattr(torch, dtype))
    weight = loaded.model.get_output_embeddings().weight.float()
    for path, _, draft in drafts:
        size = draft.config.hidden_size
        if size != weight.shape[1]:
            raise UsageError(
                f"--weights: {path.name} is for hidden size {size}, and {config.model} has "
                f"{weight.shape[1]}; give its target as --models"
            )
    questions = sets.load("tuning", None)
    ids, roles = _answers(loaded, questions, config.length)
    states = TargetStates(loaded.model)
    with Progress("trees", len(drafts) * len(ids), "conversation") as bar:
        for path, saved, draft in drafts:
            bar.title(f"trees: {path.name}")
            draft.to(weight.device).eval()
            head = DraftHead.of(weight, saved.vocabulary, draft.own_head)
            found = draft_ranks(draft, head, states, ids, roles, bar)
            source = {"set": "tuning", "sha256": questions.sha256, **statistics(found)}
            rewrite_card(path, {"tree": tree(found), "tree_source": source})
            note(f"{path}: {json.dumps(source['accepted'])}")


def _read(path: Path) -> tuple[SavedDraft, Draft]:
    """A saved draft and its model. UsageError where the file or its method is not known."""
    if not path.is_file():
        raise UsageError(f"--weights: there is no file {path}")
    try:
        saved = read_draft(path)
        draft = trainable.load(str(saved.card.get("method"))).model.from_dict(saved.config)
        load_state(draft, saved, path.name)
    except CheckpointError as error:
        raise UsageError(f"--weights: {error}") from error
    return saved, draft


@torch.no_grad()
def draft_ranks(
    draft: Draft,
    head: DraftHead,
    states: TargetStates,
    ids: Tensor,
    roles: Tensor,
    bar: Progress | None = None,
) -> Tensor:
    """int64 [n, depth]: ranks of the true tokens from every position of the answers.

    Args:
        draft: in float32 on the target's device.
        head: of the draft's vocabulary, in float32.
        states: the target's.
        ids, roles: [B, T], conversations and where the target answered.
        bar: told of every conversation.
    """
    states.tap(*draft.taps)
    depth, rows = draft.config.depth, []
    for row, role in zip(ids, roles.bool(), strict=True):
        if bar is not None:
            bar.update()
        anchors = answer_anchors(role, depth)[None]
        if not anchors.numel():
            continue
        hidden, tapped = states(row[None])
        streams = [tapped[k].float() for k in draft.taps]
        _, z = draft(states.embed(row[None]).float(), hidden.float(), streams, anchors)
        rows.append(head.ranks(z[0], drafted_tokens(row[None], anchors, depth)[0]))
    if not rows:
        raise UsageError(f"no answer has {depth + 1} tokens; raise --length")
    return torch.cat(rows).cpu()


def _answers(loaded: targets.Loaded, questions: Any, length: int) -> tuple[Tensor, Tensor]:
    """(ids, roles) [B, T] of the target's greedy conversations about the questions."""
    tokenizer: Any = loaded.tokenizer
    turns = [
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row["turns"]]
        for row in questions.dataset
    ]
    conversation = Conversation.of(tokenizer, loaded.target.chat_template)
    settings = WriterSettings(batch=len(turns), length=length)
    generator = torch.Generator(loaded.model.device)
    writer = Writer(loaded.model, conversation, settings, generator)
    with Progress("answers", len(turns) * length, "token") as bar:
        return writer.write(table(turns), bar.update)


if __name__ == "__main__":
    sys.exit(main())
