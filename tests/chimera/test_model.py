"""The draft models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.medusa.model import Medusa, MedusaConfig
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.target import TargetModel
from chimera.drafter import Drafter
from chimera.fused import FusedBlock, FusedDraft
from chimera.model import Chimera, ChimeraConfig, Standardise

VOCAB, D, DEPTH, LENGTH = 20, 16, 4, 14
CHIMERA = ChimeraConfig(hidden_size=D, heads=2, ffn=24, depth=DEPTH)
PLUS = replace(CHIMERA, taps=(1, 2), query_state=True)
BLOCK = replace(PLUS, one_pass=True, sequential=24)
CONFIGS = {
    "chimera": CHIMERA,
    "chimera_plus": PLUS,
    "chimera_block": BLOCK,
    "chimera_unigram": replace(CHIMERA, trigram=False),
    "chimera_no_context": replace(CHIMERA, context=False),
    "chimera_heads_o": replace(CHIMERA, head_state=False),
    "plus_no_context": replace(PLUS, context=False),
    "no_output_norm": replace(CHIMERA, out_norm=False),
    "narrow": replace(CHIMERA, width=8),
    "plus_narrow": replace(PLUS, width=8),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@dataclass
class Text:
    """A text of a made-up target: ids [T], h [T, d], taps of [T, d] each, V embeddings."""

    ids: Tensor
    hidden: Tensor
    taps: list[Tensor]
    embeddings: nn.Embedding
    head: Tensor


def made_up(config: ChimeraConfig) -> Text:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Text(
        ids=torch.randint(VOCAB, (LENGTH,), generator=generator),
        hidden=normal(LENGTH, D),
        taps=[normal(LENGTH, D) for _ in config.taps],
        embeddings=nn.Embedding(VOCAB, D, _weight=normal(VOCAB, D)).requires_grad_(False),
        head=normal(VOCAB, D),
    )


def random_chimera(config: ChimeraConfig) -> Chimera:
    """No part at zero and no mean either: each matters."""
    generator = torch.Generator().manual_seed(1)
    model = Chimera(config).requires_grad_(False)
    for parameter in model.parameters():
        deviation = parameter.shape[-1] ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    for module in model.modules():
        if isinstance(module, Standardise):
            size = len(module.mean)
            module.mean.copy_(torch.randn(size, generator=generator))
            module.scale.copy_(torch.rand(size, generator=generator) + 0.5)
    model.heads.state_norm.load_state_dict(model.encoder.state_norm.state_dict())
    return model


def unroll(model: Chimera, text: Text, anchors: list[int]) -> tuple[Tensor, Tensor]:
    """(o, z), each [A, depth, d]."""
    taps = [tap[None] for tap in text.taps]
    embedded = text.embeddings(text.ids)[None]
    o, z = model(embedded, text.hidden[None], taps, torch.tensor([anchors]))
    return o[0], z[0]


class Bound:
    """A drafter on a target that has the made-up embeddings and head."""

    def __init__(self, model: Chimera, text: Text, engine: type[TargetModel] = EagerTarget) -> None:
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=D,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=False,
        )
        shell = LlamaForCausalLM(config).requires_grad_(False)
        shell.set_input_embeddings(text.embeddings)
        shell.lm_head.weight.copy_(text.head)
        self.target, self._text = engine(shell), text
        self.target.reserve(LENGTH + 4 * DEPTH)
        self.drafter = Drafter(model, self.target, torch.arange(VOCAB), spare=DEPTH)

    def commit(self, end: int, padding: int = 0) -> None:
        """The states up to `end`; later blocks with `padding` rows of nonsense behind them."""
        start = self.target.cache.length
        self.target.cache.length = end
        self.target.length.fill_(end)
        states = [rows[start:end] for rows in (self._text.hidden, *self._text.taps)]
        if not start:
            self.drafter.start(states[0], states[1:])
            return
        padded = [torch.cat((rows, torch.full((padding, D), 9.0))) for rows in states]
        path, accepted = torch.arange(len(padded[0])), torch.tensor([end - start - 1])
        self.drafter.remember(padded[0], padded[1:], path, accepted)


@each_config
@pytest.mark.parametrize("engine", [EagerTarget, CompiledTarget])
@pytest.mark.parametrize("anchor", [1, 5, LENGTH - DEPTH - 1])
def test_drafting_step_by_step_is_what_was_trained(
    config: ChimeraConfig, anchor: int, engine: type[TargetModel]
) -> None:
    text, model = made_up(config), random_chimera(config)
    _, z = unroll(model, text, [anchor])
    bound = Bound(model, text, engine)
    drafter = bound.drafter
    bound.commit(2)  # the prompt
    if anchor > 1:  # an accepted block
        bound.commit(anchor + 1, padding=3)
    for level in range(1, DEPTH + 1):
        at = anchor + level
        visible = torch.ones(1, level, dtype=torch.bool)
        logits = drafter.expand(text.ids[None, at - 2 : at + 1], level, visible)
        expected = text.head @ z[0, level - 1]
        torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)


@each_config
def test_nodes_beside_the_path_and_trees_before_change_nothing(config: ChimeraConfig) -> None:
    text, model, anchor = made_up(config), random_chimera(config), 6
    _, z = unroll(model, text, [anchor])
    bound = Bound(model, text)
    drafter = bound.drafter
    bound.commit(anchor + 1)
    wrong = torch.tensor([1, 2, 3])
    drafter.expand(wrong[None], 1, torch.ones(1, 1, dtype=torch.bool))
    drafter.rewind()
    first, second, third = (text.ids[anchor + k - 2 : anchor + k + 1] for k in (1, 2, 3))
    steps = [
        (first[None], [[1]]),
        (torch.stack((wrong, second)), [[1, 1, 0], [1, 0, 1]]),
        (third[None], [[1, 0, 1, 1]]),
    ]
    for level, (trigrams, visible) in enumerate(steps, start=1):
        logits = drafter.expand(trigrams, level, torch.tensor(visible, dtype=torch.bool))
        expected = text.head @ z[0, level - 1]
        torch.testing.assert_close(logits[-1], expected, rtol=1e-4, atol=1e-4)


@each_config
@pytest.mark.parametrize("level", range(1, DEPTH))
def test_the_future_is_not_seen(config: ChimeraConfig, level: int) -> None:
    text, model, anchor = made_up(config), random_chimera(config), 4
    _, before = unroll(model, text, [anchor])
    changed = made_up(config)
    changed.ids[anchor + level + 1 :] += 1
    changed.ids %= VOCAB
    for states in (changed.hidden, *changed.taps):
        states[anchor + 1 :] += 1.0
    _, after = unroll(model, changed, [anchor])
    assert torch.equal(before[:, :level], after[:, :level])
    assert not torch.allclose(before[:, level], after[:, level])


def test_what_each_switch_hides() -> None:
    """Which of: earlier tokens, earlier states, h_t, does level 1 depend on?"""

    def depends(config: ChimeraConfig) -> list[bool]:
        model, anchor, found = random_chimera(config), 6, []
        _, before = unroll(model, made_up(config), [anchor])
        for kind in ("token", "state", "anchor"):
            text = made_up(config)
            if kind == "token":
                text.ids[anchor] = (text.ids[anchor] + 1) % VOCAB
            else:
                text.hidden[anchor if kind == "anchor" else 2] += 1.0
            _, after = unroll(model, text, [anchor])
            found.append(not torch.allclose(before[0, 0], after[0, 0]))
        return found

    assert depends(CHIMERA) == [True, True, True]
    assert depends(CONFIGS["chimera_unigram"]) == [False, True, True]
    assert depends(CONFIGS["chimera_no_context"]) == [True, False, True]
    assert depends(CONFIGS["chimera_heads_o"]) == [True, True, True]
    both = replace(CHIMERA, context=False, head_state=False)
    assert depends(both) == [True, False, False], "h_t comes by the context and by the heads"


@pytest.mark.parametrize("config", [PLUS, BLOCK])
def test_anchors_do_not_meet(config: ChimeraConfig) -> None:
    text, model = made_up(config), random_chimera(config)
    _, together = unroll(model, text, [2, 5, 7])
    for row, anchor in enumerate((2, 5, 7)):
        _, alone = unroll(model, text, [anchor])
        torch.testing.assert_close(together[row], alone[0])


@each_config
def test_heads_start_as_o(config: ChimeraConfig) -> None:
    text, model = made_up(config), Chimera(config).requires_grad_(False)
    model.initialise(3)
    model.standardise(text.embeddings.weight, text.hidden, text.taps)
    o, z = unroll(model, text, [3, 5])
    assert torch.equal(o, z)
    again = Chimera(config).requires_grad_(False)
    again.initialise(3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))


def test_standardised_states_have_mean_0_and_deviation_1() -> None:
    model, generator = Chimera(PLUS), torch.Generator().manual_seed(0)
    x = 3.0 + 2.0 * torch.randn(500, D, generator=generator)
    model.standardise(x, x + 1, [x + 2, x + 3])
    encoder = model.encoder
    for norm, seen in (
        (model.trigram.norm, x),
        (encoder.state_norm, x + 1),
        (model.heads.state_norm, x + 1),
        (encoder.tap_norms[0], x + 2),
        (encoder.tap_norms[1], x + 3),
    ):
        out = norm(seen)
        torch.testing.assert_close(out.mean(dim=0), torch.zeros(D), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.std(dim=0), torch.ones(D))
    torch.testing.assert_close(encoder.state_norm.inverse(encoder.state_norm(x)), x)


def test_one_pass_reads_no_drafted_token() -> None:
    """o of every depth is known from the root; the tokens after it reach z alone."""
    text, model, anchor = made_up(BLOCK), random_chimera(BLOCK), 4
    o, z = unroll(model, text, [anchor])
    text.ids[anchor + 2 :] = (text.ids[anchor + 2 :] + 1) % VOCAB
    other_o, other_z = unroll(model, text, [anchor])
    assert torch.equal(o, other_o)
    assert torch.equal(z[:, 0], other_z[:, 0])
    for level in range(1, DEPTH):
        assert not torch.allclose(z[0, level], other_z[0, level])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("chimera", FusedDraft),
        ("chimera_plus", FusedDraft),
        ("narrow", FusedDraft),
        ("plus_narrow", FusedDraft),
        ("chimera_block", FusedBlock),
        ("chimera_no_context", None),
    ],
)
def test_where_kernels_are_fused(name: str, kind: type[FusedDraft] | None) -> None:
    bound = Bound(random_chimera(CONFIGS[name]), made_up(CONFIGS[name]), CompiledTarget)
    assert type(bound.drafter._fused) is (kind or type(None))


@pytest.mark.parametrize(
    "changes",
    [
        {"sequential": 0},
        {"context": False},
        {"trigram": False},
        {"own_heads": VOCAB},
        {"width": 8},
    ],
)
def test_what_one_pass_cannot_be_combined_with(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one_pass"):
        replace(BLOCK, **changes)


def test_medusa_starts_as_the_target_and_follows_its_equation() -> None:
    medusa = Medusa(MedusaConfig(D, depth=3)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    h, head = torch.randn(D, generator=generator), torch.randn(VOCAB, D, generator=generator)
    medusa.initialise(0)
    assert torch.equal(medusa.states(h), h.expand(3, D))
    torch.testing.assert_close(
        medusa.logits(h, partial(F.linear, weight=head)), (head @ h).expand(3, VOCAB)
    )
    for parameter in medusa.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for k in range(3):
        weight, bias = (medusa.get_parameter(f"heads.{k}.0.{part}") for part in ("weight", "bias"))
        expected = h + F.silu(weight @ h + bias)
        torch.testing.assert_close(medusa.states(h)[k], expected)
    _, z = medusa(torch.empty(0), torch.stack((h, 2 * h))[None], [], torch.tensor([[1, 0]]))
    torch.testing.assert_close(z[0, 1], medusa.states(h))
