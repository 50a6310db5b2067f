"""Runs and times turns: the only module that times an answer or decides when it ends."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bench.decoding.decoder import Block, Decoder
from bench.decoding.finite import LogitsCheck
from bench.decoding.phases import PHASES, Phase
from bench.decoding.sampling import Sampling

CLOCK_TOLERANCE = 0.01  # share of decode_s by which phases and the host's clock may disagree


@dataclass(frozen=True)
class Turn:
    """The figures of one answer, with the names and units of records; those of the phase clock are
    None where it did not run. `steps` do not say where a step ends in the text; the recorder adds
    that."""

    output_ids: list[int]
    finish: str
    accept_lengths: list[int] | None
    prefill_s: float
    decode_s: float
    drafted: int | None
    draft_prefill_s: float | None = None
    phase_s: dict[str, float] | None = None
    steps: list[dict[str, Any]] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def new_tokens(self) -> int:
        return len(self.output_ids)

    def figures(self) -> dict[str, Any]:
        return {**asdict(self), "new_tokens": self.new_tokens}


class StopRule:
    """Ends an answer: at the first EOS, which counts, or at the token budget.

    Attributes:
        ids: the answer so far.
        finish: "eos" or "length" once the answer has ended, None before.
    """

    def __init__(self, max_new_tokens: int, eos_ids: Collection[int]) -> None:
        self._budget = max_new_tokens
        self._eos = frozenset(eos_ids)
        self.ids: list[int] = []
        self.finish: str | None = None

    def take(self, block: Sequence[int]) -> int:
        """Append the part of `block` that belongs to the answer; returns its length."""
        if not block:
            raise RuntimeError("the decoder emitted an empty block")
        before = len(self.ids)
        for token in block:
            self.ids.append(token)
            if token in self._eos:
                self.finish = "eos"
            elif len(self.ids) == self._budget:
                self.finish = "length"
            if self.finish:
                break
        return len(self.ids) - before


def run_turn(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    max_new_tokens: int,
    eos_ids: Collection[int],
    clocked: bool = True,
) -> Turn:
    """Decode one answer and time it. The decoder's exceptions are not caught; FloatingPointError
    where a logit of the target is not finite.

    `clocked`: with the phase clock, whose marks cost time; without it, phases, steps and the
    draft's own prefill are None.
    """
    target, clock = decoder.target, decoder.target.clock
    clock.quiet = not clocked
    target.reserve(len(prompt_ids) + max_new_tokens + decoder.width)
    stop = StopRule(max_new_tokens, eos_ids)
    lengths: list[int] = []
    drafts: list[tuple[int, int | None]] = []  # for each step: nodes, levels
    target.logits_check.start()
    with torch.inference_mode():
        _quiesce(target.device)
        started = time.perf_counter()
        clock.start()
        blocks = decoder.decode(prompt_ids, sampling)
        stop.take(_next(blocks).ids)
        draft_prefill_s = clock.stop()["draft"]  # waits for the GPU: none of it leaks into the loop
        first = time.perf_counter()
        clock.start()
        while stop.finish is None:
            block = _next(blocks)
            clock.step()
            lengths.append(stop.take(block.ids))
            drafts.append((block.drafted, block.depth))
        last = time.perf_counter()
        phase_s = clock.stop()
    target.logits_check.finish(target.dtype)
    turn = Turn(
        output_ids=stop.ids,
        finish=stop.finish,
        accept_lengths=lengths,
        prefill_s=first - started,
        decode_s=last - first if lengths else 0.0,
        drafted=sum(nodes for nodes, _ in drafts),
    )
    if not clocked:
        return turn
    return replace(
        turn,
        draft_prefill_s=draft_prefill_s,
        phase_s={str(phase): seconds for phase, seconds in phase_s.items()},
        steps=[
            {"drafted": nodes, "depth": depth, "us": us}
            for (nodes, depth), us in zip(drafts, _microseconds(clock.steps()), strict=True)
        ],
        warnings=_clock_warnings(sum(phase_s.values()), turn.decode_s) if lengths else [],
    )


def _microseconds(steps: Iterable[Mapping[Phase, float]]) -> Iterator[list[int]]:
    """Each step's [draft, verify, accept, other] in whole microseconds; the cumulative sums are
    rounded, so that rounding errors do not add up."""
    seconds, rounded = [0.0] * len(PHASES), [0] * len(PHASES)
    for step in steps:
        seconds = [sum_ + step[phase] for sum_, phase in zip(seconds, PHASES, strict=True)]
        before, rounded = rounded, [round(1e6 * sum_) for sum_ in seconds]
        yield [now - then for now, then in zip(rounded, before, strict=True)]


def _next(blocks: Iterator[Block]) -> Block:
    block = next(blocks, None)
    if block is None:
        raise RuntimeError("the decoder ended by itself; only the runner ends an answer")
    return block


def run_stock(
    model: Any,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    seed: int,
    max_new_tokens: int,
    eos_ids: Collection[int],
) -> Turn:
    """`model.generate` as transformers ships it; prefill is timed by a separate one-token call.

    It draws from torch's global generator, which is seeded and restored.
    """
    stop = StopRule(max_new_tokens, eos_ids)
    prompt = torch.tensor([prompt_ids], device=model.device)
    check = LogitsCheck(model.device)
    watch = LogitsProcessorList([_Watch(check)])

    def generate(tokens: int) -> tuple[list[int], float]:
        config = _stock_config(model, sampling, tokens, eos_ids)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            _quiesce(model.device)
            started = time.perf_counter()
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=watch,
            )
            ids = output[0, len(prompt_ids) :].tolist()
            return ids, time.perf_counter() - started

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        _, prefill_s = generate(1)
        ids, total_s = generate(max_new_tokens)
    finally:
        model.generation_config = own
    check.finish(model.dtype)
    stop.take(ids)
    if stop.finish is None:
        raise RuntimeError(f"generate stopped after {len(ids)} tokens without EOS")
    return Turn(
        output_ids=stop.ids,
        finish=stop.finish,
        accept_lengths=None,
        prefill_s=prefill_s,
        decode_s=max(total_s - prefill_s, 0.0),
        drafted=None,
    )


class _Watch(LogitsProcessor):
    """Shows the logits of `generate` to a check, and changes none."""

    def __init__(self, check: LogitsCheck) -> None:
        self._check = check

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._check.see(scores)
        return scores


def _stock_config(
    model: Any, sampling: Sampling, max_new_tokens: int, eos_ids: Collection[int]
) -> GenerationConfig:
    """The given settings, without the checkpoint's defaults."""
    eos = sorted(eos_ids)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": not sampling.greedy,
        "repetition_penalty": 1.0,
    }
    if not sampling.greedy:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        settings["top_k"] = sampling.top_k
    pad = model.config.get_text_config().pad_token_id
    if eos:
        settings |= {"eos_token_id": eos, "pad_token_id": eos[0] if pad is None else pad}
    return GenerationConfig(**settings)


def _quiesce(device: torch.device) -> None:
    """Before a clock starts: wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock_warnings(phases_s: float, decode_s: float) -> list[str]:
    if abs(phases_s - decode_s) <= CLOCK_TOLERANCE * decode_s:
        return []
    return [f"phases add up to {phases_s:.6f} s, the host's clock says {decode_s:.6f} s"]
