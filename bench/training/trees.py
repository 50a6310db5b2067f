"""python -m chimera.trees: grow the static trees of trained drafts on the set `tuning`.

The target answers the set's questions; the ranks that each draft gives the true tokens behind every
position of the answers decide the tree, which is written into the draft's file and card.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.medusa.model import Medusa, MedusaConfig
from bench.decoding.drafts import ranks
from bench.decoding.drafts.weights import load_state, read_draft, rewrite_card
from bench.errors import UsageError
from bench.questions import sets as prompts
from bench.targets import registry as targets
from bench.training import cli
from bench.training.conversations import Conversation
from bench.training.distill import batch_of
from bench.training.train import NODES, TargetStates, statistics
from bench.training.writer import Writer, WriterSettings
from chimera.model import Chimera, ChimeraConfig


@dataclass(frozen=True)
class TreesConfig:
    """What to grow trees for; every field is a flag."""

    weights: tuple[str, ...] = field(default=("",), metadata={"help": "draft files of ours"})
    model: str = field(default=targets.DEFAULT, metadata={"help": "their target"})
    length: int = field(
        default=256, metadata={"help": "tokens of a conversation; long answers repeat themselves"}
    )
    device: str = field(default="auto", metadata={"help": "cpu or cuda"})
    dtype: str = field(default="bfloat16", metadata={"help": "the target's"})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 on bad input."""
    return cli.run(TreesConfig, grow, "chimera.trees", argv)


def grow(config: TreesConfig) -> None:
    """Write the tree of every file."""
    files = [Path(name) for name in config.weights]
    for path in files:
        if not path.is_file():
            raise UsageError(f"--weights: there is no file {path}")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target = targets.resolve(config.model)
    loaded = targets.load(target, device, getattr(torch, config.dtype))
    questions = prompts.load("tuning", None)
    ids, roles = _answers(loaded, questions, config.length)
    states = TargetStates(loaded.model)
    for path in files:
        saved = read_draft(path)
        draft = build(saved.config)
        load_state(draft, saved, path.name)
        draft.to(loaded.model.device).eval()
        found = draft_ranks(draft, saved.vocabulary, loaded.model, states, ids, roles)
        tree = [list(rank_path) for rank_path in ranks.grow(found, max(NODES) + 1)]
        source = {"set": "tuning", "sha256": questions.sha256, **statistics(found)}
        rewrite_card(path, {"tree": tree, "tree_source": source})
        print(f"{path.name}: {json.dumps(source['accepted'])}", file=sys.stderr)


def build(config: dict[str, Any]) -> nn.Module:
    """An empty draft with saved settings."""
    if "ffn" in config:
        return Chimera(ChimeraConfig(**{**config, "taps": tuple(config["taps"])}))
    return Medusa(MedusaConfig(**config))


@torch.no_grad()
def draft_ranks(
    draft: Any, vocabulary: Tensor, model: Any, states: TargetStates, ids: Tensor, roles: Tensor
) -> Tensor:
    """int64 [n, depth]: ranks of the true tokens behind every position of the answers.

    Args:
        draft: in float32 on the model's device.
        vocabulary: int64 [V'].
        model: the target.
        states: its states.
        ids, roles: [B, T], conversations and where the target answered.
    """
    taps = getattr(draft.config, "taps", ())
    states.tap(*taps)
    head_weight: Tensor = model.get_output_embeddings().weight
    head = head_weight[vocabulary.to(head_weight.device)].float()
    index = torch.full((head_weight.shape[0],), -1, device=ids.device)
    index[vocabulary.to(ids.device)] = torch.arange(len(vocabulary), device=ids.device)
    depth, rows = draft.config.depth, []
    for row, role in zip(ids, roles.bool(), strict=True):
        fits = torch.arange(1, len(row) - depth - 1, device=row.device)
        ahead = fits[:, None] + torch.arange(1, depth + 2, device=row.device)  # x_{t+1} ..
        anchors = fits[role[ahead].all(dim=1)][None]
        if not anchors.numel():
            continue
        hidden, tapped = states(row[None])
        streams = [tapped[k].float() for k in taps]
        _, z = draft(states.embed(row[None]).float(), hidden.float(), streams, anchors)
        true = index[row[anchors[0, :, None] + torch.arange(2, depth + 2, device=row.device)]]
        rows.append(ranks.ranks_of(z[0] @ head.T, true))
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
    ids, roles = writer.write(batch_of(turns, 0, len(turns)))
    return ids.clone(), roles.clone()


if __name__ == "__main__":
    sys.exit(main())
