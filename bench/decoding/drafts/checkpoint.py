"""Published draft weights: finding the files, reading tensors, checking names and shapes."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bench import hub
from bench.files import json_of

RANDOM = "random"  # in place of a checkpoint: random weights of the published shape, to time them
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")  # of files with weights
SHOWN = 4  # names listed in a message


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or has another layout or shape; the message is one line."""


def on_hub(text: str | None) -> bool:
    """Whether a checkpoint can only be that of a hub repository."""
    if text is None or text.count("/") != 1:
        return False
    path = Path(text).expanduser()
    return path.suffix not in SUFFIXES and not path.exists()


def locate(text: str, names: Sequence[str]) -> Path:
    """A local file or folder, or else the folder with the files `names` of a hub repository.

    The folder holds those of the names that the repository has; it does not exist where the
    repository has none. CheckpointError where `text` is neither, or the hub cannot serve it.
    """
    path = Path(os.path.expanduser(text))
    if text and path.exists():
        return path
    if not on_hub(text):
        raise CheckpointError(
            f"{text} is no local file or folder; give one, or a hub id as organisation/name"
        )
    from huggingface_hub import errors, snapshot_download

    try:
        online = hub.reachable()
        return Path(
            snapshot_download(text, allow_patterns=list(names), local_files_only=not online)
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{text} is gated; ask for access on its page, then run `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{text} is no local file or folder, nor in the hub's local cache, and the hub cannot "
            "be reached; connect to the network, or give a folder with the files"
        ) from error
    except Exception as error:  # raised by the client's transport, whose types are not public
        raise CheckpointError(
            f"{text} is no local file or folder and cannot be fetched from the hub "
            f"({_line(error)}); check the name, and log in if the repository is private"
        ) from error


def read(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file whose names start with `prefix`.

    They are on the CPU in the file's own precision, memory-mapped where the format allows it. No
    code in the file is executed. CheckpointError where the file does not hold tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                return {name: file.get_tensor(name) for name in names}
        mapped = zipfile.is_zipfile(path)  # torch's oldest format is not
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing; fetch it") from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"the file imports {code[1]}" if code else "the file is not a plain pickle"
        raise CheckpointError(
            f"{path.name} is refused: only tensors are read from a checkpoint, and {found}"
        ) from error
    except Exception as error:  # a broken file raises almost anything
        raise CheckpointError(f"{path.name} cannot be read ({_line(error)}); fetch it") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path.name} holds {type(loaded).__name__}, not tensors by name")
    return {str(name): value for name, value in loaded.items() if str(name).startswith(prefix)}


def check_file(path: Path) -> None:
    """CheckpointError for a safetensors, torch or JSON file that is missing, empty or cut short;
    reads the header of one with weights alone."""
    try:
        if path.suffix == ".json":
            json_of(path.read_bytes())
            return
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return
        with path.open("rb") as file:
            # torch's newer format is a zip archive, whose directory is at the end; the older a
            # pickle, protocol 2 or later
            if zipfile.is_zipfile(file) or file.seek(0) or file.read(1) == b"\x80":
                return
        raise ValueError("neither a zip archive nor a pickle")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing; fetch it") from error
    except Exception as error:  # safetensors has types of its own
        raise CheckpointError(f"{path.name} cannot be read ({_line(error)}); fetch it") from error


def numbers(where: str, found: Iterable[str], pattern: str) -> int:
    """How many numbers the group of `pattern` takes in the names. CheckpointError at a gap."""
    matches = (re.fullmatch(pattern, name) for name in found)
    seen = sorted({int(match[1]) for match in matches if match})
    if seen != list(range(len(seen))):
        raise CheckpointError(f"{where} numbers from 0 with a gap: {some(map(str, seen))}")
    return len(seen)


def check(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> None:
    """CheckpointError unless the tensors have exactly the expected names and shapes."""
    faults = []
    if missing := sorted(expected.keys() - found.keys()):
        faults.append(f"lacks {some(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        faults.append(f"has the unexpected {some(unexpected)}")
    for name in sorted(expected.keys() & found.keys()):
        tensor, shape = found[name], list(expected[name])
        if list(tensor.shape) != shape:
            faults.append(f"has {name} of {list(tensor.shape)} where {shape} is expected")
        elif tensor.is_meta or tensor.layout != torch.strided or not tensor.is_floating_point():
            faults.append(f"has {name} without plain floating-point numbers ({tensor.dtype})")
    if faults:
        raise CheckpointError(f"{where} {some(faults)}")


def some(names: Iterable[str]) -> str:
    """The first few names for a message of one line, and how many more there are."""
    listed = [name if name.isprintable() else repr(name) for name in names]
    rest = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {rest} more" if rest > 0 else "") or "nothing"


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
