"""Defects put in on purpose: the checks of the suite must notice each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from baselines.dflash.decoder import DFlash
from baselines.dflash.drafter import Drafter
from baselines.draft_model import DraftModel
from baselines.eagle3.decoder import Eagle3
from baselines.hydra.decoder import Hydra
from bench.decoding import decoder, verify
from bench.decoding.cache import TreeCache
from bench.decoding.drafts.worth import NodesWorth
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import Committed, Step
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict
from bench.run.runner import run_turn
from tests.decoding.cases import CASES, SCRIPTED, oracle, registered
from tests.decoding.checks import check_greedy, check_repeats
from tests.decoding.known import Known
from tests.decoding.test_verify import Kind, check_rule, path_rows

Mutate = Callable[[pytest.MonkeyPatch], None]
TOKENS = 40


def keep_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TreeCache, "keep", lambda _cache, _path: None)


def advance_without_moving(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TreeCache, "keep", lambda cache, path: cache.advance(path.shape[0]))


def keep_the_root_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TreeCache, "keep", lambda cache, _path: cache.advance(1))


def commit_a_row_too_many(patch: pytest.MonkeyPatch) -> None:
    advance = TreeCache.advance
    patch.setattr(TreeCache, "advance", lambda cache, rows: advance(cache, rows + (rows == 1)))


def tree_one_position_late(patch: pytest.MonkeyPatch) -> None:
    forward = EagerTarget._forward

    def late(
        target: EagerTarget,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        logits_to_keep: int,
    ) -> Step:
        return forward(target, ids, positions + (mask is not None), mask, logits_to_keep)

    patch.setattr(EagerTarget, "_forward", late)


def children_at_their_parents_position(patch: pytest.MonkeyPatch) -> None:
    depths = vars(Topology)["depths"].func
    patch.setattr(Topology, "depths", property(lambda self: (depths(self) - 1).clamp(min=0)))


def nodes_in_a_row(patch: pytest.MonkeyPatch) -> None:
    """Positions by node index, as if every tree were a chain."""
    patch.setattr(Topology, "depths", property(lambda self: torch.arange(self.width)))


def elder_siblings_visible(patch: pytest.MonkeyPatch) -> None:
    bias = vars(Topology)["bias"].func
    patch.setattr(
        Topology, "bias", property(lambda self: bias(self).masked_fill(self.elder_siblings, 0.0))
    )


def whole_tree_visible(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Topology, "bias", property(lambda self: torch.zeros(self.width, self.width)))


def parent_hidden(patch: pytest.MonkeyPatch) -> None:
    def own_and_root(self: Topology) -> Tensor:
        visible = torch.eye(self.width, dtype=torch.bool)
        visible[:, 0] = True
        return torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)

    patch.setattr(Topology, "bias", property(own_and_root))


def bonus_lost(patch: pytest.MonkeyPatch) -> None:
    """Only the accepted tokens are emitted, where there are any."""
    commit = EagerTarget.commit

    def without(
        target: EagerTarget, tree: TokenTree, verdict: Verdict, also: Tensor | None = None
    ) -> Committed:
        kept = commit(target, tree, verdict, also).wait()
        return kept._replace(ids=kept.ids[:-1] or kept.ids)

    patch.setattr(EagerTarget, "commit", without)


def last_accepted_token_as_bonus(patch: pytest.MonkeyPatch) -> None:
    """The bonus is lost in a consistent way: every id is right, each step emits one too few."""

    def shorter(tree: TokenTree, best: Tensor) -> Verdict:
        verdict = verify.exact_match(tree, best)
        length = (verdict.length - 1).clamp(min=0)
        last = tree.tokens[verdict.path[verdict.length]]
        return Verdict(length, verdict.path, torch.where(verdict.length > 0, last, verdict.bonus))

    _replace_rule(patch, shorter)


def bonus_after_the_root(patch: pytest.MonkeyPatch) -> None:
    """The bonus token is the one that follows the root, not the last accepted node."""

    def stale(tree: TokenTree, best: Tensor) -> Verdict:
        verdict = verify.exact_match(tree, best)
        return Verdict(verdict.length, verdict.path, best[0])

    _replace_rule(patch, stale)


def padding_is_accepted(patch: pytest.MonkeyPatch) -> None:
    """Paths padded with -1: padding reads as the last node, and its token as id 0."""

    def padded(tree: TokenTree, best: Tensor) -> Verdict:
        rows = path_rows(tree.topology)
        tokens = pad(tree.tokens, (0, 1))[rows]  # -1 is the id 0 behind them
        hit = tokens[:, 1:] == best[rows[:, :-1]]
        length, row = hit.long().cumprod(dim=-1).sum(dim=-1).max(dim=-1)
        path = rows[row].remainder(tree.width)
        return Verdict(length, pad(path, (0, tree.width - len(path))), best[path[length]])

    _replace_rule(patch, padded)


def first_child_only(patch: pytest.MonkeyPatch) -> None:
    """Siblings are never tried: lossless, and slower than it should be."""

    def first(tree: TokenTree, best: Tensor) -> Verdict:
        flags = ~tree.topology.elder_siblings.any(dim=-1)
        alone = TokenTree(tree.tokens, Topology(tree.topology.parents, flags))
        return verify.exact_match(alone, best)

    _replace_rule(patch, first)


def _replace_rule(patch: pytest.MonkeyPatch, rule: Callable[[TokenTree, Tensor], Verdict]) -> None:
    patch.setattr(decoder, "exact_match", rule)


MUTANTS: tuple[Mutate, ...] = (
    keep_nothing,
    advance_without_moving,
    keep_the_root_alone,
    commit_a_row_too_many,
    tree_one_position_late,
    children_at_their_parents_position,
    nodes_in_a_row,
    elder_siblings_visible,
    whole_tree_visible,
    parent_hidden,
    bonus_lost,
    last_accepted_token_as_bonus,
    bonus_after_the_root,
    first_child_only,
)


@pytest.mark.parametrize("name", ["static_oracle", "dynamic_oracle"])
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_greedy_conformance_notices(
    known: Known, name: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in known.prompts:
        known.expected(prompt, TOKENS)  # before anything is broken
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_greedy(known, SCRIPTED[name], known.prompts, TOKENS)


def test_a_target_that_often_says_id_0_notices_that_padding_is_accepted(
    favours_zero: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in favours_zero.prompts:
        favours_zero.expected(prompt, TOKENS)
    padding_is_accepted(monkeypatch)
    with pytest.raises(AssertionError):
        check_greedy(favours_zero, oracle(), favours_zero.prompts, TOKENS)


@pytest.mark.parametrize("text", ["suffix(alpha=4)", "token_recycling(nodes=8,depth=2,k=4)"])
@pytest.mark.parametrize("mutate", [elder_siblings_visible, bonus_lost], ids=lambda m: m.__name__)
def test_trees_without_training_notice(
    known: Known, text: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in known.prompts:
        known.expected(prompt, TOKENS)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_greedy(known, registered(text), known.prompts, TOKENS)


@pytest.mark.parametrize("mutate", [elder_siblings_visible, bonus_lost], ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", ["dflash", "eagle3"])
def test_a_trained_tree_notices(
    grouped_query: Known, name: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a block with a static tree; of one grown by confidence."""
    make, prompts = CASES[name], grouped_query.prompts[:2]
    check_greedy(grouped_query, make, prompts, TOKENS)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_greedy(grouped_query, make, prompts, TOKENS)


