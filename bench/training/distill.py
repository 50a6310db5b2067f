"""python -m bench.training.distill: the target writes the training set of its own drafts.

Users' turns are sampled from the chat template's user slot, so that no outside text is needed, or
taken from a JSONL file or a `datasets` name. Shards are written one by one, and the same command
resumes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench import cli, environment, files
from bench.cli import option
from bench.errors import UsageError
from bench.progress import Progress
from bench.targets import registry as targets
from bench.training import given
from bench.training.conversations import Conversation
from bench.training.data import CARD
from bench.training.overlap import OVERLAP, OverlapGuard
from bench.training.writer import Writer, WriterSettings


@dataclass(frozen=True)
class DistillConfig:
    """What to write; every field is a flag."""

    model: str = option(targets.DEFAULT, "target model")
    out: str = option("data/distilled", "folder of the shards")
    shards: int = option(16, "batches to write")
    batch: int = option(4096, "sequences of a shard")
    length: int = option(448, "tokens of a sequence, 64 to 1024")
    user_tokens: int = option(96, "longest sampled user's turn")
    temperature: float = option(1.0, "of the sampled users' turns")
    min_p: float = option(0.04, "of the sampled users' turns")
    answer_temperature: float = option(0.0, "of the answers; 0 is greedy")
    prompts: str | None = option(None, "users' turns: a JSONL file or a datasets name")
    data_dir: str | None = option(None, "folder with <set>.jsonl files")
    chat_template: str | None = cli.chat_template_option()
    seed: int = option(0, "seed of everything sampled")
    device: str = cli.device_option()
    dtype: str = cli.dtype_option("bfloat16")


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.training.distill") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = cli.Parser(
        prog=prog,
        description="Let a target write the training set of its own drafts.",
        allow_abbrev=False,
    )
    cli.add_arguments(parser, DistillConfig)
    return cli.run_command(parser, _command, argv, "stopped; the same command resumes")


def _command(flags: dict[str, Any]) -> int:
    distill(DistillConfig(**flags))
    return 0


def distill(config: DistillConfig) -> None:
    """Write the missing shards, then the data card."""
    cli.check_choices(config)
    if not 64 <= config.length <= 1024:
        raise UsageError(f"--length must lie in 64..1024, not {config.length}")
    out = Path(config.out)
    device, dtype = environment.settled(config.device, config.dtype)
    target = targets.resolve(config.model, config.chat_template)
    loaded = targets.load(target, device, getattr(torch, dtype))
    conversation = Conversation.of(loaded.tokenizer, loaded.target.chat_template)
    guard = OverlapGuard.of(loaded.tokenizer, config.data_dir)
    generator = torch.Generator(device)
    names = {entry.name for entry in fields(WriterSettings)}
    settings = WriterSettings(**{k: v for k, v in asdict(config).items() if k in names})
    writer = Writer(loaded.model, conversation, settings, generator)
    turns = None
    if config.prompts:
        longest = config.length // 2  # leaves the other half to the answers
        turns = given.read(config.prompts, loaded.tokenizer, longest, config.seed)
    out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    cards = []
    with Progress("distill", config.shards, "shard") as bar:
        for index in range(config.shards):
            path = out / f"{index:05d}.safetensors"
            card = _known(path, conversation, seen)
            if card is not None:
                bar.skip()
            else:
                generator.manual_seed(config.seed * 1_000_003 + index)
                batch = None if turns is None else given.batch_of(turns, index, config.batch)
                started = time.perf_counter()
                ids, roles = writer.write(batch)
                kept = _keep(ids, roles, conversation, guard, seen)
                card = _save(path, *kept, seconds=time.perf_counter() - started)
                bar.update()
            cards.append(card)
    _write_card(out, config, loaded, guard, cards)


def _keep(
    ids: Tensor,
    roles: Tensor,
    conversation: Conversation,
    guard: OverlapGuard,
    seen: set[bytes],
) -> tuple[Tensor, Tensor, Counter[str]]:
    """The rows without overlaps, repeated first turns and sequences without a kept answer, and how
    many were dropped for each reason."""
    dropped: Counter[str] = Counter()
    overlap = guard.overlapping(ids).tolist()
    answered = roles.any(dim=1).tolist()
    ids, roles = ids.to("cpu", torch.int32), roles.cpu()
    rows = []
    for row, first in enumerate(_first_words(ids, conversation)):
        if not answered[row]:
            dropped["no kept answer"] += 1
        elif overlap[row]:
            dropped["overlap with a test set"] += 1
        elif first in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(first)
            rows.append(row)
    return ids[rows], roles[rows], dropped


def _first_words(ids: Tensor, conversation: Conversation) -> Iterator[bytes]:
    """The first user's turn of each row, as bytes."""
    opening, end = len(conversation.opening), conversation.turn[0]
    for row in ids[:, opening:].numpy():
        stop = (row == end).argmax()
        yield hashlib.sha256(row[:stop].tobytes()).digest()


def _known(path: Path, conversation: Conversation, seen: set[bytes]) -> dict[str, Any] | None:
    """The card of an existing shard, or None. Its first turns are added to `seen`."""
    try:
        with safe_open(path, "pt") as shard:
            seen.update(_first_words(shard.get_tensor("ids"), conversation))
            card: dict[str, Any] = json.loads(shard.metadata()["card"])
            return card
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _save(
    path: Path, ids: Tensor, roles: Tensor, dropped: Counter[str], seconds: float
) -> dict[str, Any]:
    card = {
        "file": path.name,
        "sequences": len(ids),
        "tokens": ids.numel(),
        "answer_tokens": int(roles.sum()),
        "dropped": dict(dropped),
        "seconds": round(seconds, 3),
        "ids_sha256": files.sha256_of_bytes(ids.numpy().tobytes()),
    }
    tensors = {"ids": ids.contiguous(), "roles": roles.contiguous()}
    with files.replacing(path) as part:
        save_file(tensors, part, metadata={"card": json.dumps(card)})
    return card


def _write_card(
    out: Path,
    config: DistillConfig,
    loaded: targets.Loaded,
    guard: OverlapGuard,
    cards: list[dict[str, Any]],
) -> None:
    dropped: Counter[str] = sum((Counter(card["dropped"]) for card in cards), Counter())
    seconds = sum(card["seconds"] for card in cards)
    written = config.shards * config.batch * config.length
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "data_dir", "device")}
    for name in ("prompts", "chat_template"):
        settings[name] = cli.without_paths(settings[name])
    content = {
        "target": loaded.target.name,
        "revision": loaded.revision,
        "licence": loaded.target.licence,
        "settings": settings,
        "sequences": sum(card["sequences"] for card in cards),
        "answer_tokens": sum(card["answer_tokens"] for card in cards),
        "dropped": dict(dropped),
        "overlap_tokens": OVERLAP,
        "checked_against": guard.checked,
        "not_checked_against": guard.unchecked,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(written / max(seconds, 1e-9)),
        "device": environment.device_name(str(loaded.model.device)),
        "versions": {name: environment.package_version(name) for name in ("torch", "transformers")},
        "shards": cards,
    }
    files.write_text(out / CARD, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
