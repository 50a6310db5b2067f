"""python -m bench.training.pack: store trained drafts with fewer bits.

Train with `--bits 16`, pack to 4 and to 8, and compare the accepted lengths that
`bench.training.trees` prints for each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import option
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.weights import BITS, requantise
from bench.errors import UsageError
from bench.progress import note


@dataclass(frozen=True)
class PackConfig:
    """What to store and how; every field is a flag."""

    weights: list[str] = option([], "files that bench.training.train wrote")
    bits: int = option(4, "of matrices: 4, 8, or 16 for bfloat16")
    out: str = option("packed", "folder of the new files, which have the same names")


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.training.pack") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = cli.Parser(
        prog=prog, description="Store trained drafts with fewer bits.", allow_abbrev=False
    )
    cli.add_arguments(parser, PackConfig)
    return cli.run_command(parser, _command, argv, "stopped; finished files are whole")


def _command(flags: dict[str, Any]) -> int:
    pack(PackConfig(**flags))
    return 0


def pack(config: PackConfig) -> None:
    """Write every file of `weights` anew into `out`."""
    check_bits(config.bits)
    paths, out = [Path(name) for name in config.weights], Path(config.out)
    if not paths:
        raise UsageError("--weights needs at least one file")
    for path in paths:
        if not path.is_file():
            raise UsageError(f"--weights: there is no file {path}")
        if path.resolve().parent == out.resolve():
            raise UsageError(f"--out is the folder of {path}; name another one")
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            requantise(path, out / path.name, config.bits)
        except CheckpointError as error:
            raise UsageError(f"--weights: {error}") from error
        sizes = [file.stat().st_size / 1e6 for file in (path, out / path.name)]
        note(f"{out / path.name}: {sizes[1]:.1f} MB, {path} has {sizes[0]:.1f} MB")


def check_bits(bits: int) -> None:
    """UsageError for a number of bits that matrices are not saved in."""
    if bits not in BITS:
        raise UsageError(f"--bits must be one of {', '.join(map(str, BITS))}, not {bits}")


if __name__ == "__main__":
    sys.exit(main())
