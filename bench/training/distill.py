"""python -m chimera.distill: the target writes the training set of its own drafts.

Users' turns are sampled from the chat template's user slot, so that no outside text is needed, or
taken from a JSONL or a `datasets` name. Shards are written one by one; the same command continues.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from bench import environment
from bench.errors import UsageError
from bench.questions import registry as question_sets
from bench.questions import sets as prompts
from bench.targets import registry as targets
from bench.training import cli
from bench.training.conversations import Conversation
from bench.training.writer import Writer, WriterSettings

CARD = "data.json"
OVERLAP = 10  # tokens in a row that a kept conversation may not share with a test question


@dataclass(frozen=True)
class DistillConfig:
    """What to write; every field is a flag."""

    model: str = field(default=targets.DEFAULT, metadata={"help": "target model"})
    out: str = field(default="data/distilled", metadata={"help": "folder of the shards"})
    shards: int = field(default=16, metadata={"help": "batches to write"})
    batch: int = field(default=4096, metadata={"help": "sequences of a shard"})
    length: int = field(default=448, metadata={"help": "tokens of a sequence, up to 1024"})
    user_tokens: int = field(default=96, metadata={"help": "longest sampled user's turn"})
    temperature: float = field(default=1.0, metadata={"help": "of the sampled user's words"})
    min_p: float = field(default=0.04, metadata={"help": "of the sampled user's words"})
    answer_temperature: float = field(default=0.0, metadata={"help": "0 is greedy"})
    prompts: str | None = field(
        default=None, metadata={"help": "users' turns: a JSONL or a datasets name"}
    )
    data_dir: str | None = field(default=None, metadata={"help": "folder with <set>.jsonl files"})
    seed: int = field(default=0, metadata={"help": "seed of everything sampled"})
    device: str = field(default="auto", metadata={"help": "cpu or cuda"})
    dtype: str = field(default="bfloat16", metadata={"help": "the target's"})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 on bad input."""
    return cli.run(DistillConfig, distill, "chimera.distill", argv)


def distill(config: DistillConfig) -> None:
    """Write what is missing of the shards, then the data card."""
    if not 64 <= config.length <= 1024:
        raise UsageError(f"--length must lie in 64..1024, not {config.length}")
    out = Path(config.out)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = targets.load(targets.resolve(config.model), device, getattr(torch, config.dtype))
    conversation = Conversation.of(loaded.tokenizer, loaded.target.chat_template)
    guard = OverlapGuard.of(loaded.tokenizer, config.data_dir)
    generator = torch.Generator(device)
    names = {name.name for name in WriterSettings.__dataclass_fields__.values()}
    settings = WriterSettings(**{k: v for k, v in asdict(config).items() if k in names})
    writer = Writer(loaded.model, conversation, settings, generator)
    given = _given_prompts(config, loaded.tokenizer) if config.prompts else None
    out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    cards = []
    for index in tqdm(range(config.shards), desc="distill", unit="shard", disable=None):
        path = out / f"{index:05d}.safetensors"
        card = _known(path, conversation, seen)
        if card is None:
            generator.manual_seed(config.seed * 1_000_003 + index)
            batch = None if given is None else batch_of(given, index, config.batch)
            started = time.perf_counter()
            ids, roles = writer.write(batch)
            dropped = _keep(ids, roles, conversation, guard, seen)
            card = _save(path, *dropped, seconds=time.perf_counter() - started)
        cards.append(card)
    _write_card(out, config, loaded, guard, cards)


class OverlapGuard:
    """Finds conversations that share OVERLAP tokens in a row with a registered question.

    Attributes:
        checked: names of the sets that were looked at.
        unchecked: name -> why not.
    """

    def __init__(self, windows: Tensor, checked: list[str], unchecked: dict[str, str]) -> None:
        self._windows = windows
        self.checked = checked
        self.unchecked = unchecked

    @classmethod
    def of(cls, tokenizer: Any, data_dir: str | None) -> OverlapGuard:
        checked, unchecked, hashes = [], {}, []
        for name in question_sets.REGISTRY:
            try:
                questions = prompts.load(name, Path(data_dir) if data_dir else None)
            except UsageError as error:
                unchecked[name] = str(error).split(";")[0].split(" (")[0]
                continue
            checked.append(name)
            for row in questions.dataset:
                for turn in row["turns"]:
                    ids = torch.tensor(tokenizer(turn, add_special_tokens=False)["input_ids"])
                    if len(ids) >= OVERLAP:
                        hashes.append(_window_hashes(ids[None].long())[0])
        windows = torch.unique(torch.cat(hashes)) if hashes else torch.empty(0, dtype=torch.long)
        return cls(windows, checked, unchecked)

    def overlapping(self, ids: Tensor) -> Tensor:
        """bool [n] for ids int64 [n, T]."""
        return torch.isin(_window_hashes(ids), self._windows.to(ids.device)).any(dim=1)


