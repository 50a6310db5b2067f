"""Quality of a lossy method's answers: agreement with the reference, and perplexity under the
target, for the method and for the reference."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from bench.audit.outputs import first
from bench.records.runs import Record

Surprise = Callable[[Record], float]
"""A record -> the negative log-probability of its answer under the target, in nats."""


def quality(pairs: Sequence[tuple[Record, Record]], surprise: Surprise) -> dict[str, Any]:
    """A row's figures, from pairs of its record and the reference's of the same turn and repeat.

    agreement: mean share of an answer up to the first id that differs, of the longer answer.
    equal_answers: share of answers with all ids equal.
    reference_agreement: the agreement between the reference's own repeats of one turn, the most
        that sampling allows by chance; None without a second repeat.
    perplexity, reference_perplexity: exp of the mean negative log-probability of an answer's
        tokens under the target at temperature 1, over all tokens.
    answers: how many were compared.
    """
    answers = [(one["output_ids"], other["output_ids"]) for one, other in pairs]
    own = [share(*both) for both in _repeats([reference for _, reference in pairs])]
    return {
        "answers": len(pairs),
        "agreement": _mean([share(*both) for both in answers]),
        "equal_answers": _mean([float(one == other) for one, other in answers]),
        "reference_agreement": _mean(own) if own else None,
        "perplexity": _perplexity([one for one, _ in pairs], surprise),
        "reference_perplexity": _perplexity([other for _, other in pairs], surprise),
    }


def share(ids: Sequence[int], expected: Sequence[int]) -> float:
    """Length of the common prefix of two answers, as a share of the longer one."""
    position = first(ids, expected)
    common = min(len(ids), len(expected)) if position is None else position
    return common / max(len(ids), len(expected))


def forced_logits(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """[n, V]: the model's logits of each of the n answer tokens, teacher-forced."""
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    with torch.inference_mode():
        output = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer))
    logits: Tensor = output.logits[0]
    return logits


def surprise(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The answer's negative log-probability, in nats."""
    logprobs = forced_logits(model, prompt, answer).float().log_softmax(dim=-1)
    tokens = torch.tensor(answer, device=logprobs.device)
    return -float(logprobs.gather(-1, tokens[:, None]).double().sum())


def _repeats(references: Sequence[Record]) -> Iterator[tuple[list[int], list[int]]]:
    turns: dict[tuple[Any, ...], dict[int, list[int]]] = defaultdict(dict)
    for record in references:
        turn = (record["prompt_id"], record["turn"], record["prompt_sha256"])
        turns[turn][record["repeat"]] = record["output_ids"]
    for repeats in turns.values():
        yield from combinations(repeats.values(), 2)


def _perplexity(records: Sequence[Record], surprise: Surprise) -> float:
    total = math.fsum(surprise(record) for record in records)
    return math.exp(total / sum(len(record["output_ids"]) for record in records))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
