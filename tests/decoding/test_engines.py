"""Engines `graph` and `compile` decode as `eager` does; here uncaptured, by the plain-torch forms
of their kernels."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM

from baselines.prompt_lookup import PromptLookup, PromptLookupSettings
from bench.decoding.decoder import TreeDecoder
from bench.decoding.drafts.checkpoint import RANDOM
from bench.decoding.engines import invariant, ops, shapes
from bench.decoding.engines import trial as engines
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.engines.exact import ExactTarget
from bench.decoding.engines.forms import unsupported
from bench.decoding.engines.graph import ROWS, WIDTHS, GraphTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import Function, Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict
from bench.run.methods import discover, method
from bench.run.runner import Turn, run_turn
from tests.decoding.cases import each_decoder, registered, with_costs
from tests.decoding.checks import TOLERANCE
from tests.decoding.known import Known, Make, tiny_model

TOKENS = 40
LAYERS = 8
STATIC = {"graph": GraphTarget, "compile": CompiledTarget, "exact": ExactTarget}
each_engine = pytest.mark.parametrize("engine", STATIC.values(), ids=STATIC.keys())


class Ahead(EagerTarget):
    """Drafts are launched before the host has read a step, and so have as many nodes as on static
    engines."""

    runs_ahead: ClassVar[bool] = True


def turns(
    target: TargetModel, make: Make, prompts: Sequence[Sequence[int]], temperature: float
) -> list[Turn]:
    """One decoder, one prompt after the other."""
    decoder = make(target)
    return [
        run_turn(
            decoder,
            prompt,
            Sampling(temperature, top_k=5, generator=torch.Generator().manual_seed(seed)),
            TOKENS,
            eos_ids=(),
        )
        for seed, prompt in enumerate(prompts)
    ]


@each_engine
@each_decoder
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_and_accepted_lengths_equal_eager(
    grouped_query: Known, make: Make, engine: type[GraphTarget], temperature: float
) -> None:
    prompts = [*grouped_query.prompts[:2], (3,), grouped_query.prompts[2]]
    expected = turns(Ahead(grouped_query.fresh().model), make, prompts, temperature)
    found = turns(engine(copy.deepcopy(grouped_query.model)), make, prompts, temperature)
    for a, b in zip(expected, found, strict=True):
        assert (a.output_ids, a.accept_lengths) == (b.output_ids, b.accept_lengths)
        assert a.drafted == b.drafted


@pytest.mark.parametrize("name", ["chimera", "hydra", "medusa"])
def test_heads_of_published_form_draft_the_same_tree(multi_head: Known, name: str) -> None:
    """Random ones, whose drafts are hardly ever accepted."""
    chosen = method(f"{name}(nodes=9)", discover(), {name: RANDOM})
    assert chosen.decoder is not None
    trees = []
    for target in (multi_head.fresh(), CompiledTarget(copy.deepcopy(multi_head.model))):
        decoder = chosen.decoder(target, chosen.settings)
        assert isinstance(decoder, TreeDecoder)
        prompt = list(multi_head.prompts[0])
        target.reserve(len(prompt) + decoder.width)
        decoder.begin(prompt, target.prefill(prompt), 7, Sampling())
        trees.append(decoder.draft().tokens[:10].tolist())
    assert trees[0] == trees[1]
    assert len(set(trees[0])) > 3


class Tracing(CompiledTarget):
    """Traces what it would compile, and makes functions without side effects of it."""

    fused = 0

    def fuse(self, function: Function) -> Function:
        traced = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")

        def call(*arguments: object) -> object:
            self.fused += 1
            return traced(*arguments)

        return cast(Function, call)


class TracingDraft(Tracing):
    """Without products of its own, so that drafts are compiled instead."""

    fuses = False


FUSED = {
    "chimera": registered("chimera(nodes=6,depth=3)"),
    "chimera_plus": registered("chimera_plus(nodes=6,depth=3)"),
    "chimera_auto": with_costs(registered("chimera(nodes=auto,depth=3,beam=3)")),
    "chimera_block": registered("chimera_block(nodes=6,depth=3)"),
    "chimera_block_dynamic": registered("chimera_block(nodes=6,depth=3,dynamic=true,beam=3)"),
    "dflash": registered("dflash(nodes=6,depth=3)"),
    "dflash_dynamic": registered("dflash(nodes=6,depth=3,dynamic=true,beam=3)"),
    "eagle3": registered("eagle3(nodes=6,depth=3,beam=3)"),
    "hydra": registered("hydra(nodes=6,depth=3)"),
    "lookahead": registered("lookahead(g=3)"),
    "prompt_lookup": registered("prompt_lookup"),
}
# What the fused forms do not cover is compiled on both engines.
UNFUSED = ("chimera", "chimera_block_dynamic", "dflash")


@pytest.mark.parametrize(
    ("name", "engine"),
    [*((name, Tracing) for name in FUSED), *((name, TracingDraft) for name in UNFUSED)],
)
def test_what_is_fused_can_be_compiled_whole(
    grouped_query: Known, name: str, engine: type[Tracing]
) -> None:
    torch.compiler.reset()  # what is compiled counts towards a limit for each function
    make, prompts = FUSED[name], grouped_query.prompts[:1]
    target = engine(copy.deepcopy(grouped_query.model))
    (found,) = turns(target, make, prompts, 0.0)
    assert target.fused > 10
    assert found.output_ids == grouped_query.expected(prompts[0], TOKENS)
    (expected,) = turns(grouped_query.fresh(), make, prompts, 0.0)
    assert found.accept_lengths == expected.accept_lengths


@each_engine
def test_a_long_prompt_in_chunks(multi_head: Known, engine: type[GraphTarget]) -> None:
    prompt = [i * i % multi_head.vocab for i in range(WIDTHS[-1] + 5)]
    eager, static = multi_head.fresh(), engine(copy.deepcopy(multi_head.model))
    for target in (eager, static):
        target.tap(1)
        target.reserve(len(prompt) + 8)
    a, b = eager.prefill(prompt), static.prefill(prompt)
    assert (static.cache.length, int(static.length)) == (len(prompt), len(prompt))
    close = partial(torch.testing.assert_close, rtol=TOLERANCE, atol=TOLERANCE)
    close(a.logits, b.logits)
    close(a.hidden, b.hidden)
    close(a.taps[1], b.taps[1])
    rows = (..., slice(len(prompt)), slice(None))
    close(eager.cache.rows[rows], static.cache.rows[rows])


@each_engine
def test_the_same_tree_is_placed_as_the_same_object(engine: type[GraphTarget]) -> None:
    """What is captured is told apart by identity."""
    target = engine(tiny_model(20))
    target.prefill([1, 2, 3])
    lasting = Topology.of([-1, 0, 0, 1], lasting=True)
    first, second = (target.pad(TokenTree(torch.arange(4) + k, lasting)) for k in range(2))
    assert first is second
    assert first.tokens.tolist()[:4] == [1, 2, 3, 4]
    assert target.forward(first) is not None
    moving = [target.pad(TokenTree(torch.arange(n), Topology.of(range(-1, n - 1)))) for n in (9, 5)]
    assert moving[0] is moving[1] is not first


@each_engine
def test_growing_the_cache_keeps_answers_right(
    grouped_query: Known, engine: type[GraphTarget]
) -> None:
    target = engine(copy.deepcopy(grouped_query.model))
    target.reserve(ROWS + 100)
    prompt = grouped_query.prompts[0]
    eager = grouped_query.fresh()
    eager.reserve(len(prompt))
    expected = eager.prefill(prompt).logits
    torch.testing.assert_close(target.prefill(prompt).logits, expected, rtol=1e-4, atol=1e-4)


@each_engine
def test_a_tree_that_is_too_wide_is_refused(engine: type[GraphTarget]) -> None:
    target = engine(tiny_model(20))
    wide = TokenTree(torch.zeros(300, dtype=torch.long), Topology.of([-1] + [0] * 299))
    with pytest.raises(ValueError, match="takes trees of 256 nodes, not 300"):
        target.pad(wide)


def test_joined_projections_share_memory_with_the_modules() -> None:
    model = tiny_model(20)
    plain = copy.deepcopy(model)
    for _ in range(2):  # a second target of the model finds them joined
        target = CompiledTarget(model)
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }
    assert sum(storages.values()) == sum(p.nbytes for p in plain.parameters())
    eager, again = EagerTarget(plain), EagerTarget(model)
    for each in (eager, again):
        each.reserve(8)
    expected = eager.prefill([1, 2, 3]).logits
    torch.testing.assert_close(target.prefill([1, 2, 3]).logits, expected)
    torch.testing.assert_close(again.prefill([1, 2, 3]).logits, expected)


@each_engine
def test_an_engine_that_works_passes_its_trial(engine: type[GraphTarget]) -> None:
    assert engines.trial(engine(tiny_model(100))) is None


def attention_of(engine: type[GraphTarget]) -> tuple[Any, str]:
    """(module, name)."""
    return (invariant, "attend_in_order") if engine.exact else (ops, "attend")


def doubled_at(width: int) -> Callable[..., Any]:
    """A kernel that is wrong from `width` rows on."""

    def change(attend: Callable[..., Tensor], q: Tensor, *rest: Any, **more: Any) -> Tensor:
        return attend(q, *rest, **more) * (2.0 if q.shape[0] >= width else 1.0)

    return change


def without_rows(attend: Callable[..., Tensor], q: Tensor, *rest: Any, **more: Any) -> Tensor:
    """Every fifth committed row is lost."""
    keys, values, *others = rest
    keys, values = keys.clone(), values.clone()
    keys[:, 3:60:5] = 0.0
    values[:, 3:60:5] = 0.0
    return attend(q, keys, values, *others, **more)


def raising(*_: Any, **_more: Any) -> Tensor:
    raise RuntimeError("out of resource: shared memory\nand a trace")


@each_engine
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (doubled_at(16), "width 16, context 60: logits are off by"),
        (doubled_at(64), "width 64, context 60: logits are off by"),
        (without_rows, "width 1, context 60: logits are off by"),
        (raising, "width 1, context 60: RuntimeError: out of resource"),
    ],
)
def test_an_engine_with_a_broken_kernel_fails_its_trial(
    engine: type[GraphTarget],
    change: Callable[..., Tensor],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, name = attention_of(engine)
    monkeypatch.setattr(module, name, partial(change, getattr(module, name)))
    found = engines.trial(engine(tiny_model(100)))
    assert found is not None
    assert found.startswith(reason)
    assert "trace" not in found


def test_a_causal_mask_in_one_layer_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    attend, calls = ops.attend, itertools.count()

    def causal(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor) -> Tensor:
        if next(calls) % LAYERS == 2:
            visible = torch.ones_like(visible).tril()
        return attend(q, keys, values, length, visible)

    monkeypatch.setattr(ops, "attend", causal)
    found = engines.trial(CompiledTarget(tiny_model(100, layers=LAYERS)))
    assert found is not None
    assert found.startswith("width 16, context 60: logits")


def test_sums_that_depend_on_the_width_fail_the_trial_of_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32 the difference is a rounding, far below what other engines may have."""
    attend = invariant.attend_in_order

    def nudged(q: Tensor, *rest: Any) -> Tensor:
        out = attend(q, *rest)
        return out if q.shape[0] == 1 else out * (1 + 2**-22)

    monkeypatch.setattr(invariant, "attend_in_order", nudged)
    found = engines.trial(ExactTarget(tiny_model(100)))
    assert found is not None
    assert found.startswith("width 16")
    assert found.endswith("are not those of one token at a time")


