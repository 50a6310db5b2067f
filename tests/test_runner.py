"""The stop rule, the clock and the accounting, with scripted decoders and in whole runs."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch

from baselines.autoregressive import Autoregressive
from baselines.prompt_lookup import PromptLookup, PromptLookupSettings
from bench.decoding.decoder import Block, Decoder, Settings
from bench.decoding.engines import trial
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.finite import LogitsCheck
from bench.decoding.phases import PHASES, Phase, PhaseClock
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.records import runs as records
from bench.records import validation
from bench.records.runs import FIGURES, REFERENCE
from bench.run.runner import StopRule, Turn, run_stock, run_turn
from bench.targets import synthetic
from tests import harness
from tests.harness import install, run

EOS = 9
NAP = 0.1  # seconds, long compared with a scripted decoder's own work on a busy machine

# The stop rule


@pytest.mark.parametrize(
    ("blocks", "ids", "taken", "finish"),
    [
        ([[1], [2, 3], [4, 5]], [1, 2, 3, 4], [1, 2, 1], "length"),
        ([[1], [2, EOS]], [1, 2, EOS], [1, 2], "eos"),
        ([[1], [2, EOS, 3, EOS]], [1, 2, EOS], [1, 2], "eos"),
        ([[1], [2, 3, EOS]], [1, 2, 3, EOS], [1, 3], "eos"),  # EOS wins at the budget
        ([[1], [2, 3, 4, EOS]], [1, 2, 3, 4], [1, 3], "length"),
        ([[EOS]], [EOS], [1], "eos"),
        ([[8, 8]], [8, 8], [2], None),
    ],
)
def test_stop_rule(
    blocks: list[list[int]], ids: list[int], taken: list[int], finish: str | None
) -> None:
    stop = StopRule(4, [EOS, 7])
    assert [stop.take(block) for block in blocks] == taken
    assert (stop.ids, stop.finish) == (ids, finish)


def test_without_eos_ids_only_the_budget_ends() -> None:
    stop = StopRule(3, ())
    assert stop.take([0, EOS, 0, 0]) == 3
    assert (stop.ids, stop.finish) == ([0, EOS, 0], "length")


def test_an_empty_block_is_an_error() -> None:
    stop = StopRule(3, ())
    with pytest.raises(RuntimeError, match="empty block"):
        stop.take([])


# One turn by a scripted decoder


class Scripted(Decoder):
    """Yields the blocks it was given; `before[i]` is run before block i, in a phase of its own."""

    name: ClassVar[str] = "scripted"
    lossless: ClassVar[bool] = True
    width = 5

    def __init__(
        self,
        *blocks: Sequence[int],
        before: dict[int, Callable[[], None]] | None = None,
        phase: Phase = "draft",
        clock: PhaseClock | None = None,
    ) -> None:
        self.reserved: list[int] = []
        target = SimpleNamespace(
            clock=clock or PhaseClock(torch.device("cpu")),
            device=torch.device("cpu"),
            dtype=torch.float32,
            logits_check=LogitsCheck(torch.device("cpu")),
            reserve=self.reserved.append,
        )
        super().__init__(cast(TargetModel, target), Settings())
        self._blocks = blocks
        self._before = before or {}
        self._phase = phase

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        for number, block in enumerate(self._blocks):
            with self.target.clock.phase(self._phase):
                self._before.get(number, lambda: None)()
            yield Block(tuple(block), drafted=10 * number)


class Eager(Scripted):
    """Does its work when `decode` is called, before anything is asked of the iterator."""

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        time.sleep(NAP)
        return super().decode(prompt_ids, sampling)


def turn_of(decoder: Decoder, budget: int = 8, eos: Sequence[int] = (EOS,)) -> Turn:
    return run_turn(decoder, [1, 2, 3], Sampling(), budget, eos)


def nap() -> None:
    time.sleep(NAP)


def test_a_turn_counts_what_it_keeps() -> None:
    decoder = Scripted([5], [1, 2], [3], [4, EOS, 6], [7])
    turn = turn_of(decoder)
    assert turn.output_ids == [5, 1, 2, 3, 4, EOS]
    assert turn.accept_lengths == [2, 1, 2]
    assert (turn.new_tokens, turn.finish, turn.drafted) == (6, "eos", 10 + 20 + 30)
    assert sum(turn.accept_lengths) == turn.new_tokens - 1
    assert decoder.reserved == [3 + 8 + 5]  # prompt, budget, widest step
    assert turn.figures().keys() <= {*FIGURES, "warnings"}
    assert [step["drafted"] for step in turn.steps or []] == [10, 20, 30]


def test_the_budget_cuts_the_last_block() -> None:
    turn = turn_of(Scripted([5], [1, 2, 3], [4, 5, 6]), budget=6)
    assert turn.output_ids == [5, 1, 2, 3, 4, 5]
    assert (turn.accept_lengths, turn.finish) == ([3, 2], "length")


@pytest.mark.parametrize(("budget", "eos", "finish"), [(1, (), "length"), (8, (5,), "eos")])
def test_an_answer_of_one_token_has_no_loop(budget: int, eos: Sequence[int], finish: str) -> None:
    turn = turn_of(Scripted([5], [6]), budget, eos)
    assert (turn.output_ids, turn.accept_lengths, turn.drafted) == ([5], [], 0)
    assert turn.steps == []
    assert (turn.finish, turn.decode_s, turn.warnings) == (finish, 0.0, [])


def fail() -> None:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_a_decoder_raises_passes_through(at: int) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        turn_of(Scripted([5], [1], [2], before={at: fail}))


@pytest.mark.parametrize("blocks", [[], [[5]], [[5], [1, 2]], [[]], [[5], []]])
def test_a_decoder_that_ends_early_or_emits_nothing_is_an_error(blocks: list[list[int]]) -> None:
    with pytest.raises((RuntimeError, StopIteration)):
        turn_of(Scripted(*blocks))


# The clock


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_before_the_first_yield_escapes_prefill(phase: Phase) -> None:
    turn = turn_of(Scripted([5], [1, EOS], before={0: nap}, phase=phase))
    assert turn.prefill_s >= NAP
    assert turn.decode_s < NAP
    assert turn.draft_prefill_s is not None
    assert (turn.draft_prefill_s >= NAP) == (phase == "draft")
    assert turn.draft_prefill_s <= turn.prefill_s


def test_work_done_when_decode_is_called_is_in_prefill() -> None:
    turn = turn_of(Eager([5], [1, EOS]))
    assert turn.prefill_s >= NAP
    assert turn.decode_s < NAP


@pytest.mark.parametrize("phase", PHASES)
def test_the_loops_time_goes_to_its_phase(phase: Phase) -> None:
    turn = turn_of(Scripted([5], [1], [2, EOS], before={1: nap, 2: nap}, phase=phase))
    assert turn.phase_s is not None
    assert set(turn.phase_s) == set(PHASES)
    assert turn.phase_s[phase] >= 2 * NAP
    assert turn.decode_s >= 2 * NAP
    assert sum(turn.phase_s.values()) == pytest.approx(turn.decode_s, rel=0.05)
    assert turn.prefill_s < NAP


def test_what_follows_the_last_block_is_not_timed() -> None:
    turn = turn_of(Scripted([5], [1, EOS], [2], before={2: nap}))
    assert turn.decode_s < NAP


def test_a_steps_time_is_its_own_and_steps_add_up() -> None:
    blocks = ([5], [1], [2], [3], [4, EOS])
    turn = turn_of(Scripted(*blocks, before={1: nap, 3: nap}, phase="verify"))
    assert turn.steps is not None
    assert turn.phase_s is not None
    at = PHASES.index("verify")
    assert [step["us"][at] >= NAP * 1e6 for step in turn.steps] == [True, False, True, False]
    for place, phase in enumerate(PHASES):
        spent = sum(step["us"][place] for step in turn.steps)
        assert spent == pytest.approx(1e6 * turn.phase_s[phase], abs=1)


class Slow(PhaseClock):
    """Reports two per cent too much."""

    def stop(self) -> dict[Phase, float]:
        return {phase: 1.02 * seconds for phase, seconds in super().stop().items()}


def test_clocks_that_disagree_are_a_warning() -> None:
    clock = Slow(torch.device("cpu"))
    turn = turn_of(Scripted([5], [1, EOS], before={1: nap}, clock=clock))
    (warning,) = turn.warnings
    assert warning.startswith("phases add up to ")
    single = turn_of(Scripted([EOS], clock=clock))
    assert single.warnings == []


# The stock row


def test_stock_generate_leaves_the_global_generator_alone() -> None:
    model, _ = synthetic.build("synthetic:predictable", "cpu", torch.float32)
    sampling = Sampling(temperature=1.0)
    with harness.one_thread():
        state = torch.get_rng_state()
        turns = [run_stock(model, [1, 2, 3], sampling, seed, 8, (63,)) for seed in (1, 1, 2)]
        assert torch.equal(torch.get_rng_state(), state)
    assert turns[0].output_ids == turns[1].output_ids != turns[2].output_ids
    for turn in turns:
        assert turn.finish == ("length" if turn.new_tokens == 8 else "eos")
        assert (turn.accept_lengths, turn.phase_s, turn.drafted) == (None, None, None)
        assert turn.prefill_s > 0


@pytest.mark.parametrize(
    ("own", "temperature"),
    [
        ({}, 0.0),
        ({}, 1.0),
        ({"temperature": 0.6, "top_p": 0.1, "top_k": 3, "do_sample": True}, 0.0),
        ({"temperature": 0.6, "top_p": 0.1, "top_k": 3, "do_sample": False}, 1.0),
        ({"repetition_penalty": 5.0}, 0.0),
        pytest.param({"eos_token_id": 12}, 0.0),
        pytest.param({"no_repeat_ngram_size": 1}, 0.0),
        pytest.param({"suppress_tokens": [12]}, 0.0),
        pytest.param({"num_beams": 3}, 0.0),
        pytest.param({"min_p": 0.9}, 1.0),
    ],
)
def test_stock_generate_takes_nothing_of_the_checkpoints_own_defaults(
    own: dict[str, Any], temperature: float
) -> None:
    model, _ = synthetic.build("synthetic:predictable", "cpu", torch.float32)

    def ids(eos: Sequence[int]) -> list[int]:
        return run_stock(model, [1, 2, 3], Sampling(temperature), 0, 16, eos).output_ids

    with harness.one_thread():
        expected = ids([63])
        assert expected[0] == 12 or temperature  # otherwise some of these cases test nothing
        model.generation_config.update(**own)
        assert ids([63]) == expected
        assert len(ids([])) == 16


# Whole runs


class Careless(Autoregressive):
    """Fails in the middle of every second question; `works` stops that."""

    name: ClassVar[str] = "careless"
    works: ClassVar[bool] = False

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        for number, block in enumerate(super().decode(prompt_ids, sampling)):
            if number == 4 and len(prompt_ids) % 2 and not self.works:
                raise RuntimeError("lost\nthe thread")
            yield block


class Miscounting(Autoregressive):
    """Its first block has two tokens, which belong to no verify step."""

    name: ClassVar[str] = "miscounting"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        blocks = super().decode(prompt_ids, sampling)
        first, second = next(blocks), next(blocks)
        yield Block(first.ids + second.ids)
        yield from blocks


class Short(Autoregressive):
    """Stops yielding before the answer ends."""

    name: ClassVar[str] = "short"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        yield from itertools.islice(super().decode(prompt_ids, sampling), 3)


class Wordy(Autoregressive):
    """Emits a tensor instead of a number."""

    name: ClassVar[str] = "wordy"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        for block in super().decode(prompt_ids, sampling):
            yield Block(cast("tuple[int, ...]", (torch.tensor(block.ids[0]),)))


def test_failures_are_records_without_figures_and_stop_no_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    broken = {
        "careless": "RuntimeError: lost the thread",
        "miscounting": "RuntimeError: accept_lengths sums to 10, not new_tokens - 1 = 11",
        "short": "RuntimeError: the decoder ended by itself",
        "wordy": "TypeError: ",
    }
    install(monkeypatch, Careless, Miscounting, Short, Wordy)
    assert run("--methods", *broken, "prompt_lookup", "--out", "run") == 1
    shown = capfd.readouterr().err
    for method, reason in broken.items():
        found = harness.of("run", method)
        failed = [record for record in found if record["status"] == "error"]
        assert failed, method
        assert {record["error"][: len(reason)] for record in failed} == {reason}
        assert all(record[name] is None for record in failed for name in FIGURES)
        assert all(record["prompt_tokens"] > 0 for record in failed)
        assert shown.count(f"  {method}: error: {reason}") == 1
        assert len(found) == harness.TURNS
        assert len(failed) == harness.TURNS or method == "careless"
    careless = [record["status"] for record in harness.of("run", "careless")]
    assert {"ok", "error"} == set(careless)
    for method in (REFERENCE, "prompt_lookup"):
        assert [r["status"] for r in harness.of("run", method)] == ["ok"] * harness.TURNS
    assert validation.check("run") == []


def test_accept_lengths_sum_and_every_lossless_row_equals_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    assert run("--out", "run", "--max-new-tokens", "24") == 0
    expected = {r["prompt_sha256"]: r["output_ids"] for r in harness.of("run", REFERENCE)}
    found = harness.kept("run")
    assert len(found) == len(harness.LABELS) * harness.TURNS
    for record in found:
        assert record["output_ids"] == expected[record["prompt_sha256"]], record["method"]
        lengths = record["accept_lengths"]
        if record["method"] == "transformers_generate":
            assert (record["engine"], lengths, record["clock"]) == ("stock", None, None)
        else:
            assert record["clock"] is False
            assert sum(lengths) == record["new_tokens"] - 1
            assert (max(lengths) == 1) or record["method"] != REFERENCE
    longest = max(max(r["accept_lengths"]) for r in harness.of("run", "prompt_lookup"))
    assert longest > 1  # otherwise the comparison tests nothing


def test_phases_and_steps_are_of_one_more_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    assert run("--out", "run", "--repeats", "2", "--max-new-tokens", "24") == 0
    timed, found = harness.kept("run"), harness.kept("run", clocked=True)
    assert validation.check("run") == []
    assert len(timed) == 2 * len(harness.LABELS) * harness.TURNS
    assert {record["repeat"] for record in timed} == {0, 1}
    unknown = ("phase_s", "steps", "prefill_end", "draft_prefill_s")
    assert {record[name] for record in timed for name in unknown} == {None}
    for record in found:
        steps = record["steps"]
        assert record["repeat"] == 2
        assert record["draft_prefill_s"] is not None
        assert sum(record["phase_s"].values()) > 0
        assert len(steps) == len(record["accept_lengths"])
        ends = [record["prefill_end"], *(step["end"] for step in steps)]
        assert ends == sorted(ends)
        assert ends[-1] == len(record["text"])
        deepest = max(step["depth"] for step in steps)
        assert deepest >= max(record["accept_lengths"]) - 1
        assert (deepest == 0) == (record["method"] == REFERENCE)
    assert {r["method"] for r in found} == {REFERENCE, "lookahead", "prompt_lookup"}
    answers = {(r["method"], r["prompt_sha256"]): r["output_ids"] for r in timed}
    assert all(r["output_ids"] == answers[r["method"], r["prompt_sha256"]] for r in found)


def test_sampling_is_seeded_by_repeat_and_shared_by_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    flags = ["--temperature", "1", "--top-k", "20", "--top-p", "0.9", "--repeats", "2"]
    flags += ["--turns", "1", "--methods", "transformers_generate", "prompt_lookup"]
    assert run(*flags, "--out", "one") == 0
    assert run(*flags, "--out", "two") == 0
    assert run(*flags, "--seed", "1", "--out", "three") == 0

    def answers(folder: str, method: str, repeat: int) -> dict[str, list[int]]:
        found = harness.of(folder, method)
        return {r["prompt_id"]: r["output_ids"] for r in found if r["repeat"] == repeat}

    for method in (REFERENCE, "transformers_generate", "prompt_lookup"):
        first, second = (answers("one", method, repeat) for repeat in (0, 1))
        assert all(first[question] != second[question] for question in first)
        assert [answers("two", method, repeat) for repeat in (0, 1)] == [first, second]
        assert answers("three", method, 0) != first
    # The stock row draws the same numbers for the same distributions.
    for repeat in (0, 1):
        stock = answers("one", "transformers_generate", repeat)
        assert stock == answers("one", REFERENCE, repeat)
    assert validation.check("one") == []


class Watched(PromptLookup):
    """Keeps the prompts and settings of its calls, warm-up included."""

    name: ClassVar[str] = "watched"
    asked: ClassVar[list[tuple[int, Sampling]]] = []

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        self.asked.append((len(prompt_ids), sampling))
        return super().decode(prompt_ids, sampling)


def test_a_method_is_warmed_up_and_then_asked_once_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    install(monkeypatch, Watched)
    monkeypatch.setattr(Watched, "asked", [])
    flags = ("--methods", "watched", "--temperature", "0.5", "--top-p", "0.9", "--turns", "1")
    assert run(*flags, "--out", "run") == 0
    warm_up, *timed = Watched.asked
    assert warm_up[1].greedy
    assert len(timed) == 2 * len(harness.ROWS)  # without the phase clock and with it
    assert all((s.temperature, s.top_k, s.top_p) == (0.5, 0, 0.9) for _, s in timed)
    Watched.asked.clear()
    assert run(*flags, "--out", "run") == 0
    assert Watched.asked == []  # nothing to do, nothing to warm up
    found = harness.of("run", "watched")
    assert all(record["startup_s"] > 0 for record in found)


def test_methods_take_turns_in_a_shuffled_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    assert run("--out", "one", "--repeats", "2") == 0
    assert run("--out", "two", "--repeats", "2") == 0

    def order(folder: str) -> list[tuple[Any, ...]]:
        return [(r["prompt_id"], r["turn"], r["repeat"], r["method"]) for r in records.read(folder)]

    assert order("one") == order("two")
    width = len(harness.LABELS)
    groups = itertools.groupby(order("one"), lambda place: place[:3])
    rounds = [list(places) for place, places in groups if place[2] < 2]  # not with the phase clock
    assert len(rounds) == 2 * harness.TURNS
    assert all(len(set(one_round)) == width for one_round in rounds)
    assert len({tuple(place[3] for place in one_round) for one_round in rounds}) > 3


# Logits that are not finite


def broken(damage: str) -> Any:
    """A tiny target whose logits overflow, or are NaN at one id or from one layer on."""
    model, _ = synthetic.predictable(dtype=torch.float32)
    if damage == "one id":
        model.lm_head.weight[7] = float("nan")
    elif damage == "late layer":
        model.model.layers[-1].mlp.down_proj.weight[0, 0] = float("nan")
    else:
        model.lm_head.weight.mul_(3e6)
        model.half()
    return model


@pytest.mark.parametrize("engine", ["eager", "graph", "compile", "exact"])
@pytest.mark.parametrize("damage", ["one id", "late layer", "overflow"])
def test_logits_that_are_not_finite_fail_the_turn(damage: str, engine: str) -> None:
    target = trial.load(engine, "cuda")(broken(damage))
    for decoder in (
        Autoregressive(target, Settings()),
        PromptLookup(target, PromptLookupSettings()),
    ):
        with pytest.raises(FloatingPointError, match=r"(NaN|infinity) in the logits") as caught:
            run_turn(decoder, [1, 2, 3], Sampling(), 6, ())
        assert ("float16" if damage == "overflow" else "float32") in str(caught.value)
        assert "\n" not in str(caught.value)


def test_they_fail_the_stock_row() -> None:
    with pytest.raises(FloatingPointError, match="NaN in the logits"):
        run_stock(broken("one id"), [1, 2, 3], Sampling(), 0, 6, frozenset())


def test_a_failed_turn_leaves_the_next_one_alone() -> None:
    model = broken("one id")
    decoder = Autoregressive(EagerTarget(model), Settings())
    with pytest.raises(FloatingPointError):
        run_turn(decoder, [1, 2, 3], Sampling(), 6, ())
    model.lm_head.weight[7] = 0.0
    assert run_turn(decoder, [1, 2, 3], Sampling(), 6, ()).new_tokens == 6


def test_a_token_that_is_ruled_out_is_fine_and_a_row_of_them_is_not() -> None:
    check, low = LogitsCheck(torch.device("cpu")), -torch.inf
    check.see(torch.tensor([[1.0, low], [low, 3.0]]))
    check.finish(torch.float32)
    check.see(torch.tensor([[1.0, 2.0], [low, low]]))
    with pytest.raises(FloatingPointError, match="infinity"):
        check.finish(torch.float32)


def test_without_the_phase_clock_nothing_is_marked() -> None:
    decoder = Scripted([5], [1, 2], [3, EOS], before={1: nap}, phase="verify")
    turn = run_turn(decoder, [1, 2, 3], Sampling(), 8, (EOS,), clocked=False)
    assert (turn.phase_s, turn.steps, turn.draft_prefill_s, turn.warnings) == (None, None, None, [])
    assert turn.decode_s >= NAP
    assert turn.accept_lengths == [2, 2]
    assert turn_of(decoder).phase_s is not None
