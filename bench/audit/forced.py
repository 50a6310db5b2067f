"""Teacher-forced forwards: what the plain model would choose at each position of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bench.decoding.cache import cache_argument

CHUNK = 512  # tokens of a forward; bounds the memory of the logits


def chunks(model: Any, ids: Sequence[int], keep: int) -> Iterator[Tensor]:
    """The logits after each of the last `keep` ids, [m, V] a chunk."""
    first, end = len(ids) - keep, 0
    cache = {cache_argument(model): DynamicCache(config=model.config.get_text_config())}
    with torch.inference_mode():
        for part in torch.split(torch.tensor(ids, device=model.device), CHUNK):
            end += len(part)
            kept = min(len(part), max(end - first, 0))
            output = model(
                input_ids=part[None], use_cache=True, logits_to_keep=max(kept, 1), **cache
            )
            if kept:
                yield output.logits[0, -kept:]


def misses(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> int:
    """How many tokens of the answer are not the model's argmax after the tokens before them."""
    tokens = torch.tensor(answer, device=model.device)
    found = [part.argmax(dim=-1) for part in chunks(model, [*prompt, *answer[:-1]], len(answer))]
    return int((torch.cat(found) != tokens).sum())


def gaps(model: Any, ids: Sequence[int], keep: int, one: int, other: int) -> tuple[Tensor, Tensor]:
    """(float64 [keep], float32 [V]): the logit of the id `one` minus that of `other` after each of
    the last `keep` ids, and all logits after the last of them."""
    found, last = [], torch.empty(0)
    for part in chunks(model, ids, keep):
        pair = part[:, [one, other]].double()
        found.append(pair[:, 0] - pair[:, 1])
        last = part[-1].float()
    return torch.cat(found), last
