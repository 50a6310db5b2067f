"""The files of a checkpoint: which hold weights, whether they can be read, and their hashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.errors import UsageError, first_line
from bench.files import sha256_of_bytes, sha256_of_file, sha256_of_files

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # or, in shards, the same with `.index.json`
# What decides the ids of a prompt and where an answer ends.
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def weights(find: Callable[[str], Path | None]) -> list[Path]:
    """The files of the weights, one or several shards; empty unless `find` knows all of them."""
    found, missing = _listed(find)
    return [] if missing else found


def _listed(find: Callable[[str], Path | None]) -> tuple[list[Path], list[str]]:
    """(the files that are there, the names of those that an index lists and that are not)."""
    for name in WEIGHTS:
        if whole := find(name):
            return [whole], []
        if index := find(f"{name}.index.json"):
            listed = _object(index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
                raise UsageError(f"{index.name} has no weight_map of file names; fetch it again")
            shards = {shard: find(shard) for shard in sorted(set(listed.values()))}
            return [p for p in shards.values() if p], [n for n, p in shards.items() if not p]
    return [], []


def check(name: str, folder: Path) -> None:
    """UsageError, one line, for a folder of which a file is missing or cannot be read."""
    try:
        for file in SETTINGS:
            path = folder / file
            if path.suffix == ".json" and path.is_file():
                _object(path)
        found, missing = _listed(lambda file: p if (p := folder / file).is_file() else None)
        if missing:
            raise UsageError(f"its index lists {missing[0]}, which is not there; fetch it")
        if not found:
            raise UsageError(f"the folder holds none of {', '.join(WEIGHTS)}")
        for path in found:
            _readable(path)
    except UsageError as error:
        raise UsageError(f"{name} cannot be loaded: {error}") from error


def revision(folder: Path) -> str:
    """sha256 of the weights, and the first 8 digits of that of the settings: what decides the ids
    of an answer."""
    found = weights(lambda file: p if (p := folder / file).is_file() else None)
    return f"{sha256_of_files(found)}+{settings_sha256(folder)[:8]}"


def settings_sha256(folder: Path) -> str:
    """Of the configuration, the tokenizer and the chat template, by their names and contents."""
    paths = [folder / name for name in SETTINGS]
    extra = folder / "additional_chat_templates"
    paths += sorted(extra.glob("*.jinja"))
    lines = [f"{path.name} {sha256_of_file(path)}" for path in paths if path.is_file()]
    return sha256_of_bytes("\n".join(lines).encode())


def _readable(path: Path) -> None:
    """UsageError for a file that is empty or cut short."""
    from safetensors import safe_open

    if path.stat().st_size == 0:
        raise UsageError(f"{path.name} is empty; fetch it again")
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, "pt"):
            pass
    except Exception as error:  # the library's own type
        raise UsageError(
            f"{path.name} is cut short or no safetensors file ({first_line(error)}); fetch it again"
        ) from error


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path.name} is not JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path.name} holds no JSON object")
    return value
