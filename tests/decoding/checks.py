"""Checks that hold for every lossless decoder; each raises AssertionError."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from bench.decoding.decoder import Decoder, TreeDecoder
from bench.decoding.phases import PHASES
from bench.decoding.sampling import Sampling
from bench.run.runner import Turn, run_turn
from tests.decoding.known import Known, Make, Verified, WatchedTarget
from tests.decoding.scripted import DEPTH, NoisyOracle

QUOTA = 0.2  # least share of drafted levels accepted, and least share rejected
TOLERANCE = 1e-4  # between two float32 computations of the same state


def check_greedy(known: Known, make: Make, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Answers equal the known ones, and the way to them is right in every step."""
    target = known.fresh()
    decoder = make(target)
    steps: list[Verified] = []
    for prompt in prompts:
        turn = run_turn(decoder, prompt, Sampling(), tokens, eos_ids=())
        assert turn.output_ids == known.expected(tuple(prompt), tokens)
        check_accounting(turn, target, tokens, eos_ids=())
        check_longest_paths(target.steps, turn.output_ids)
        check_cache(known, target, prompt, turn.output_ids)
        steps += target.steps
    check_drafts(decoder, steps)


def check_accounting(
    turn: Turn, target: WatchedTarget, tokens: int, eos_ids: Collection[int]
) -> None:
    """The figures of a turn fit together and fit what was run."""
    lengths = turn.accept_lengths
    assert lengths is not None
    assert sum(lengths) == turn.new_tokens - 1
    assert len(lengths) == target.forwards
    assert all(length >= 1 for length in lengths)
    assert 1 <= turn.new_tokens <= tokens
    ended = turn.output_ids[-1] in eos_ids
    assert turn.finish == ("eos" if ended else "length")
    assert ended or turn.new_tokens == tokens
    assert not set(turn.output_ids[:-1]) & set(eos_ids)
    assert turn.phase_s is not None
    assert set(turn.phase_s) == set(PHASES)
    assert min(turn.phase_s.values()) >= 0.0
    assert turn.draft_prefill_s is not None
    assert 0.0 <= turn.draft_prefill_s <= turn.prefill_s
    assert (turn.decode_s > 0.0) == bool(lengths)
    assert turn.drafted == sum(step.tree.width - 1 for step in target.steps)
    if target.steps:
        emitted = [len(step.kept.ids) for step in target.steps]
        assert emitted == [len(step.kept.path) for step in target.steps], "accepted plus one"
        assert lengths[:-1] == emitted[:-1]
        assert lengths[-1] <= emitted[-1]  # the runner may have cut it


def check_longest_paths(steps: Sequence[Verified], answer: Sequence[int]) -> None:
    """Each greedy step takes the longest path that goes along with `answer`, and one token more."""
    at = 1
    for step in steps:
        ahead = answer[at:]
        longest = _longest(step, ahead)
        if longest == len(ahead):
            return  # the answer ends within this step
        assert len(step.kept.path) - 1 == longest
        at += longest + 1


def _longest(step: Verified, ahead: Sequence[int]) -> int:
    """Levels of the tree that go along with `ahead`."""
    topology, tokens = step.tree.topology, step.tree.tokens.tolist()
    parents = topology.parents.tolist()
    nodes, depth = [0], 0
    for token in ahead:
        nodes = [
            node for node in _acceptable(step) if parents[node] in nodes and tokens[node] == token
        ]
        if not nodes:
            break
        depth += 1
    return depth


def _acceptable(step: Verified) -> list[int]:
    """Drafted nodes that a rule may take."""
    flags = step.tree.topology.acceptable
    return [n for n in range(1, step.tree.width) if flags is None or bool(flags[n])]


def check_cache(
    known: Known, target: WatchedTarget, prompt: Sequence[int], answer: Sequence[int]
) -> None:
    """Committed rows equal the keys and values of a plain forward over the same ids."""
    verified = [token for step in target.steps for token in step.kept.ids]  # not cut by the runner
    ids = [*prompt, answer[0], *(verified or answer[1:])]
    length = target.cache.length
    assert length == len(ids) - 1, "all but the newest token is committed"
    plain = known.model(input_ids=torch.tensor([ids[:-1]]), use_cache=True).past_key_values
    for layer, rows in zip(plain.layers, target.cache.rows, strict=True):
        expected = torch.stack((layer.keys, layer.values))  # [2, 1, kv_heads, length, d]
        torch.testing.assert_close(rows[..., :length, :], expected, rtol=TOLERANCE, atol=TOLERANCE)


def check_repeats(known: Known, make: Make, tokens: int) -> None:
    """Repeats and prompts in between change neither answers nor drafts."""
    alone, steps = {}, []
    for prompt in known.prompts:
        target = known.fresh()
        alone[prompt] = run_turn(make(target), prompt, Sampling(), tokens, eos_ids=())
        steps += target.steps
    decoder = make(known.fresh())
    check_drafts(decoder, steps)
    for prompt in (*alone, *reversed(alone)):
        turn = run_turn(decoder, prompt, Sampling(), tokens, eos_ids=())
        assert turn.output_ids == alone[prompt].output_ids
        assert turn.accept_lengths == alone[prompt].accept_lengths
        assert turn.drafted == alone[prompt].drafted


def check_drafts(decoder: Decoder, steps: Sequence[Verified]) -> None:
    """A run that proves something has many drafts accepted and many rejected.

    Of all drafted levels at least `QUOTA` were accepted and at least `QUOTA` rejected. An oracle's
    paths were of every length, and one at least went through a sibling that is not the first.
    """
    if not steps:
        assert not isinstance(decoder, TreeDecoder)
        return
    drafted = sum(_deepest(step) for step in steps)
    paths = [step.kept.path[1:] for step in steps]
    accepted = sum(map(len, paths))
    assert QUOTA * drafted <= accepted <= (1 - QUOTA) * drafted, f"{accepted} of {drafted} accepted"
    if isinstance(decoder, NoisyOracle):
        assert set(map(len, paths)) == set(range(DEPTH + 1))
        assert any(
            step.tree.topology.elder_siblings[path].any()
            for step, path in zip(steps, paths, strict=True)
        )


def _deepest(step: Verified) -> int:
    depths = step.tree.topology.depths.tolist()
    return max((depths[node] for node in _acceptable(step)), default=0)
