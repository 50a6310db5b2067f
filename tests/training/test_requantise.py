"""Drafts in few bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baselines.medusa.model import Medusa, MedusaConfig
from bench.decoding.drafts.weights import (
    GROUP,
    dequantise,
    quantise,
    quantise_groups,
    read_draft,
    save_draft,
)
from bench.training.requantise import main

SIZE = 2 * GROUP


def draft() -> Medusa:
    model = Medusa(MedusaConfig(hidden_size=SIZE, depth=2))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def error(found: torch.Tensor, matrix: torch.Tensor) -> float:
    return float((found - matrix).norm() / matrix.norm())


def test_four_bits_in_groups_are_near() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 3 * GROUP, generator=generator)
    matrix[0, :GROUP] = 0.0
    matrix[1] *= 1e-3  # a group's scale is its own
    packed, scale = quantise_groups(matrix)
    assert packed.shape == (24, 3 * GROUP // 2)
    assert scale.shape == (24, 3)
    found = dequantise(packed, scale)
    assert error(found, matrix) < 0.09
    assert error(found[1], matrix[1]) < 0.11
    assert not found[0, :GROUP].any()
    plain = matrix.view(24, 3, GROUP)
    step = plain.abs().amax(dim=-1, keepdim=True) / 7
    rounded = (plain / step.clamp(min=1e-9)).round() * step
    assert error(found, matrix) < error(rounded.view_as(matrix), matrix), "the scales are fitted"


def test_integers_come_back_as_they_are() -> None:
    whole = torch.randint(-8, 8, (6, GROUP), generator=torch.Generator().manual_seed(0)).float()
    whole[:, 0] = -8
    assert torch.equal(dequantise(*quantise_groups(whole * 0.5)), whole * 0.5)
    bytes_ = torch.arange(-127.0, 128.0)[None]
    torch.testing.assert_close(dequantise(*quantise(bytes_)), bytes_)


@pytest.mark.parametrize(("bits", "most"), [(4, 0.1), (8, 0.01), (16, 0.004)])
def test_a_draft_is_saved_in_fewer_bits(bits: int, most: float, tmp_path: Path) -> None:
    model, vocabulary = draft(), torch.arange(20)
    path = tmp_path / "medusa-0.safetensors"
    save_draft(path, model, vocabulary, {"method": "medusa", "tree": [[0]]}, bits=16)
    out = tmp_path / "out"
    flags = ["--weights", str(path), "--bits", str(bits), "--out", str(out)]
    assert main(flags) == 0
    saved = read_draft(out / path.name)
    assert saved.card["bits"] == bits
    assert saved.card["tree"] == [[0]]
    assert torch.equal(saved.vocabulary, vocabulary)
    for name, value in model.state_dict().items():
        assert error(saved.state[name], value) < most
    if bits == 4:
        matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
        held = sum(t.nbytes for k, t in load_file(out / path.name).items() if "weight" in k)
        assert held == matrices * (4 + 16 / GROUP) / 8


def test_what_cannot_be_requantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "medusa-0.safetensors"
    save_draft(path, draft(), torch.arange(20), {"method": "medusa"}, bits=16)
    before = path.read_bytes()
    for flags, said in (
        (["--bits", "5", "--weights", str(path)], "--bits must be one of 4, 8, 16, not 5"),
        ([], "--weights needs at least one file"),
        (["--weights", str(path), "--out", str(tmp_path)], "would overwrite"),
        (["--weights", str(tmp_path / "none")], "there is no file"),
    ):
        assert main(flags) == 2
        assert said in capsys.readouterr().err
    assert path.read_bytes() == before
