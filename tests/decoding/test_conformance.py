"""What every lossless decoder must do, on targets whose greedy answers are known."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from bench.decoding.cache import BLOCK
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.run.runner import Turn, run_turn
from tests.decoding.cases import cached_oracle, each_decoder, registered
from tests.decoding.checks import (
    TOLERANCE,
    check_accounting,
    check_drafts,
    check_greedy,
    check_repeats,
)
from tests.decoding.known import Known, Make, Verified, WatchedTarget

TOKENS = 40


def greedy(target: TargetModel, make: Make, prompt: Sequence[int], tokens: int = TOKENS) -> Turn:
    return run_turn(make(target), prompt, Sampling(), tokens, eos_ids=())


@each_decoder
def test_greedy_ids_equal_the_reference_and_generate(known: Known, make: Make) -> None:
    check_greedy(known, make, known.prompts, TOKENS)


@each_decoder
def test_a_target_that_often_says_id_0(favours_zero: Known, make: Make) -> None:
    answers = [favours_zero.expected(prompt, TOKENS) for prompt in favours_zero.prompts]
    assert sum(answer.count(0) for answer in answers) >= 0.1 * TOKENS * len(answers)
    check_greedy(favours_zero, make, favours_zero.prompts, TOKENS)


@each_decoder
def test_a_prompt_of_one_token(known: Known, make: Make) -> None:
    check_greedy(known, make, [(token,) for token in range(6)], TOKENS)


@each_decoder
def test_one_new_token_needs_no_verify_step(known: Known, make: Make) -> None:
    target = known.fresh()
    turn = greedy(target, make, known.prompts[0], tokens=1)
    assert turn.output_ids == known.expected(known.prompts[0], 1)
    assert (turn.accept_lengths, turn.drafted, turn.decode_s) == ([], 0, 0.0)
    check_accounting(turn, target, tokens=1, eos_ids=())


@each_decoder
def test_two_new_tokens(known: Known, make: Make) -> None:
    target = known.fresh()
    turn = greedy(target, make, known.prompts[0], tokens=2)
    assert turn.output_ids == known.expected(known.prompts[0], 2)
    assert turn.accept_lengths == [1]


@each_decoder
def test_eos_inside_an_accepted_block(known: Known, make: Make) -> None:
    steps: list[Verified] = []
    ends = []
    for prompt in known.prompts:
        target = known.fresh()
        turn = greedy(target, make, prompt)
        steps += target.steps
        ends += [(prompt, turn.output_ids.index(token)) for token in _inside_blocks(turn)]
    assert ends
    check_drafts(make(known.fresh()), steps)
    for prompt, end in ends:
        target = known.fresh()
        answer = known.expected(prompt, TOKENS)
        eos = answer[end]
        turn = run_turn(make(target), prompt, Sampling(), TOKENS, eos_ids={eos})
        assert turn.output_ids == answer[: end + 1] == known.generate(prompt, TOKENS, eos)
        assert turn.finish == "eos"
        check_accounting(turn, target, TOKENS, eos_ids={eos})


def _inside_blocks(turn: Turn) -> list[int]:
    """Up to two tokens that are new to the answer and not the last of a block.

    A method without drafts has blocks of one token: there the only one counts.
    """
    assert turn.accept_lengths is not None
    drafts = max(turn.accept_lengths) > 1
    found, start = [], 1
    for length in turn.accept_lengths:
        block = turn.output_ids[start : start + length]
        inside = block[:-1] if drafts else block
        found += [token for token in inside if turn.output_ids.index(token) >= start]
        start += length
    return found[:2]


@each_decoder
def test_the_answer_ends_where_the_model_does(known: Known, make: Make) -> None:
    """The drafts of the last steps reach past the model's last position."""
    model = copy.deepcopy(known.model)
    model.config.max_position_embeddings = len(known.prompts[0]) + TOKENS
    steps: list[Verified] = []
    for prompt in known.prompts:
        target = WatchedTarget(model)
        turn = greedy(target, make, prompt)
        assert len(prompt) + turn.new_tokens == target.max_positions
        assert turn.output_ids == known.expected(prompt, TOKENS)
        steps += target.steps
    check_drafts(make(known.fresh()), steps)


