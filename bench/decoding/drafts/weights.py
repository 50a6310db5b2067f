"""The file format of trained drafts: safetensors, with a card in its metadata and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench import files
from bench.decoding.drafts.checkpoint import CheckpointError
from bench.decoding.drafts.trainable import Draft
from bench.errors import flat

FORMAT = "chimera-bench-draft-1"
SCALE = ":scale"  # suffix of the scales of an 8-bit matrix, one for each output channel
VOCABULARY = "vocabulary"  # int32 [V], target ids, the most frequent in answers first


@dataclass(frozen=True)
class SavedDraft:
    """The content of a file that training wrote.

    Attributes:
        config: the draft's own settings.
        card: the same as in the JSON file.
        state: float32 tensors by name.
        vocabulary: int64 [V], target ids, the most frequent first.
        sha256: of the file.
    """

    config: dict[str, Any]
    card: dict[str, Any]
    state: dict[str, Tensor]
    vocabulary: Tensor
    sha256: str


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [m, n] and float32 scales [m, 1] with |matrix - int8 * scale| <= scale / 2."""
    scale = matrix.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (matrix / scale).round().clamp(-127, 127).to(torch.int8), scale


def save_draft(
    path: Path, draft: Draft, vocabulary: Tensor, card: dict[str, Any], bits: int
) -> None:
    """Write `draft` as safetensors, matrices in 8 bits or bfloat16, and its card as JSON."""
    tensors: dict[str, Tensor] = {VOCABULARY: vocabulary.to(torch.int32)}
    for name, tensor in draft.state_dict().items():
        value = tensor.detach().float().cpu()
        if value.dim() < 2:
            tensors[name] = value
        elif bits == 8:
            tensors[name], tensors[name + SCALE] = quantise(value)
        else:
            tensors[name] = value.to(torch.bfloat16)
    card = {**card, "bits": bits, "config": draft.config.to_dict(), "format": FORMAT}
    card["parameters"] = sum(p.numel() for p in draft.parameters())
    _write(path, tensors, card)


def rewrite_card(path: Path, changes: dict[str, Any]) -> None:
    """Change a saved draft's card in both places; the tensors stay as they are."""
    with safe_open(path, "pt") as file:
        card = {**json.loads((file.metadata() or {})["card"]), **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    _write(path, tensors, card)


def _write(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    with files.replacing(path) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"card": json.dumps(card)})
    beside = {**card, "sha256": files.sha256_of_file(path)}
    files.write_text(path.with_suffix(".json"), json.dumps(beside, indent=1) + "\n")


def read_draft(path: Path) -> SavedDraft:
    """Read a file that training wrote. CheckpointError where it is another file."""
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not a {FORMAT} checkpoint ({error!r})") from error
    if card.get("format") != FORMAT:
        raise CheckpointError(f"{path.name} has format {card.get('format')!r}, not {FORMAT}")
    vocabulary = tensors.pop(VOCABULARY).long()
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith(SCALE)}
    state = {
        name: value.float() * scales[name + SCALE] if name + SCALE in scales else value.float()
        for name, value in tensors.items()
    }
    return SavedDraft(card["config"], card, state, vocabulary, files.sha256_of_file(path))


@torch.no_grad()
def randomise(draft: Draft, device: torch.device, dtype: torch.dtype, seed: int = 0) -> str:
    """Give a draft on the meta device normal(0, 0.02) matrices, made on `device` in `dtype`; scales
    are 1, biases and means 0. Returns the sha256 of the settings and the seed, which determine the
    weights."""
    draft.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in draft.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(0.0, 0.02, generator=generator)
        else:
            tensor.fill_(0.0 if name.endswith(("bias", "mean")) else 1.0)
    facts = {"draft": type(draft).__name__, "config": draft.config.to_dict(), "seed": seed}
    return files.sha256_of_bytes(json.dumps(facts, sort_keys=True).encode())


def shipped(package: str, method: str, target: str) -> Path | None:
    """The weights of `method` for `target` that ship in `package`, or None."""
    name = f"{method}-{target.replace(':', '-')}.safetensors"
    path = Path(str(resources.files(package))) / name
    return path if path.is_file() else None


def load_state(draft: Draft, saved: SavedDraft, name: str) -> None:
    """Load saved weights into `draft`. CheckpointError unless every name and shape fits."""
    try:
        draft.load_state_dict(saved.state)
    except RuntimeError as error:
        reason = flat(error)
        raise CheckpointError(f"{name} does not fit its own settings: {reason}") from error
