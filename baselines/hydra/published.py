"""Hydra's published checkpoints, as the training code of https://github.com/zankner/Hydra saves
them.

    hydra_lm_head.pt   hydra_mlp.{i}.0.res_connection.weight [d, (i + 2) d], .bias [d]   R, r
                       hydra_mlp.{i}.0.linear.weight [d, (i + 2) d], .bias [d]           W, b
                       hydra_mlp.{i}.{j}.linear.weight [d, d], .bias [d]                 j >= 1
                       hydra_lm_head.{i}.weight [V, d], .bias [V]
    config.json        hydra_head_arch "mlp", grounded_heads true, hidden_state_offset 0

i counts heads from 0 and j the residual blocks of a head; those behind the first are one module
there, whose tensors the file repeats. The numbers of both are taken from the tensors. Heads that
read no tokens ("grounded_heads": false), another layer's state ("hidden_state_offset") or a layer
over the verified positions ("prefix-mlp", Hydra++) are refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from baselines.hydra.model import Hydra, HydraConfig
from bench.decoding.drafts import checkpoint
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.weights import randomise
from bench.files import json_of, sha256_of_files

WEIGHTS, CONFIG = "hydra_lm_head.pt", "config.json"
DEPTH = 4  # heads of the published recipe
SETTINGS = {"hydra_head_arch": "mlp", "grounded_heads": True, "hidden_state_offset": 0}
KNOWN = (
    f"known layout: {WEIGHTS} (hydra_mlp.{{i}}.0.res_connection, hydra_mlp.{{i}}.{{j}}.linear and "
    "hydra_lm_head.{i}, each .weight and .bias)"
)


def locate(text: str) -> Path:
    """The checkpoint's file or folder, or the folder of a hub id, whose known files are fetched.
    CheckpointError where `text` is neither."""
    return checkpoint.locate(text, [WEIGHTS, CONFIG])


def recognises(location: Path) -> bool:
    """Whether it is a folder or the known file."""
    return location.is_dir() or location.name == WEIGHTS


def files(location: Path) -> list[Path]:
    """The file with heads. CheckpointError where there is none."""
    if location.is_file():
        return [location]
    found = sorted(path.name for path in location.glob("*"))
    if WEIGHTS not in found:
        raise CheckpointError(
            f"{location.name} is not a Hydra checkpoint: found {checkpoint.some(found)}; {KNOWN}"
        )
    return [location / WEIGHTS]


def load(location: Path, hidden_size: int, vocab_size: int) -> tuple[Hydra, str]:
    """The heads as `read` gives them, and the file's sha256."""
    hydra = read(location, hidden_size, vocab_size)
    return hydra, sha256_of_files(files(location))


def read(location: Path, hidden_size: int, vocab_size: int) -> Hydra:
    """The heads for a target of that shape, in the file's own precision, memory-mapped.

    Args:
        location: a folder, or the known file.
        hidden_size: d.
        vocab_size: V.

    Raises CheckpointError, one line that names what was found and the known layout.
    """
    (file,) = files(location)
    try:
        _check_settings(file.parent / CONFIG)
        tensors = checkpoint.read(file)
        depth = checkpoint.numbers(WEIGHTS, tensors, r"hydra_mlp\.([0-9]{1,4})\..*")
        if not depth:
            raise CheckpointError(f"{WEIGHTS} holds no hydra_mlp.0.*")
        blocks = checkpoint.numbers(WEIGHTS, tensors, r"hydra_mlp\.0\.([0-9]{1,4})\.linear\..*")
        with torch.device("meta"):
            hydra = Hydra(HydraConfig(hidden_size, depth, max(blocks, 1), vocab_size))
        expected = dict(hydra.named_parameters())
        checkpoint.check(WEIGHTS, tensors, {_published(k): v.shape for k, v in expected.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {KNOWN}") from error
    state = {name: tensors[_published(name)] for name in expected}
    hydra.load_state_dict(state | {"scale": torch.ones(1)}, assign=True)
    return hydra.requires_grad_(False).eval()


def random(
    hidden_size: int, vocab_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Hydra, str]:
    """Heads of the published shape with random weights, to measure their cost, and a sha256 that
    identifies them."""
    with torch.device("meta"):
        hydra = Hydra(HydraConfig(hidden_size, DEPTH, own_heads=vocab_size))
    return hydra, randomise(hydra, device, dtype)


def _check_settings(path: Path) -> None:
    """CheckpointError where the checkpoint's settings, if they are there, are for other heads."""
    if not path.is_file():
        return
    try:
        found = json_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{CONFIG} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{CONFIG} holds no settings by name")
    for name, known in SETTINGS.items():
        if found.get(name, known) != known:
            given, wanted = json.dumps(found[name]), json.dumps(known)
            raise CheckpointError(f"{CONFIG} has {name} {given}, and only {wanted} is supported")


def _published(name: str) -> str:
    """The published name of a parameter of ours."""
    kind, head, *rest = name.split(".")
    if kind == "lm_heads":
        return f"hydra_lm_head.{head}.{rest[0]}"
    module, *rest = rest
    if module == "shortcut":
        return f"hydra_mlp.{head}.0.res_connection.{rest[0]}"
    block = int(rest[0]) + 1 if module == "rest" else 0
    return f"hydra_mlp.{head}.{block}.linear.{rest[-1]}"
