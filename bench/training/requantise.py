"""python -m bench.training.requantise: save trained drafts in fewer bits.

The card keeps how the draft was made; its static tree stays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import option
from bench.decoding.drafts.weights import BITS, save_draft
from bench.errors import UsageError
from bench.progress import note
from bench.training.trees import read_weights


@dataclass(frozen=True)
class RequantiseConfig:
    """What to save again; every field is a flag."""

    weights: list[str] = option([], "files that bench.training.train wrote, best with --bits 16")
    bits: int = option(4, "of matrices in the new files: 4 in groups, 8, or 16 for bfloat16")
    out: str = option("requantised", "folder of the new files, which keep their names")


def main(
    argv: Sequence[str] | None = None, prog: str = "python -m bench.training.requantise"
) -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = cli.Parser(
        prog=prog, description="Save trained drafts in fewer bits.", allow_abbrev=False
    )
    cli.add_arguments(parser, RequantiseConfig)
    return cli.run_command(parser, _command, argv)


def _command(flags: dict[str, Any]) -> int:
    requantise(RequantiseConfig(**flags))
    return 0


def requantise(config: RequantiseConfig) -> None:
    """Write every file. UsageError where one is no draft, or would be overwritten."""
    if config.bits not in BITS:
        raise UsageError(f"--bits must be one of {', '.join(map(str, BITS))}, not {config.bits}")
    if not config.weights:
        raise UsageError("--weights needs at least one file")
    for path in map(Path, config.weights):
        saved, draft = read_weights(path)
        target = Path(config.out) / path.name
        if target.resolve() == path.resolve():
            raise UsageError(f"--out {config.out} would overwrite {path}; give another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        card = {k: v for k, v in saved.card.items() if k != "held_out_as_saved"}  # the old bits'
        save_draft(target, draft, saved.vocabulary, card, config.bits)
        note(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
