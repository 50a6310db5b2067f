"""Commands and their typed settings: flags and YAML files from the fields of a dataclass."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml

from bench.errors import UsageError, flat

PLURALS = {"model": "models", "method": "methods"}  # one flag in all commands, one value or several
_ARGUMENT = re.compile(r"[^(),]+")  # of a method as `name(key=value,...)`
PROVENANCE = "provenance"  # key of `run.yaml` for what a run was resolved to; checked when fed back


def option(
    default: Any,
    text: str,
    *,
    metavar: str | None = None,
    choices: Sequence[str] = (),
    local: bool = False,
) -> Any:
    """A setting. A `local` one concerns this machine: a run's figures and name ignore it."""
    metadata = {"help": text, "metavar": metavar, "choices": tuple(choices), "local": local}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def device_option() -> Any:
    """The field `device` of every command that loads a model."""
    return option("auto", "cpu, cuda, cuda:1 ...; auto takes a GPU where there is one")


def dtype_option(default: str = "auto") -> Any:
    """The field `dtype` of the same commands."""
    return option(
        default,
        "auto is bfloat16 on a GPU and on a CPU with AMX or AVX512-BF16, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )


def chat_template_option() -> Any:
    """The field `chat_template` of every command that renders prompts."""
    return option(
        None,
        "chat template instead of the model's own: vicuna, llama-2-chat or a Jinja file",
        metavar="NAME|FILE",
    )


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + PLURALS.get(name, name).replace("_", "-")


def read_file(path: Path, settings: type[Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(settings, provenance) of a YAML file. UsageError names the file and the invalid key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, ...
        raise UsageError(f"{path} is not YAML: {flat(error)}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a mapping of settings to values")
    provenance = content.pop(PROVENANCE, {})
    if not isinstance(provenance, dict) or not isinstance(provenance.get("datasets", {}), dict):
        raise UsageError(f"{path}: {PROVENANCE} must be a mapping; leave it out or restore it")
    known = get_type_hints(settings)
    for name, value in content.items():
        if name not in known:
            raise UsageError(f"{path}: unknown setting {name!r}{did_you_mean(str(name), known)}")
        content[name] = _typed(value, known[name], f"{path}: {name}")
    return content, provenance


def portable(config: Any) -> dict[str, Any]:
    """The settings that define a run, without local paths."""
    return {
        f.name: without_paths(getattr(config, f.name))
        for f in fields(config)
        if not f.metadata["local"]
    }


def dump(config: Any, provenance: Mapping[str, object]) -> str:
    """The text of a settings file: settings without local paths, and what they were resolved to."""
    content = {**portable(config), PROVENANCE: dict(provenance)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


class Parser(argparse.ArgumentParser):
    """Reports invalid flags in one line, as all invalid input is reported."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def run_command(
    parser: argparse.ArgumentParser,
    body: Callable[[dict[str, Any]], int],
    argv: Sequence[str] | None,
    stopped: str = "stopped",
) -> int:
    """Call `body` with the parsed flags; its exit code, 2 on invalid input, 130 when interrupted,
    141 where nobody reads the output any more.

    `stopped` tells the user what an interrupted command leaves behind.
    """
    try:
        code = body(vars(parser.parse_args(argv)))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as `| head` leaves it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 141
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 130


def add_arguments(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """One flag for each setting. Absent flags set no attribute, so that the file's value holds."""
    hints = get_type_hints(settings)
    for entry in fields(settings):
        kind, many = _element(hints[entry.name])
        meta = entry.metadata
        choices = list(meta["choices"])
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(entry)}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = kind
            options["metavar"] = meta["metavar"] or ("|".join(choices) or kind.__name__.upper())
            options["nargs"] = "*" if many else None
        if entry.name in PLURALS and not many:
            options |= {"action": _One, "nargs": "+", "metavar": entry.name.upper()}
        add_flag(parser, entry.name, **options)


def add_flag(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """The flag of a setting; of --models and --methods the singular too, which no help lists."""
    parser.add_argument(flag(name), dest=name, **options)
    for singular, plural in PLURALS.items():
        if flag(name) == f"--{plural}":
            parser.add_argument(f"--{singular}", dest=name, **options | {"help": argparse.SUPPRESS})


class _One(argparse.Action):
    """The value of a flag that takes several in other commands."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        found = list(values or ())
        if len(found) > 1:
            text = f"{flag(self.dest)} takes one {self.dest} in {parser.prog}, not {len(found)}"
            raise UsageError(f"{text}; run it once for each")
        setattr(namespace, self.dest, found[0])


def without_paths(value: Any) -> Any:
    """`value` with local paths reduced to their last component, those of `name(key=PATH,...)`
    too."""
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    name, equals, path = value.rpartition("=")
    local = Path(path).expanduser()
    if local.exists():
        return name + equals + local.name
    return _ARGUMENT.sub(lambda found: without_paths(found[0]), value) if "(" in value else value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of known names."""
    names = list(known)
    return suggestion(name, names) or f"; choose one of {', '.join(names)}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the known name most like it, or nothing; case, hyphens and
    underscores do not count."""
    plain = {_plain(one): one for one in known}
    close = difflib.get_close_matches(_plain(name), plain, n=1)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _help(entry: Field[Any]) -> str:
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    text: str = entry.metadata["help"]
    return text if shown in (None, "") or shown is True else f"{text} (default: {shown})"


def _element(hint: Any) -> tuple[type, bool]:
    """(type of one value, whether several may be given) of a field's annotation."""
    if get_origin(hint) is list:
        return get_args(hint)[0], True
    if isinstance(hint, UnionType):
        return next(kind for kind in get_args(hint) if kind is not NoneType), False
    return hint, False


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` from YAML in the annotated type; UsageError where it has another type."""
    kind, many = _element(hint)
    if many:
        items = value if isinstance(value, list) else [value]
        return [_typed(item, kind, where) for item in items]
    if value is None and isinstance(hint, UnionType):
        return None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"{where} must be of type {kind.__name__}, not {value!r}")
    return value


def check_choices(config: Any) -> None:
    """UsageError where a setting is not one of its choices."""
    for entry in fields(config):
        choices, value = entry.metadata["choices"], getattr(config, entry.name)
        for item in value if isinstance(value, list) else [value]:
            if choices and item not in choices:
                hint = suggestion(str(item), choices)
                raise UsageError(
                    f"{flag(entry.name)} {item!r}: choose from {', '.join(choices)}{hint}"
                )