def newest_of_the_text_before(patch: pytest.MonkeyPatch) -> None:
    begin = DraftModel.begin

    def stale(self: DraftModel, *given: Any) -> None:
        kept = self._newest.clone()
        begin(self, *given)
        self._newest.copy_(kept)

    patch.setattr(DraftModel, "begin", stale)


def feature_of_the_text_before(patch: pytest.MonkeyPatch) -> None:
    begin = Eagle3.begin

    def stale(self: Eagle3, *given: Any) -> None:
        kept = self._f.clone()
        begin(self, *given)
        self._f.copy_(kept)

    patch.setattr(Eagle3, "begin", stale)


def rows_of_the_text_before(patch: pytest.MonkeyPatch) -> None:
    """Keys and values of a prompt are left where a longer text has some already."""
    begin = Eagle3.begin

    def stale(self: Eagle3, *given: Any) -> None:
        kept = self._rows.clone()
        begin(self, *given)
        if kept.shape == self._rows.shape:
            self._rows.copy_(torch.where(kept != 0, kept, self._rows))

    patch.setattr(Eagle3, "begin", stale)


def root_of_the_text_before(patch: pytest.MonkeyPatch) -> None:
    begin = DFlash.begin

    def stale(self: DFlash, *given: Any) -> None:
        kept = self._root.clone()
        begin(self, *given)
        self._root.copy_(kept)

    patch.setattr(DFlash, "begin", stale)