def _window_hashes(ids: Tensor) -> Tensor:
    """int64 [n, T - OVERLAP + 1]: a hash of each window, wrapping around."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(1, 2**62, (OVERLAP,), generator=generator) * 2 + 1
    return (ids.unfold(1, OVERLAP, 1) * factors.to(ids.device)).sum(dim=-1)


def _keep(
    ids: Tensor,
    roles: Tensor,
    conversation: Conversation,
    guard: OverlapGuard,
    seen: set[bytes],
) -> tuple[Tensor, Tensor, Counter[str]]:
    """Without overlaps, repeats of a first user's turn and sequences without a kept answer."""
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
    """The card of a shard written before, its first turns added to `seen`."""
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
        "ids_sha256": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
    }
    draft = path.with_suffix(".part")
    tensors = {"ids": ids.contiguous(), "roles": roles.contiguous()}
    save_file(tensors, draft, metadata={"card": json.dumps(card)})
    draft.replace(path)
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
    if config.prompts and Path(config.prompts).exists():
        settings["prompts"] = Path(config.prompts).name
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
    (out / CARD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _given_prompts(config: DistillConfig, tokenizer: Any) -> list[list[list[int]]]:
    """Users' turns as token ids, [conversation][turn][token], in a seeded order."""
    conversations = list(_user_turns(str(config.prompts)))
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(conversations), generator=generator).tolist()
    room = config.length // 2  # leave an answer its half
    encoded = []
    for index in order:
        turns = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in conversations[index]
        ]
        if turns and 0 < len(turns[0]) <= room:
            encoded.append([turn for turn in turns if 0 < len(turn) <= room])
    if not encoded:
        raise UsageError(f"--prompts {config.prompts} has no user's turn of up to {room} tokens")
    return encoded


def _user_turns(source: str) -> Iterator[list[str]]:
    """The users' turns of each conversation: FastChat's `turns`, ShareGPT's `conversations`,
    `messages` with roles, or a `prompt` / `instruction`."""
    for number, row in enumerate(_rows(source), start=1):
        talk = row.get("conversations") or row.get("messages")
        if talk:
            spoken = [
                (m.get("from") or m.get("role"), m.get("value") or m.get("content")) for m in talk
            ]
            yield [str(text) for who, text in spoken if who in ("human", "user") and text]
        elif isinstance(row.get("turns"), list):
            yield [str(text) for text in row["turns"]]
        elif text := row.get("prompt") or row.get("instruction"):
            yield [str(text)]
        else:
            raise UsageError(
                f"--prompts {source} row {number} has none of conversations, messages, turns, "
                "prompt, instruction"
            )


def _rows(source: str) -> Iterator[dict[str, Any]]:
    import datasets

    path = Path(source)
    try:
        if path.exists():
            kind = "json"
            table = datasets.load_dataset(kind, data_files=str(path), split="train")
        else:
            table = datasets.load_dataset(source, split="train")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--prompts {source} cannot be read: {reason}") from error
    yield from table


def batch_of(given: list[list[list[int]]], index: int, batch: int) -> Tensor:
    """int64 [batch, turns, P], -1 behind each turn's end; prompts repeat when they run out."""
    chosen = [given[(index * batch + i) % len(given)] for i in range(batch)]
    turns = max(len(c) for c in chosen)
    room = max(len(turn) for c in chosen for turn in c)
    table = torch.full((batch, turns, room), -1)
    for row, conversation in enumerate(chosen):
        for k, turn in enumerate(conversation):
            table[row, k, : len(turn)] = torch.tensor(turn)
    return table


if __name__ == "__main__":
    sys.exit(main())
