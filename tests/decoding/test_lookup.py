"""The chain that prompt lookup adds to a tree."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from bench.decoding.lookup import LONGEST, TextLookup
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict
from bench.run.methods import discover, method
from bench.run.runner import run_turn
from tests.decoding.known import Known

K = 4


def expected(text: Sequence[int], k: int) -> list[int] | None:
    """What followed the latest of the longest matches; None where there is no match."""
    for n in range(min(LONGEST, len(text) - 1), 0, -1):
        for start in range(len(text) - 1, n - 1, -1):
            if text[start - n : start] == text[-n:]:
                period = len(text) - start
                return [text[start + i % period] for i in range(k)]
    return None


@pytest.fixture
def lookup(grouped_query: Known) -> TextLookup:
    target = grouped_query.fresh()
    target.reserve(96)
    return TextLookup(target, K)


def root_with_chain(lookup: TextLookup, root: int) -> TokenTree:
    return lookup.joined(TokenTree(torch.tensor([root]), Topology.of([-1], lasting=True)))


@pytest.mark.parametrize("alphabet", [2, 4, 12])
def test_the_chain_is_the_continuation_of_the_longest_match(
    lookup: TextLookup, alphabet: int
) -> None:
    draw = random.Random(alphabet)
    found = 0
    for _ in range(60):
        text = [draw.randrange(alphabet) for _ in range(draw.randrange(1, 24))]
        lookup.start(text)
        tree = root_with_chain(lookup, text[-1])
        assert tree.topology.parents.tolist() == [-1, 0, 1, 2, 3]
        continuation = expected(text, K)
        if continuation is not None:
            found += 1
            assert tree.tokens.tolist() == [text[-1], *continuation], text
    assert found > 20


def test_a_step_appends_its_accepted_tokens_and_its_bonus_token(lookup: TextLookup) -> None:
    draw = random.Random(0)
    text = [draw.randrange(3) for _ in range(8)]
    lookup.start(text)
    for accepted in (0, 2, 1, 4, 3):
        tree = root_with_chain(lookup, text[-1])
        path, bonus = torch.arange(5), draw.randrange(3)
        lookup.extend(tree, Verdict(torch.tensor(accepted), path, torch.tensor(bonus)), K)
        text += [*tree.tokens.tolist()[1 : accepted + 1], bonus]
        continuation = expected(text, K)
        assert continuation is not None
        assert root_with_chain(lookup, text[-1]).tokens.tolist() == [text[-1], *continuation]


def test_the_chain_hangs_below_the_root_of_a_tree_grown_on_the_device(lookup: TextLookup) -> None:
    lookup.start([1, 2, 3, 1, 2])
    grown = Topology.grown(torch.tensor([-1, 0, 0, 1]), 2)
    tree = lookup.joined(TokenTree(torch.tensor([2, 9, 8, 7]), grown))
    assert tree.tokens.tolist() == [2, 9, 8, 7, 3, 1, 2, 3]
    assert tree.topology.parents.tolist() == [-1, 0, 0, 1, 0, 4, 5, 6]
    assert tree.topology.depths.tolist() == [0, 1, 1, 2, 1, 2, 3, 4]
    assert tree.topology.height == 4


def steps(target: TargetModel, text: str, prompt: Sequence[int], tokens: int) -> int:
    """Verify steps of a method with random weights."""
    chosen = method(text, discover(), {"medusa": "random"})
    assert chosen.decoder is not None
    decoder = chosen.decoder(target, chosen.settings)
    turn = run_turn(decoder, prompt, Sampling(), tokens, ())
    assert turn.accept_lengths is not None
    return len(turn.accept_lengths)


def test_a_text_that_holds_the_answer_takes_fewer_steps(grouped_query: Known) -> None:
    prompt = grouped_query.prompts[0]  # repeats what the model says
    plain, joined = (
        steps(grouped_query.fresh(), f"medusa(nodes=7,lookup={k})", prompt, 40) for k in (0, 4)
    )
    assert joined < 0.9 * plain
