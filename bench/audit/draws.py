"""Draws answers with the samplers of a run and tests them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from bench import environment
from bench.audit import quality, sampling
from bench.audit.config import Depth
from bench.audit.redecoding import Redecoder
from bench.decoding.engines.registry import EAGER
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.errors import UsageError, one_line
from bench.files import canonical_sha256
from bench.records.runs import STOCK_ENGINE, Record, label
from bench.run.runner import Turn


class SamplerTests:
    """Tests the samplers of one target.

    Args:
        redecoder: builds the target and the methods in float32, where the distribution is exact.
        prompts: sha256 of a prompt -> its ids.
        depth: how many tokens to draw, and the seed.
    """

    def __init__(
        self, redecoder: Redecoder, prompts: Mapping[str, Sequence[int]], depth: Depth
    ) -> None:
        self._redecoder = redecoder
        self._prompts = prompts
        self._depth = depth

    def answers(self, record: Record) -> tuple[int, int]:
        """(answers to draw, tokens of each)."""
        tokens = min(sampling.TOKENS, record["max_new_tokens"])
        return -(-self._depth.draws // tokens), tokens

    def test(
        self,
        records: Sequence[Record],
        references: Mapping[str, Sequence[int]],
        advance: Callable[[], object],
    ) -> dict[str, Any]:
        """The test of the sampler that made `records`.

        Args:
            records: of one method, engine and sampling settings.
            references: sha256 of a prompt -> the reference's answer to it.
            advance: called after each answer that was drawn.
        """
        record, contexts = records[0], self._contexts(records, references)
        answers, _ = self.answers(record)
        facts: dict[str, Any] = {"dtype": "float32", "contexts": len(contexts), "answers": answers}
        facts["device"] = environment.device_name(str(self._redecoder.loaded.model.device))
        private = torch.Generator().manual_seed(self._depth.seed)
        transforms, turns = [], []
        try:
            stock = record["engine"] == STOCK_ENGINE
            target = self._redecoder.target(EAGER if stock else record["engine"], torch.float32)
            facts["engine"] = STOCK_ENGINE if stock else target.engine
            for number, context in zip(range(answers), cycle(contexts), strict=False):
                turn, probs, tokens = self._draw(record, target, context, number)
                transforms.append(sampling.transform(probs, tokens, private))
                turns.append(turn)
                advance()
        except UsageError:
            raise
        except Exception as error:
            return facts | {"p": None, "error": one_line(error)}
        return facts | asdict(sampling.fit(torch.cat(transforms))) | _per_step(turns)

    def _contexts(
        self, records: Sequence[Record], references: Mapping[str, Sequence[int]]
    ) -> list[tuple[int, ...]]:
        """The shortest prompts, each alone and followed by the reference's answer and itself again:
        repeated text is easy to draft, so that drafts of every method are sometimes accepted."""
        prompts = {r["prompt_sha256"]: tuple(self._prompts[r["prompt_sha256"]]) for r in records}
        shortest = sorted(prompts.items(), key=lambda item: (len(item[1]), item))
        chosen = dict(shortest[: sampling.PROMPTS])
        twice = [
            (*ids, *references.get(sha256, ())[: sampling.TOKENS], *ids)
            for sha256, ids in chosen.items()
        ]
        config = self._redecoder.loaded.model.config.get_text_config()
        room = config.max_position_embeddings - sampling.TOKENS
        return [*chosen.values(), *(ids for ids in twice if len(ids) <= room)]

    def _draw(
        self, record: Record, target: TargetModel, prompt: Sequence[int], number: int
    ) -> tuple[Turn, Tensor, Tensor]:
        """An answer, the exact distribution of each of its n tokens [n, V], and their ids [n]."""
        name = label(record["method"], record["params"])
        temperature, top_k, top_p = (record[n] for n in ("temperature", "top_k", "top_p"))
        seed = int(canonical_sha256([self._depth.seed, name, temperature, number])[:12], 16)
        generator = torch.Generator(target.device).manual_seed(seed)
        settings = Sampling(temperature, top_k or 0, top_p or 1.0, generator)
        _, budget = self.answers(record)
        turn = self._redecoder.turn(name, target, prompt, budget, settings, seed)
        logits = quality.forced_logits(target.model, prompt, turn.output_ids)
        tokens = torch.tensor(turn.output_ids, device=logits.device)
        return turn, settings.probs(logits), tokens


def _per_step(turns: Sequence[Turn]) -> dict[str, Any]:
    """Tokens and drafted nodes for each verify step: whether drafts were accepted and rejected."""
    lengths = [length for turn in turns for length in turn.accept_lengths or ()]
    if not lengths:
        return {"accepted_length": None, "nodes_per_step": None}
    drafted = sum(turn.drafted or 0 for turn in turns)
    return {
        "accepted_length": sum(lengths) / len(lengths),
        "nodes_per_step": drafted / len(lengths),
    }
