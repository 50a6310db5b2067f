"""python -m bench.training.prompts: write users' turns for `bench.training.distill --prompts`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cli, files
from bench.cli import option
from bench.errors import UsageError
from bench.progress import counted, note
from bench.targets import registry as targets
from bench.training.prompts import passages
from bench.training.prompts.bank import Bank

MOST_PASSAGES = 20_000


@dataclass(frozen=True)
class PromptsConfig:
    """What to write; every field is a flag."""

    out: str = option("prompts.jsonl", "file of the conversations, a JSON object a line")
    count: int = option(40_000, "conversations, each with another first turn")
    seed: int = option(0, "seed of everything drawn")
    passages: str | None = option(
        None, "folder that bench.training.distill wrote; tasks about a text use its paragraphs"
    )
    model: str = option(targets.DEFAULT, "the target that wrote --passages")


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.training.prompts") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = cli.Parser(
        prog=prog,
        description="Write users' turns for distillation, drawn from packaged templates.",
        allow_abbrev=False,
    )
    cli.add_arguments(parser, PromptsConfig)
    return cli.run_command(parser, _command, argv)


def _command(flags: dict[str, Any]) -> int:
    write(PromptsConfig(**flags))
    return 0


def write(config: PromptsConfig) -> None:
    """Write the file, or nothing."""
    if config.count < 1:
        raise UsageError(f"--count must be at least 1, not {config.count}")
    texts = _passages(Path(config.passages), config.model) if config.passages else []
    drawn = Bank.read(texts).conversations(config.count, config.seed)
    lines = [
        json.dumps({"question_id": number, "category": name, "turns": turns}, ensure_ascii=False)
        for number, (name, turns) in enumerate(drawn, start=1)
    ]
    files.write_text(Path(config.out), "\n".join(lines) + "\n")
    note(f"{config.out}: {counted(len(lines), 'conversation')}")


def _passages(folder: Path, model: str) -> list[str]:
    tokenizer = targets.tokenizer(targets.resolve(model))
    if tokenizer is None:
        raise UsageError(f"--passages: {model} is not on this machine; it wrote them, so load it")
    found = passages.read(folder, tokenizer, MOST_PASSAGES)
    note(f"{folder}: {counted(len(found), 'paragraph')}")
    return found


if __name__ == "__main__":
    sys.exit(main())
