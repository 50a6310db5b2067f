"""Trained drafts stored with fewer bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.medusa.model import Medusa, MedusaConfig
from bench.decoding.drafts.weights import GROUP, dequantise, quantise, read_draft, save_draft
from bench.training import pack


def matrix(rows: int = 24, columns: int = 4 * GROUP) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rescaled = torch.logspace(-3, 1, rows)[:, None]
    return torch.randn(rows, columns, generator=generator) * rescaled


def off(found: Tensor, expected: Tensor) -> float:
    """Relative error of a row's entries, the root of the mean square; of the worst row."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize(("bits", "most"), [(4, 0.11), (8, 0.012)])
def test_a_matrix_is_restored(bits: int, most: float) -> None:
    x = matrix()
    assert most / 4 < off(dequantise(*quantise(x, bits)), x) < most


def test_scales_of_4_bits_have_less_error_than_those_of_the_largest_entries() -> None:
    x = matrix()
    scale = x.view(len(x), -1, GROUP).abs().amax(dim=2, keepdim=True) / 7
    plain = ((x.view(len(x), -1, GROUP) / scale).round() * scale).view_as(x)
    assert off(dequantise(*quantise(x, 4)), x) < 0.97 * off(plain, x)


@pytest.mark.parametrize("values", [[0.0], [1e-9], [3e4, -3e4]])
def test_extreme_groups(values: list[float]) -> None:
    x = torch.tensor(values * (GROUP // len(values)))[None]
    torch.testing.assert_close(dequantise(*quantise(x, 4)), x, rtol=0.01, atol=1e-6)


def test_4_bits_of_integers_are_exact() -> None:
    x = torch.arange(-7, 8).float().repeat(2, 9)[:, : 4 * GROUP]
    assert torch.equal(dequantise(*quantise(x, 4)), x)


def saved(path: Path, size: int) -> Medusa:
    heads = Medusa(MedusaConfig(hidden_size=size, depth=2))
    heads.initialise(0)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    card = {"method": "medusa", "tree": [[0]], "held_out_as_saved": {"top1": 0.5}}
    save_draft(path, heads, torch.arange(8), card, bits=16)
    return heads


def test_a_file_is_packed(tmp_path: Path) -> None:
    heads = saved(tmp_path / "heads.safetensors", 8 * GROUP)
    arguments = ["--weights", str(tmp_path / "heads.safetensors"), "--out", str(tmp_path / "out")]
    assert pack.main([*arguments, "--bits", "4"]) == 0
    before, after = (read_draft(p / "heads.safetensors") for p in (tmp_path, tmp_path / "out"))
    assert (before.card["bits"], after.card["bits"]) == (16, 4)
    assert before.card.pop("held_out_as_saved"), "of 16 bits"
    assert before.card | {"bits": 4} == after.card
    assert torch.equal(before.vocabulary, after.vocabulary)
    for name, tensor in heads.state_dict().items():
        near = 0.0 if tensor.dim() < 2 else 0.7
        torch.testing.assert_close(after.state[name], tensor.float(), rtol=0.0, atol=near)
    sizes = [(p / "heads.safetensors").stat().st_size for p in (tmp_path, tmp_path / "out")]
    assert sizes[1] < 0.32 * sizes[0]  # 4.5 bits of 16, and what is not a matrix


def test_rows_that_groups_do_not_divide_have_8_bits(tmp_path: Path) -> None:
    heads = saved(tmp_path / "heads.safetensors", GROUP + 2)
    pack.pack(pack.PackConfig([str(tmp_path / "heads.safetensors")], 4, str(tmp_path / "out")))
    after = read_draft(tmp_path / "out" / "heads.safetensors")
    for name, tensor in heads.state_dict().items():
        torch.testing.assert_close(after.state[name], tensor.float(), rtol=0.0, atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "5"], "--bits must be one of 4, 8, 16, not 5"),
        ([], "--weights needs at least one file"),
        (["--weights", "nowhere"], "there is no file nowhere"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main(arguments) == 2
    assert message in capsys.readouterr().err