@each_decoder
def test_the_answer_ends_where_the_cache_does(grouped_query: Known, make: Make) -> None:
    """Rows are allocated in blocks: here not one is left over for the widest tree."""
    steps: list[Verified] = []
    for prompt in grouped_query.prompts:
        target = grouped_query.fresh()
        decoder = make(target)
        tokens = BLOCK - (len(prompt) + decoder.width) % BLOCK
        turn = run_turn(decoder, prompt, Sampling(), tokens, eos_ids=())
        assert target.cache.capacity == len(prompt) + tokens + decoder.width
        assert turn.output_ids == grouped_query.expected(prompt, tokens)
        steps += target.steps
    check_drafts(decoder, steps)


@each_decoder
def test_repeats_and_prompts_in_between_change_nothing(grouped_query: Known, make: Make) -> None:
    check_repeats(grouped_query, make, TOKENS)


@each_decoder
def test_sampling_repeats_with_its_seed(grouped_query: Known, make: Make) -> None:
    decoder = make(grouped_query.fresh())

    def sample(seed: int) -> Turn:
        sampling = Sampling(1.0, generator=torch.Generator().manual_seed(seed))
        return run_turn(decoder, grouped_query.prompts[0], sampling, TOKENS, eos_ids=())

    before = torch.get_rng_state()
    first, other, again = sample(1), sample(2), sample(1)
    assert first.output_ids == again.output_ids != other.output_ids
    assert first.accept_lengths == again.accept_lengths
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not to be used"


@each_decoder
def test_prefill_in_chunks(known: Known, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.decoding.engines.eager.PREFILL_CHUNK", 5)
    check_greedy(known, make, known.prompts, TOKENS)


@pytest.mark.parametrize(
    "text",
    [
        "lookahead(n=3,w=1,g=1)",
        "lookahead(n=3,w=8,g=2,prompt=false)",
        "lookahead(n=7,w=2,g=9)",
        "prompt_lookup(n=1,k=1)",
        "prompt_lookup(n=5,k=12)",
    ],
)
def test_settings_at_the_edges(grouped_query: Known, text: str) -> None:
    for prompt in grouped_query.prompts[:2]:
        turn = greedy(grouped_query.fresh(), registered(text), prompt)
        assert turn.output_ids == grouped_query.expected(prompt, TOKENS)


def test_the_window_of_lookahead_alone_finds_guesses(grouped_query: Known) -> None:
    check_greedy(
        grouped_query, registered("lookahead(prompt=false)"), grouped_query.prompts, 2 * TOKENS
    )


def test_taps_and_a_draft_cache_follow_the_accepted_path(known: Known) -> None:
    for prompt in known.prompts:
        target = known.fresh()
        decoder = cached_oracle(target)
        answer = run_turn(decoder, prompt, Sampling(), TOKENS, eos_ids=()).output_ids
        memory = decoder.memory
        rows = memory.length
        # The last step's rows are not in: nobody asked for a draft after it.
        before_last = sum(len(step.kept.ids) for step in target.steps[:-1])
        assert rows == len(prompt) + before_last
        ids = torch.tensor([[*prompt, *answer]])[:, :rows]
        plain = known.model(input_ids=ids, output_hidden_states=True).hidden_states
        expected = torch.stack((plain[1][0], plain[-1][0]))  # after layer 1, after the final norm
        torch.testing.assert_close(
            memory.rows[0, :, 0, 0, :rows], expected, rtol=TOLERANCE, atol=TOLERANCE
        )


def test_the_last_tap_is_what_the_final_norm_reads(grouped_query: Known) -> None:
    target = grouped_query.fresh()
    target.tap(1, target.layers)
    target.reserve(64)
    step = target.prefill(grouped_query.prompts[0])
    assert set(step.taps) == {1, target.layers}
    torch.testing.assert_close(
        grouped_query.model.model.norm(step.taps[target.layers]), step.hidden
    )
    torch.testing.assert_close(target.head()(step.hidden[-1:]), step.logits)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_tap_outside_the_model_is_refused(grouped_query: Known, layer: int) -> None:
    with pytest.raises(ValueError, match=f"tap must lie in 1..2, not {layer}"):
        grouped_query.fresh().tap(layer)
