"""python -m bench.training.distill: the target writes the training set of its own drafts.

Users' turns are sampled from the chat template's user slot, so that no outside text is needed, or
taken from a JSONL file or a `datasets` name. Batches are saved as shards, and the same command
resumes behind the last one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import cli, environment
from bench.cli import option
from bench.errors import UsageError
from bench.progress import Progress, note
from bench.targets import registry as targets
from bench.training import given, memory
from bench.training.conversations import Conversation
from bench.training.folder import DistilledFolder, digest
from bench.training.markers import MarkerGuard
from bench.training.overlap import OVERLAP, OverlapGuard
from bench.training.writer import Writer, WriterSettings, sequence_bytes


@dataclass(frozen=True)
class DistillConfig:
    """What to write; every field is a flag."""

    model: str = option(targets.DEFAULT, "target model")
    out: str = option("data/distilled", "folder of the shards")
    sequences: int = option(65_536, "sequences to write; no more than there are --prompts")
    batch: int | None = option(None, "sequences at a time, a shard; what fits into free memory")
    length: int = option(448, "tokens of a sequence, 64 to 1024")
    user_tokens: int = option(
        96,
        "a sampled user's turn that is longer, or longer than a quarter of --length, ends with its "
        "sentence or line",
    )
    temperature: float = option(1.0, "of the sampled users' turns")
    min_p: float = option(0.04, "of the sampled users' turns")
    answer_temperature: float = option(0.0, "of the answers; 0 is greedy")
    answer_tokens: int | None = option(None, "cut answers behind as many tokens; none is cut")
    prompts: str | None = option(None, "users' turns: a JSONL file or a datasets name")
    data_dir: str | None = option(None, "folder with <set>.jsonl files")
    chat_template: str | None = cli.chat_template_option()
    seed: int = option(0, "seed of everything sampled")
    device: str = cli.device_option()
    dtype: str = cli.dtype_option()


QUEUE = 4  # prompts given to each sequence of a batch; a sequence answers several
LOCAL = ("out", "sequences", "batch", "data_dir", "device")  # settings that a resume may change


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
    _check(config)
    target = targets.resolve(config.model, config.chat_template)
    settings = {k: cli.without_paths(v) for k, v in asdict(config).items() if k not in LOCAL}
    folder = DistilledFolder(Path(config.out), settings | {"model": target.name})
    device, dtype = environment.settled(config.device, config.dtype)
    with memory.refused("free some, or choose a smaller --model or another --device"):
        loaded = targets.load(target, device, getattr(torch, dtype))
        distiller = Distiller(config, loaded, folder)
        distiller.run()
    card = folder.write_card(
        target=target.name,
        revision=loaded.revision,
        licence=target.licence,
        overlap_tokens=OVERLAP,
        checked_against=distiller.guard.checked,
        not_checked_against=distiller.guard.unchecked,
        device=environment.device_name(device),
        versions={name: environment.package_version(name) for name in ("torch", "transformers")},
    )
    note(_summary(config.out, card))


def _check(config: DistillConfig) -> None:
    cli.check_choices(config)
    if not 64 <= config.length <= 1024:
        raise UsageError(f"--length must lie in 64..1024, not {config.length}")
    for name in ("sequences", "batch", "user_tokens", "answer_tokens"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{cli.flag(name)} must be at least 1, not {value}")


class Distiller:
    """Writes the batches of one command."""

    def __init__(
        self, config: DistillConfig, loaded: targets.Loaded, folder: DistilledFolder
    ) -> None:
        self.config = config
        self.model: Any = loaded.model
        self.folder = folder
        tokenizer = loaded.tokenizer
        self.conversation = Conversation.of(tokenizer, loaded.target.chat_template)
        self.markers = MarkerGuard(tokenizer)
        self.prompts: Tensor | None = None  # [N, turns, P], padded with -1
        self.total = config.sequences
        if config.prompts:
            longest = config.length // 2  # leaves the other half to the answers
            turns = given.read(config.prompts, tokenizer, longest, config.seed)
            self.prompts = given.table(turns)
            self.total = min(self.total, len(turns))  # a prompt's repeats would be dropped
        each = sequence_bytes(self.model, config.length)
        self.batch = memory.batch_size(config.batch, each, self.model.device)
        self.guard = OverlapGuard.of(tokenizer, config.data_dir)
        self._generator = torch.Generator(self.model.device)
        self._writer: Writer | None = None
        self._seen = {digest(words) for ids in folder.rows() for words in self._first_turns(ids)}

    def run(self) -> None:
        """Write what is missing; where memory runs out, with half the sequences at a time."""
        folder, length = self.folder, self.config.length
        folder.path.mkdir(parents=True, exist_ok=True)
        if folder.written:
            note(f"{folder.path} holds {folder.written:,} of {self.total:,} sequences")
        left = max(self.total - folder.written, 0)
        self.batch = min(self.batch, max(left, 1))
        note(f"{left:,} sequences of {length} tokens to write, {self.batch:,} at a time")
        done = folder.written * length
        with Progress("distill", max(self.total * length, done), "token") as bar:
            bar.skip(done)
            while (left := self.total - folder.written) > 0:
                try:
                    self._write(min(self.batch, left), bar.update)
                    bar.back_to(folder.written * length)  # or forward, to what was asked beside
                except Exception as error:
                    if not memory.ran_out(error) or self.batch == 1:
                        raise
                    self._writer = None  # frees its cache when this block is left
                    self.batch //= 2
                    bar.back_to(folder.written * length)
                    note(f"out of memory; going on with {self.batch:,} at a time")

    def _write(self, count: int, wrote: Any) -> None:
        """One shard of `count` sequences, before any is dropped; of given prompts it may answer
        more, one after another in a sequence."""
        started = time.perf_counter()
        writer = self._writer_of(count)
        self._generator.manual_seed(self.config.seed * 1_000_003 + len(self.folder.cards))
        prompts = None
        if self.prompts is not None:
            prompts = self.prompts[self.folder.written : self.total][: count * QUEUE]
        ids, roles = writer.write(prompts, wrote)
        self.folder.add(
            *self._keep(ids, roles),
            batch=len(ids),
            computed=count * self.config.length,
            seconds=time.perf_counter() - started,
        )

    def _writer_of(self, count: int) -> Writer:
        if self._writer is None or self._writer.settings.batch != count:
            self._writer = None  # its memory first
            config = self.config
            settings = WriterSettings(
                batch=count,
                length=config.length,
                user_tokens=min(config.user_tokens, config.length // 4),
                temperature=config.temperature,
                min_p=config.min_p,
                answer_temperature=config.answer_temperature,
                answer_tokens=config.answer_tokens,
            )
            self._writer = Writer(self.model, self.conversation, settings, self._generator)
        return self._writer

    def _keep(self, ids: Tensor, roles: Tensor) -> tuple[Tensor, Tensor, Counter[str]]:
        """The rows to train on, and how many others were dropped for each reason."""
        dropped: Counter[str] = Counter()
        overlap = self.guard.overlapping(ids).tolist()
        answered = roles.any(dim=1).tolist()
        ids, roles = ids.to("cpu", torch.int32), roles.cpu()
        sampled = self.prompts is None
        marked = self.markers.marked(ids, roles) if sampled else [False] * len(ids)
        rows = []
        for row, words in enumerate(self._first_turns(ids)):
            if not answered[row]:
                dropped["user's turn without an end" if sampled else "no answer"] += 1
            elif marked[row]:
                dropped["template marker in a user's turn"] += 1
            elif overlap[row]:
                dropped["overlap with a test set"] += 1
            elif (first := digest(words)) in self._seen:
                dropped["duplicate"] += 1
            else:
                self._seen.add(first)
                rows.append(row)
        return ids[rows], roles[rows], dropped

    def _first_turns(self, ids: Tensor) -> Iterator[Tensor]:
        """The first user's turn of each row of ids int32 [n, T]."""
        end = self.conversation.turn[0]
        for row in ids[:, len(self.conversation.opening) :]:
            yield row[: int((row == end).int().argmax())]


def _summary(out: str, card: dict[str, Any]) -> str:
    """What a folder holds and what was dropped, in one line."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in card["dropped"].items())
    return (
        f"{out}: {card['sequences']:,} sequences with {card['answer_tokens']:,} answer tokens, "
        f"{card['tokens_per_second']:,} tokens/s; dropped: {dropped or 'none'}"
    )


if __name__ == "__main__":
    sys.exit(main())