def context_of_the_text_before(patch: pytest.MonkeyPatch) -> None:
    """A prompt's keys and values are left where a text before it has some already."""
    start = Drafter.start

    def stale(self: Drafter, taps: list[Tensor]) -> None:
        kept = self._rows.clone()
        start(self, taps)
        if kept.shape == self._rows.shape:
            self._rows.copy_(torch.where(kept != 0, kept, self._rows))

    patch.setattr(Drafter, "start", stale)


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("dflash", root_of_the_text_before),
        ("dflash", context_of_the_text_before),
        ("draft_model", newest_of_the_text_before),
        ("eagle3", feature_of_the_text_before),
        ("eagle3", rows_of_the_text_before),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_draft_that_keeps_its_state_is_noticed(
    grouped_query: Known, name: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_repeats(grouped_query, CASES[name], TOKENS)


@pytest.mark.parametrize("mutate", [elder_siblings_visible, bonus_lost], ids=lambda m: m.__name__)
def test_sequential_heads_notice(
    grouped_query: Known, mutate: Mutate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in grouped_query.prompts:
        grouped_query.expected(prompt, TOKENS)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_greedy(grouped_query, CASES["hydra"], grouped_query.prompts, TOKENS)


def state_of_the_text_before(patch: pytest.MonkeyPatch) -> None:
    begin = Hydra.begin

    def stale(self: Hydra, *given: Any) -> None:
        kept = self._state.clone()
        begin(self, *given)
        if bool(kept.any()):  # not before the first text
            self._state.copy_(kept)

    patch.setattr(Hydra, "begin", stale)


def test_heads_that_keep_a_state_are_noticed(
    grouped_query: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_of_the_text_before(monkeypatch)
    with pytest.raises(AssertionError):
        check_repeats(grouped_query, CASES["hydra"], TOKENS)


@pytest.mark.parametrize("name", ["chimera_auto", "dflash_auto", "eagle3_auto"])
def test_a_calibration_of_the_answer_before_is_noticed(
    grouped_query: Known, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(NodesWorth, "start", lambda _worth: None)
    with pytest.raises(AssertionError):
        check_repeats(grouped_query, CASES[name], TOKENS)


@pytest.mark.parametrize(
    "text", ["suffix(alpha=1,warm=true)", "token_recycling(nodes=8,depth=2,k=4,warm=true)"]
)
def test_what_is_carried_over_is_noticed(grouped_query: Known, text: str) -> None:
    """And answers are the same."""
    make = registered(text)
    decoder = make(grouped_query.fresh())
    assert decoder.carries_over
    assert not CASES[decoder.name](grouped_query.fresh()).carries_over
    with pytest.raises(AssertionError):
        check_repeats(grouped_query, make, TOKENS)
    for prompt in grouped_query.prompts:
        turn = run_turn(decoder, prompt, Sampling(), TOKENS, eos_ids=())
        assert turn.output_ids == grouped_query.expected(prompt, TOKENS)


def bonus_from_the_target(patch: pytest.MonkeyPatch) -> None:
    """No residual where chosen drafts were refused."""
    patch.setattr(verify, "_without_children", lambda _tree, p, _last: p)


def draft_not_subtracted(patch: pytest.MonkeyPatch) -> None:
    """No residual where drawn drafts were refused."""
    tried = verify._try_drawn

    def unchanged(
        tree: TokenTree, probs: Tensor, q: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        return tried(tree, probs, q, uniform)[0], probs

    patch.setattr(verify, "_try_drawn", unchanged)


def drawn_tokens_taken_with_p(patch: pytest.MonkeyPatch) -> None:
    """Drawn drafts are taken with p, not with min(1, p / q)."""
    tried = verify._try_drawn

    def too_few(
        tree: TokenTree, probs: Tensor, q: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        return tried(tree, probs, q, uniform / verify._prob_at_parent(tree, q))

    patch.setattr(verify, "_try_drawn", too_few)


def siblings_tried_against_the_target(patch: pytest.MonkeyPatch) -> None:
    """Each chosen sibling is taken with p, whatever was refused before it."""

    def alone(tree: TokenTree, probs: Tensor, uniform: Tensor) -> Tensor:
        elder = tree.topology.elder_siblings
        taken = uniform < verify._prob_at_parent(tree, probs)
        return taken & ~(elder & taken[..., None, :]).any(dim=-1)

    patch.setattr(verify, "_try_chosen", alone)


@pytest.mark.parametrize(
    ("mutate", "kind"),
    [
        (bonus_from_the_target, "chosen"),
        (siblings_tried_against_the_target, "chosen"),
        (draft_not_subtracted, "drawn"),
        (drawn_tokens_taken_with_p, "drawn"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_law_of_the_rule_notices(
    mutate: Mutate, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_rules() -> None:
        for seed in range(4):
            check_rule(verify.speculative_sampling, kind, seed)

    check_rules()
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="chi-square"):
        check_rules()
