"""python -m bench.records check results/<folder> [...]: prints every violated invariant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from bench.cli import Parser, run_command
from bench.records import validation


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.records") -> int:
    """Exit code 0 where every folder is sound, 1 where one is not, 2 on invalid input."""
    parser = Parser(prog=prog)
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="print every violated invariant")
    checker.add_argument("folders", nargs="+", metavar="results/<folder>")

    def check(flags: dict[str, Any]) -> int:
        sound = [_sound(folder) for folder in flags["folders"]]  # all are reported
        return 0 if all(sound) else 1

    return run_command(parser, check, argv)


def _sound(folder: str) -> bool:
    """Prints what is wrong with the folder, or how many records it holds; and what it lacks, which
    the same command run again adds."""
    problems = validation.check(folder)
    lines = [*(problems or [validation.summary(folder)]), *validation.incomplete(folder)]
    print("\n".join(f"{folder}: {line}" for line in lines))
    return not problems


if __name__ == "__main__":
    sys.exit(main())
