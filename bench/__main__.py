"""chimera-bench COMMAND ...: every command of the project under one name.

`chimera-bench run` is `python -m bench.run`, and so on.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.cli import Parser, did_you_mean, run_command
from bench.errors import UsageError

PROG = "chimera-bench"


class Command(NamedTuple):
    """A command: the module of its `main`, imported when it is called, since some of them import
    torch; one line of help; and the arguments that stand for its name."""

    module: str
    help: str
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "run": Command("bench.run.__main__", "run methods on question sets; records and a report"),
    "list": Command(
        "bench.run.__main__", "list models, engines, methods and question sets", ("--list",)
    ),
    "audit": Command("bench.audit.__main__", "check that a run's lossless methods are lossless"),
    "check": Command(
        "bench.records.__main__", "check a run's records against their schema", ("check",)
    ),
    "report": Command("reports.build", "build the page of runs and cost studies"),
    "view": Command("reports.view", "build the page of one prompt's answers"),
    "compare": Command("reports.compare", "compare two runs; can fail where one is slower"),
    "cost": Command("bench.cost.__main__", "time forwards and steps by width and context"),
    "tune": Command("bench.tune.__main__", "measure which parameters are fastest here"),
    "prompts": Command(
        "bench.training.prompts.__main__", "write users' turns for distill, from templates"
    ),
    "distill": Command("bench.training.distill", "have a model write its drafts' training set"),
    "train": Command("bench.training.train", "train drafts on that set"),
    "requantise": Command("bench.training.requantise", "save trained drafts in fewer bits"),
    "trees": Command("bench.training.trees", "grow the static trees of trained drafts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command; 0 for the list of commands, 2 for an unknown one."""
    words = list(sys.argv[1:] if argv is None else argv)
    lines = [f"  {name:<9}{command.help}" for name, command in COMMANDS.items()]
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} COMMAND ...",
        description="A benchmark suite for lossless LLM decoding.",
        epilog="\n".join(["commands:", *lines, "", f"{PROG} COMMAND --help explains a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)

    def dispatch(flags: dict[str, Any]) -> int:
        name = flags["command"]
        if name is None:
            parser.print_help()
            return 0
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}")
        command = COMMANDS[name]
        module = importlib.import_module(command.module)
        # a subcommand adds its own name
        prog = PROG if name in command.arguments else f"{PROG} {name}"
        code: int = module.main([*command.arguments, *words[1:]], prog)
        return code

    return run_command(parser, dispatch, words[:1])


if __name__ == "__main__":
    sys.exit(main())