@pytest.mark.parametrize("engine", [CompiledTarget, ExactTarget])
@pytest.mark.parametrize(("name", "product"), [("linear", "q, k and v"), ("parts", "o")])
def test_a_product_that_loses_a_column_fails_the_trial(
    engine: type[CompiledTarget], name: str, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little for the logits of a deep model to show, at one width alone."""
    multiply: Callable[..., Tensor] = getattr(ops, name)

    def lossy(x: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        if x.shape[0] == 32:
            x = x.clone()
            x[:, 5] = 0.0
        return multiply(x, weight, *rest, **more)

    monkeypatch.setattr(ops, name, lossy)
    monkeypatch.setattr(shapes, "whole", lambda *_: name == "linear")
    monkeypatch.setattr(shapes, "whole_tile", lambda *_: name == "linear")
    found = engines.trial(engine(tiny_model(100)))
    assert found is not None
    assert found.startswith(f"32 rows: the product with {product} is off by")


def test_a_model_s_own_scaling_reaches_the_kernel() -> None:
    config = GraniteConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_multiplier=0.9,
        initializer_range=0.3,
    )
    assert engines.trial(GraphTarget(GraniteForCausalLM(config).eval())) is None


def test_hooks_go_with_their_target() -> None:
    model = tiny_model(20)
    target = EagerTarget(model)
    target.tap(1)
    gone = weakref.ref(target)
    del target
    gc.collect()
    assert gone() is None
    assert not model.base_model._forward_hooks
    assert not model.base_model.layers[0]._forward_hooks


def test_a_decoder_never_sees_padding(grouped_query: Known) -> None:
    """Trees of five nodes in buffers of sixteen."""
    seen: list[tuple[int, ...]] = []

    class Watching(PromptLookup):
        def also(self, step: Step) -> Tensor:
            seen.append((step.logits.shape[0], step.hidden.shape[0]))
            return step.logits.argmax(dim=-1)

        def advance(self, tree: TokenTree, step: Step, verdict: Verdict) -> None:
            super().advance(tree, step, verdict)
            seen.append((tree.width, tree.tokens.shape[0], step.logits.shape[0]))
            assert tree.topology.ancestors.shape == (tree.width, tree.width)

    for engine in (EagerTarget, *STATIC.values()):
        seen.clear()
        target = engine(copy.deepcopy(grouped_query.model))
        (turn,) = turns(
            target,
            lambda target: Watching(target, PromptLookupSettings(n=2, k=4)),
            grouped_query.prompts[:1],
            0.0,
        )
        assert turn.output_ids == grouped_query.expected(grouped_query.prompts[0], TOKENS)
        assert {width for shapes in seen for width in shapes} <= set(range(1, 6))


@pytest.mark.parametrize(("few", "width"), [(0.98, 1), (0.9, 16)])
def test_one_token_takes_the_width_that_is_faster(few: float, width: int) -> None:
    class Timed(GraphTarget):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            self._replays = True

        def _forward_seconds(self, width: int) -> float:
            return 1.0 if width == 1 else few

    target = Timed(tiny_model(20))
    target.choose_root_width()
    assert target.pad(TokenTree(torch.arange(1), Topology.of([-1]))).width == width
    assert target.pad(TokenTree(torch.arange(5), Topology.of([-1, 0, 0, 0, 0]))).width == 16


def test_trees_made_at_each_step_are_not_kept() -> None:
    target = GraphTarget(tiny_model(20))
    target.prefill([1, 2, 3])
    before = len(gc.get_objects())
    for _ in range(200):
        tree = TokenTree(torch.arange(4), Topology.of([-1, 0, 0, 1]))
        target.unpad(target.pad(tree), target.forward(target.pad(tree)), 4)
    gc.collect()
    assert len(gc.get_objects()) - before < 200


def test_what_has_no_fused_form_says_why() -> None:
    config = tiny_model(20).config
    assert unsupported(config, "compile") is None
    config.hidden_act = "gelu"
    assert "SiLU" in (unsupported(config, "compile") or "")
    assert unsupported(config, "graph") is None


def test_without_a_gpu_graph_falls_back() -> None:
    target, reason = engines.make(tiny_model(20), "tiny", "graph")
    assert target.engine == "eager"
    assert reason == "graph cannot run here: CUDA graphs need a GPU, not cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("engine", STATIC)
@each_decoder
def test_captured_ids_equal_eager(grouped_query: Known, make: Make, engine: str) -> None:
    model = copy.deepcopy(grouped_query.model).cuda()
    expected = turns(EagerTarget(model), make, grouped_query.prompts, 0.0)
    target, reason = engines.make(model, "", engine)
    assert reason is None
    for _ in range(3):  # warm-up, capture, replay
        found = turns(target, make, grouped_query.prompts, 0.0)
        assert [t.output_ids for t in found] == [t.output_ids for t in expected]
