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
SCALE = ":scale"  # suffix of the scales of an integer matrix, float [m, 1] or [m, n / GROUP]
GROUP = 32  # inputs that share a scale in a 4-bit matrix
STEPS = [0.7 + 0.025 * step for step in range(15)]  # scales tried, relative to the largest weight's
BITS = (4, 8, 16)
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


def quantise_groups(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [m, n / 2] and float16 scales [m, n / GROUP] of a matrix [m, n]: integers -8 .. 7, two
    a byte, the earlier one in the low half. The scale is the one, of those tried, of least squared
    error; its sign makes the largest weight of a group negative, where the range is wider."""
    m, n = matrix.shape
    groups = matrix.view(m, n // GROUP, GROUP)
    largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
    best = torch.zeros_like(largest)
    least = torch.full_like(largest, torch.inf)
    for step in STEPS:
        scale = (largest * step / -8).half().float()
        error = (_rounded(groups, scale) * scale - groups).square().sum(dim=-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    whole = (_rounded(groups, best) + 8).to(torch.uint8).view(m, n // 2, 2)
    return whole[..., 0] | whole[..., 1] << 4, best.squeeze(-1).half()


def _rounded(groups: Tensor, scale: Tensor) -> Tensor:
    whole = groups / torch.where(scale == 0, 1.0, scale)
    return whole.round().clamp(-8, 7)


def dequantise(matrix: Tensor, scale: Tensor) -> Tensor:
    """float32 [m, n] of what `quantise` (int8) or `quantise_groups` (uint8) gave."""
    if matrix.dtype == torch.int8:
        return matrix.float() * scale
    m, half = matrix.shape
    whole = torch.stack((matrix & 15, matrix >> 4), dim=-1).float() - 8  # [m, n / 2, 2]
    return (whole.view(m, -1, 2 * half // scale.shape[1]) * scale.float()[..., None]).view(m, -1)


def save_draft(
    path: Path, draft: Draft, vocabulary: Tensor, card: dict[str, Any], bits: int
) -> None:
    """Write `draft` as safetensors, matrices in `bits` of BITS, and its card as JSON. A matrix that
    4-bit groups do not divide has 8 bits."""
    tensors: dict[str, Tensor] = {VOCABULARY: vocabulary.to(torch.int32)}
    for name, tensor in draft.state_dict().items():
        value = tensor.detach().float().cpu()
        if value.dim() < 2:
            tensors[name] = value
        elif bits == 4 and value.shape[1] % GROUP == 0:
            tensors[name], tensors[name + SCALE] = quantise_groups(value)
        elif bits < 16:
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


def read_card(path: Path) -> dict[str, Any]:
    """The card of a file that training wrote. CheckpointError where it is another file."""
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})["card"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not a {FORMAT} checkpoint ({error!r})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else card
        raise CheckpointError(f"{path.name} has format {found!r}, not {FORMAT}")
    return card


def read_draft(path: Path) -> SavedDraft:
    """Read a file that training wrote. CheckpointError where it is another file."""
    card = read_card(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    vocabulary = tensors.pop(VOCABULARY).long()
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith(SCALE)}
    state = {
        name: dequantise(value, scales[name + SCALE]) if name + SCALE in scales else value.float()
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
