"""Command lines from typed settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_args, get_type_hints

from bench.errors import UsageError

C = TypeVar("C")


def run(
    settings: Callable[..., C],
    work: Callable[[C], object],
    program: str,
    argv: Sequence[str] | None,
) -> int:
    """Call `work` with the settings that the command line gives. Exit code 0, 2 on bad input.

    Every field of the dataclass `settings` is a flag; its metadata holds the help text.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", allow_abbrev=False)
    hints = get_type_hints(settings)
    for entry in fields(settings):  # type: ignore[arg-type]
        name, hint = "--" + entry.name.replace("_", "-"), hints[entry.name]
        options: dict[str, Any] = {"default": entry.default, "help": entry.metadata["help"]}
        if entry.default is MISSING:
            options = {"required": True, "help": entry.metadata["help"]}
        if hint is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, **options)
            continue
        kinds = [kind for kind in get_args(hint) or (hint,) if kind not in (type(None), ...)]
        many = isinstance(entry.default, tuple)
        if entry.default not in (None, MISSING):
            shown = " ".join(map(str, entry.default)) if many else entry.default
            options["help"] += f" (default: {shown})"
        parser.add_argument(name, type=kinds[0], nargs="+" if many else None, **options)
    flags = vars(parser.parse_args(argv))
    try:
        work(settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
