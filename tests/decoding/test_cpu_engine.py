"""Engine `compile` without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.decoding.engines import packed
from bench.decoding.engines import trial as engines
from bench.decoding.engines.cpu import CpuTarget
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.packed import PackedLinear, PackedProduct, Product
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from tests.decoding.cases import each_decoder
from tests.decoding.known import Known, Make, tiny_model
from tests.decoding.test_engines import turns

PARENTS = [-1, 0, 0, 1, 1, 2, 4]


@pytest.fixture(params=["packed", "plain", "padded root"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[CpuTarget]:
    """The engine with each of its products."""
    if request.param == "plain":
        monkeypatch.setattr(packed, "packs", lambda _: False)
    elif not packed.packs(torch.float32):
        pytest.skip("oneDNN is not part of this torch")
    if request.param != "padded root":
        return CpuTarget

    class Padded(CpuTarget):
        def __init__(self, model: Any, name: str = "") -> None:
            super().__init__(model, name)
            self._root_rows = packed.ROWS

    return Padded


@each_decoder
def test_ids_and_accepted_lengths_equal_eager(
    grouped_query: Known, make: Make, engine: type[CpuTarget]
) -> None:
    prompts = [*grouped_query.prompts[:2], (3,)]
    expected = turns(grouped_query.fresh(), make, prompts, 0.0)
    found = turns(engine(copy.deepcopy(grouped_query.model)), make, prompts, 0.0)
    for a, b in zip(expected, found, strict=True):
        assert (a.output_ids, a.accept_lengths) == (b.output_ids, b.accept_lengths)


def steps(target: TargetModel, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, hidden and tapped states of a tree's forward behind a prompt."""
    target.tap(1)
    target.reserve(100)
    target.prefill([3, 1, 4, 1, 5, 9, 2, 6])
    tree = TokenTree(torch.arange(width) + 5, Topology.of(PARENTS[:width], target.device))
    step = target.forward(target.pad(tree))
    return step.logits, step.hidden, step.taps[1]


@pytest.mark.parametrize("width", [1, 7])
def test_states_equal_eager(engine: type[CpuTarget], width: int) -> None:
    model = tiny_model(50)
    for found, expected in zip(
        steps(engine(model), width), steps(EagerTarget(model), width), strict=True
    ):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_compile_on_a_cpu_is_this_engine() -> None:
    target, reason = engines.make(tiny_model(50), "tiny", "compile")
    assert type(target) is CpuTarget
    assert reason is None
    assert target.engine == "compile"


def test_a_model_of_another_form_falls_back() -> None:
    model = tiny_model(50)
    model.config.hidden_act = "gelu"
    target, reason = engines.make(model, "tiny", "compile")
    assert type(target) is EagerTarget
    assert "SiLU" in (reason or "")


def damaged(product: Callable[[Product, Tensor], Tensor]) -> Callable[[Product, Tensor], Tensor]:
    """The first output is the second's."""

    def wrong(self: Product, x: Tensor) -> Tensor:
        out = product(self, x).clone()
        out[..., 0] = out[..., 1]
        return out

    return wrong


def test_a_wrong_product_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = PackedProduct if packed.packs(torch.float32) else Product
    monkeypatch.setattr(kind, "__call__", damaged(kind.__call__))
    target, reason = engines.make(tiny_model(50), "tiny", "compile")
    assert type(target) is EagerTarget
    assert "logits are off by" in (reason or "")


def test_matrices_stay_plain_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SPARE", 0.0)
    target = CpuTarget(tiny_model(50))
    assert type(target.product(torch.ones(16, 16))) is Product


@pytest.mark.skipif(not packed.packs(torch.float32), reason="oneDNN is not part of this torch")
def test_a_packed_draft_keeps_its_weights_and_outputs() -> None:
    torch.manual_seed(0)
    draft = nn.ModuleDict({"a": nn.Linear(16, 32), "b": nn.Sequential(nn.Linear(32, 16))})
    x, names = torch.randn(3, 16), [name for name, _ in draft.named_parameters()]
    with torch.no_grad():
        expected = draft["b"](draft["a"](x))
        packed.pack(draft)
        torch.testing.assert_close(draft["b"](draft["a"](x)), expected)
    assert type(draft["a"]) is PackedLinear
    assert [name for name, _ in draft.named_parameters()] == names
