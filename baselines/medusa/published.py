"""Medusa's published checkpoints (https://github.com/FasterDecoding/Medusa).

Three layouts are known, distinguished by their files:

    medusa_lm_head.pt            {i}.0.linear.weight [d, d], {i}.0.linear.bias [d],
                                 {i}.1.weight [V, d]
    a whole transformers model   the same names with the prefix `medusa_head.`
    medusa_lm_head.safetensors   {i}.{j}.linear.weight [d, d], {i}.{j}.linear.bias [d]

i counts heads and j the residual blocks of a head. The third has no own LM heads and uses the
target's. The number of heads is taken from the files: published `config.json`s understate it. The
heads of a whole model were trained together with it, so that model is the target to run them on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from baselines.medusa.model import Medusa, MedusaConfig
from bench.decoding.drafts import checkpoint
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.weights import randomise
from bench.files import sha256_of_files

OWN = "medusa_lm_head.pt"
SHARED = "medusa_lm_head.safetensors"
MODELS = ("model.safetensors", "pytorch_model.bin")  # or in shards, with `.index.json`
DEPTH = 5  # heads in the files of the first layout
PREFIX = "medusa_head."  # of the heads' names in a whole model
KNOWN = (
    f"known layouts: {OWN} ({{i}}.0.linear.weight, {{i}}.0.linear.bias, {{i}}.1.weight), a whole "
    f"transformers model with the same after {PREFIX!r}, "
    f"{SHARED} ({{i}}.{{j}}.linear.weight, {{i}}.{{j}}.linear.bias)"
)


class _Layout(NamedTuple):
    files: list[Path]
    prefix: str
    own_heads: bool


def locate(text: str) -> Path:
    """The checkpoint's file or folder, or the folder of a hub id, whose files with heads are
    fetched. CheckpointError where `text` is neither."""
    indexes = [f"{model}.index.json" for model in MODELS]
    location = checkpoint.locate(text, [OWN, SHARED, *indexes])
    if location.is_file() or any((location / name).is_file() for name in (OWN, SHARED)):
        return location
    for index in indexes:
        if (location / index).is_file():
            shards = [path.name for path in _shards(location / index)]
            return checkpoint.locate(text, [index, *shards])
    for model in MODELS:
        location = checkpoint.locate(text, [model])
        if (location / model).is_file():
            break
    return location


def recognises(location: Path) -> bool:
    """Whether it is a folder or one of the known files."""
    return location.is_dir() or location.name in (OWN, SHARED)


def files(location: Path) -> list[Path]:
    """The files with heads. CheckpointError where there are none."""
    return _layout(location).files


def load(location: Path, hidden_size: int, vocab_size: int) -> tuple[Medusa, str]:
    """The heads for a target of that shape, in the files' own precision, and the files' sha256.

    Args:
        location: a folder, or one of the known files.
        hidden_size: d.
        vocab_size: V.

    Raises CheckpointError, one line that names what was found and the known layouts.
    """
    try:
        found, prefix, own_heads = _layout(location)
        where = checkpoint.some(file.name for file in found)
        tensors = {
            name.removeprefix(prefix): tensor
            for file in found
            for name, tensor in checkpoint.read(file, prefix).items()
        }
        depth = checkpoint.numbers(where, tensors, r"([0-9]{1,4})\..*")
        if not depth:
            raise CheckpointError(f"{where} holds no {prefix}0.*")
        blocks = checkpoint.numbers(where, tensors, r"[0-9]+\.([0-9]{1,4})\.linear\..*")
        config = MedusaConfig(
            hidden_size,
            depth,
            blocks=1 if own_heads else blocks,
            own_heads=vocab_size if own_heads else 0,
        )
        with torch.device("meta"):
            medusa = Medusa(config)
        expected = medusa.state_dict()
        checkpoint.check(where, tensors, {_published(k): v.shape for k, v in expected.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {KNOWN}") from error
    medusa.load_state_dict({name: tensors[_published(name)] for name in expected}, assign=True)
    return medusa.requires_grad_(False).eval(), sha256_of_files(found)


def random(
    hidden_size: int, vocab_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Medusa, str]:
    """Heads of the first layout with random weights, to measure their cost, and a sha256 that
    identifies them."""
    with torch.device("meta"):
        medusa = Medusa(MedusaConfig(hidden_size, DEPTH, own_heads=vocab_size))
    return medusa, randomise(medusa, device, dtype)


def _published(name: str) -> str:
    """The published name of a parameter of ours."""
    kind, head, *rest = name.split(".")
    if kind == "lm_heads":
        return f"{head}.1.weight"
    block, parameter = rest
    return f"{head}.{block}.linear.{parameter}"


def _layout(location: Path) -> _Layout:
    """Which files hold heads, the heads' own first. CheckpointError where none does."""
    folder, found = location, [location.name]
    if location.is_file():
        folder = location.parent
    else:
        found = sorted(path.name for path in location.glob("*"))
    if OWN in found:
        return _Layout([folder / OWN], "", own_heads=True)
    if SHARED in found:
        return _Layout([folder / SHARED], "", own_heads=False)
    for model in MODELS:
        if f"{model}.index.json" in found:
            return _Layout(_shards(folder / f"{model}.index.json"), PREFIX, own_heads=True)
        if model in found:
            return _Layout([folder / model], PREFIX, own_heads=True)
    raise CheckpointError(
        f"{location.name} is not a Medusa checkpoint: found {checkpoint.some(found)}"
    )


def _shards(index: Path) -> list[Path]:
    """The files that hold heads, according to a model's index."""
    try:
        places = json.loads(index.read_text("utf-8"))["weight_map"].items()
        names = {str(place) for name, place in places if name.startswith(PREFIX)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index.name} is not the index of a model ({error!r})") from error
    if not names:
        raise CheckpointError(f"{index.name} lists no {PREFIX}*")
    for name in names:  # fetched and opened: folders and patterns are refused
        if Path(name).suffix not in (".safetensors", ".bin") or set(name) & set('/\\*?["'):
            raise CheckpointError(f"{index.name} lists {name!r}, not a file of its folder")
    return [index.parent / name for name in sorted(names)]
