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
SCALE = ":scale"  # suffix of a quantised matrix's scales: one a row at 8 bits, a group at 4
BITS = (4, 8, 16)  # that matrices are saved in; 16: bfloat16
GROUP = 32  # inputs that share a scale at 4 bits
SHRUNK = 16  # scales tried for a group: the one that reaches its largest entry, and smaller ones
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


def quantise(matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(integers, scales) of a float32 matrix [m, n], for `dequantise`.

    8 bits: int8 [m, n] and float32 [m, 1], |matrix - int8 * scale| <= scale / 2.
    4 bits: uint8 [m, n / 2], two columns a byte, and float16 [m, n / GROUP], the scales of least
    squared error among SHRUNK. Takes n that GROUP divides.
    """
    if bits == 8:
        scale = matrix.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        return (matrix / scale).round().clamp(-127, 127).to(torch.int8), scale
    groups = matrix.view(len(matrix), -1, GROUP)
    largest = groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-6) / 7  # float16 holds it
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in torch.linspace(1.0, 0.6, SHRUNK).tolist():
        scale = (largest * share).half().float()
        error = (_nearest(groups, scale) * scale - groups).square().sum(dim=2, keepdim=True)
        best, least = torch.where(error < least, scale, best), error.minimum(least)
    columns = (_nearest(groups, best) + 8).to(torch.uint8).view(matrix.shape)
    return columns[:, ::2] | columns[:, 1::2] << 4, best.squeeze(2).half()


def dequantise(integers: Tensor, scales: Tensor) -> Tensor:
    """The float32 matrix [m, n] that `quantise` stored."""
    if integers.dtype == torch.int8:
        return integers.float() * scales
    columns = torch.stack((integers & 15, integers >> 4), dim=2).float() - 8  # [m, n / 2, 2]
    return (columns.view(*scales.shape, GROUP) * scales.float()[..., None]).flatten(1)


def _nearest(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in 4-bit integers."""
    return (x / scale).round().clamp(-8, 7)


def save_draft(
    path: Path, draft: Draft, vocabulary: Tensor, card: dict[str, Any], bits: int
) -> None:
    """Write `draft` as safetensors, matrices in `bits` of BITS, and its card as JSON. Matrices
    whose rows GROUP does not divide have 8 bits instead of 4."""
    state = {name: value.detach().float().cpu() for name, value in draft.state_dict().items()}
    card = {**card, "config": draft.config.to_dict(), "format": FORMAT}
    card["parameters"] = sum(p.numel() for p in draft.parameters())
    _save(path, state, vocabulary, card, bits)


def requantise(path: Path, out: Path, bits: int) -> None:
    """Write the draft in `path` to `out` with matrices in `bits`. The card leaves out
    `held_out_as_saved`, which was measured with the bits of `path`."""
    saved = read_draft(path)
    card = {key: value for key, value in saved.card.items() if key != "held_out_as_saved"}
    _save(out, saved.state, saved.vocabulary, card, bits)


def _save(
    path: Path, state: dict[str, Tensor], vocabulary: Tensor, card: dict[str, Any], bits: int
) -> None:
    """`state` holds float32 tensors."""
    tensors: dict[str, Tensor] = {VOCABULARY: vocabulary.to(torch.int32)}
    for name, value in state.items():
        if value.dim() < 2:
            tensors[name] = value
        elif bits == 16:
            tensors[name] = value.to(torch.bfloat16)
        else:
            fits = bits if value.shape[1] % GROUP == 0 else 8
            tensors[name], tensors[name + SCALE] = quantise(value, fits)
    _write(path, tensors, {**card, "bits": bits})


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
