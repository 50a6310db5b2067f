"""One target model under audit: its records beside the reference's, what of them is decoded again,
and its samplers against its own law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from bench.audit import outputs as audit_outputs
from bench.audit import quality as audit_quality
from bench.audit import sampling as audit_sampling
from bench.audit.outputs import DEFECT, ROW, TIE, Difference, Divergence, Row, row_of
from bench.audit.redecoding import Redecoder
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.errors import UsageError
from bench.records.runs import REFERENCE, STOCK_ENGINE, Record, digest, label
from bench.run.methods import Method
from bench.run.runner import Turn
from bench.statistics import holm
from bench.targets.registry import Loaded

EAGER = "eager"
EQUAL = "equal"

Item = TypeVar("Item")
Entry = dict[str, Any]  # a row of audit.json
Prompts = Mapping[str, Sequence[int]]
"""sha256 of a prompt -> its ids."""


@dataclass(frozen=True)
class Depth:
    """How far an audit goes beyond comparing what was recorded; a run's own goes no further.

    Attributes:
        reruns: diverging prompts of each half-precision row to decode again in float32.
        draws: tokens to draw with each sampler.
        seed: of the draws.
    """

    reruns: int = 0
    draws: int = 0
    seed: int = 0


SHALLOW = Depth()


class Auditor:
    """Audits the records of one target.

    Args:
        loaded: the target in the run's precision.
        methods: of the run; they are built when something has to be decoded again.
        prompts: those that could be found; records of others are left out and counted.
        on: the target on an engine, or on eager where that cannot run here.
        depth: how far to go.
    """

    def __init__(
        self,
        loaded: Loaded,
        methods: Sequence[Method],
        prompts: Prompts,
        on: Callable[[str], TargetModel],
        depth: Depth = SHALLOW,
    ) -> None:
        self.name = loaded.target.name
        self.dtype: torch.dtype = loaded.model.dtype
        self.loaded = loaded
        self.prompts = prompts
        self.depth = depth
        self._again = Redecoder(loaded, methods, on)
        self._entries: dict[Row, Entry] = {}

    def rows(self, records: Sequence[Record]) -> list[Entry]:
        """The audit's rows of this model.

        UsageError where something has to be decoded again and a method's weights are not those of
        the records.
        """
        good = [r for r in records if r["model"] == self.name and r["status"] == "ok"]
        known = [record for record in good if record["prompt_sha256"] in self.prompts]
        self._again.expect(good)
        if self.depth != SHALLOW:
            self._again.check()
        diverging = self._compare(known)
        if self.dtype != torch.float32 and self.depth.reruns:
            self._rerun(diverging)
        if self.depth.draws:
            self._sample(known)
        self._judge(known)
        for record in good:
            if record["prompt_sha256"] not in self.prompts and record["method"] != REFERENCE:
                entry = self._entry(record)
                entry["left_out"] = entry.get("left_out", 0) + 1
        return list(self._entries.values())

    def _entry(self, record: Record) -> Entry:
        """The record's row."""
        row = row_of(record)
        counts = dict.fromkeys(("compared", "equal", "ties", "defects"), 0)
        blank = {**dict(zip(ROW, row, strict=True)), **counts, "examples": []}
        return self._entries.setdefault(row, blank)

    # What was recorded

    def _compare(self, records: Sequence[Record]) -> dict[Row, list[tuple[Difference, Divergence]]]:
        """Greedy outputs of lossless methods; what differs."""
        diverging: dict[Row, list[tuple[Difference, Divergence]]] = {}
        explained: dict[tuple[Any, ...], Divergence] = {}
        pairs = list(audit_outputs.differences(records))
        unequal = {_place(found) for _, found in pairs if found is not None}
        with self._bar("differences", len(unequal)) as bar:
            for record, found in pairs:
                entry = self._entry(record)
                entry["compared"] += 1
                if found is None:
                    entry["equal"] += 1
                    continue
                place = _place(found)
                if place not in explained:  # repeats of one turn differ alike
                    explained[place] = self._explain(found)
                    bar.update()
                divergence = explained[place]
                entry["ties" if divergence.verdict == TIE else "defects"] += 1
                entry["examples"].append(self._example(record, divergence))
                diverging.setdefault(row_of(record), []).append((found, divergence))
        return diverging

    def _explain(self, found: Difference) -> Divergence:
        target = self._again.target(_engine(found), self.dtype)
        ids, expected = found.record["output_ids"], found.reference["output_ids"]
        return self._classify(target, found.record, ids, expected)

    def _classify(
        self, target: TargetModel, record: Record, ids: list[int], expected: list[int]
    ) -> Divergence:
        def agree() -> bool:
            own, reference = self._both(record, EAGER, torch.float64)
            return own == reference

        prompt = self.prompts[record["prompt_sha256"]]
        return audit_outputs.classify(target, prompt, ids, expected, agree)

    def _both(self, record: Record, engine: str, dtype: torch.dtype) -> tuple[list[int], list[int]]:
        """The method's and the reference's greedy answers to the record's prompt, decoded again."""
        prompt, budget = self.prompts[record["prompt_sha256"]], record["max_new_tokens"]
        own, reference = (
            self._again.answer(name, engine, dtype, prompt, budget)
            for name in (label(record["method"], record["params"]), REFERENCE)
        )
        return own, reference

    def _example(self, record: Record, divergence: Divergence) -> dict[str, Any]:
        place = {name: record[name] for name in ("prompt_id", "turn", "repeat")}
        texts = {
            "token_text": self._text(divergence.token),
            "reference_token_text": self._text(divergence.reference_token),
        }
        return {**place, **asdict(divergence), **texts}

    def _text(self, token: int | None) -> str | None:
        return None if token is None else str(self.loaded.tokenizer.decode([token]))

    # Diverging prompts in float32

    def _rerun(self, diverging: Mapping[Row, Sequence[tuple[Difference, Divergence]]]) -> None:
        """Decodes anew what differed in half precision, the largest gaps first: in float32 the
        method and the reference must agree."""
        chosen: list[tuple[Entry, Difference]] = []
        for row, found in diverging.items():
            prompts: dict[str, Difference] = {}
            for difference, _ in sorted(found, key=lambda one: _doubt(one[1]), reverse=True):
                prompts.setdefault(difference.record["prompt_sha256"], difference)
            counts = dict.fromkeys(("rerun", EQUAL, "ties", "defects", "failed"), 0)
            reruns: Entry = {"prompts": len(prompts), "limit": self.depth.reruns, **counts}
            self._entries[row]["reruns"] = reruns | {"found": []}
            reruns = self._entries[row]["reruns"]
            chosen += [(reruns, one) for one in islice(prompts.values(), self.depth.reruns)]
        for reruns, difference in self._each("reruns in float32", chosen):
            result = self._in_float32(difference)
            reruns["rerun"] += 1
            reruns[{TIE: "ties", DEFECT: "defects"}.get(result["verdict"], result["verdict"])] += 1
            if result["verdict"] != EQUAL:
                reruns["found"].append(result)

    def _in_float32(self, difference: Difference) -> dict[str, Any]:
        """Where the prompt is from, and what came of it."""
        record, engine = difference.record, _engine(difference)
        place = {name: record[name] for name in ("prompt_id", "turn")}
        try:
            ids, expected = self._both(record, engine, torch.float32)
            if ids == expected:
                return place | {"verdict": EQUAL}
            target = self._again.target(engine, torch.float32)
            return place | asdict(self._classify(target, record, ids, expected))
        except UsageError:
            raise
        except Exception as error:  # out of memory, say: the other prompts go on
            return place | {"verdict": "failed", "error": _reason(error)}

    # Samplers

    def _sample(self, records: Sequence[Record]) -> None:
        """A test for each lossless sampler, shared by its rows of all question sets."""
        samplers: dict[tuple[Any, ...], list[Record]] = {}
        for record in records:
            if record["lossless"] and record["temperature"] > 0:
                model, engine, dtype, _, name, temperature = row_of(record)
                settings = (record["top_k"], record["top_p"], record["max_new_tokens"])
                place = (model, engine, dtype, name, temperature, *settings)
                samplers.setdefault(place, []).append(record)
        total = sum(self._answers(group[0])[0] for group in samplers.values())
        said = {r["prompt_sha256"]: r["output_ids"] for r in records if r["method"] == REFERENCE}
        with self._bar("drawn answers", total) as bar:
            for group in samplers.values():
                test = self._test(group[0], self._contexts(group, said), bar)
                for record in group:
                    self._entry(record)["sampling"] = test

    def _answers(self, record: Record) -> tuple[int, int]:
        """(answers to draw, tokens of each)."""
        tokens = min(audit_sampling.TOKENS, record["max_new_tokens"])
        return -(-self.depth.draws // tokens), tokens

    def _contexts(
        self, group: Sequence[Record], said: Mapping[str, Sequence[int]]
    ) -> list[tuple[int, ...]]:
        """The shortest prompts, each alone and with the reference's answer and itself behind it:
        what repeats is easy to draft, so that drafts of every method are accepted at times."""
        prompts = {r["prompt_sha256"]: tuple(self.prompts[r["prompt_sha256"]]) for r in group}
        shortest = sorted(prompts.items(), key=lambda item: (len(item[1]), item))
        chosen = dict(shortest[: audit_sampling.PROMPTS])
        twice = [
            (*ids, *said.get(sha256, ())[: audit_sampling.TOKENS], *ids)
            for sha256, ids in chosen.items()
        ]
        config = self.loaded.model.config.get_text_config()
        room = config.max_position_embeddings - audit_sampling.TOKENS
        return [*chosen.values(), *(ids for ids in twice if len(ids) <= room)]

    def _test(
        self, record: Record, contexts: Sequence[tuple[int, ...]], bar: tqdm[Any]
    ) -> dict[str, Any]:
        """Draws answers in float32, where the law is exact, and tests their tokens."""
        answers, _ = self._answers(record)
        facts = {"dtype": "float32", "contexts": len(contexts), "answers": answers}
        private = torch.Generator().manual_seed(self.depth.seed)
        places, turns = [], []
        try:
            stock = record["engine"] == STOCK_ENGINE
            target = self._again.target(EAGER if stock else record["engine"], torch.float32)
            facts["engine"] = STOCK_ENGINE if stock else target.engine
            for number, context in zip(range(answers), cycle(contexts), strict=False):
                turn, probs, tokens = self._draw(record, target, context, number)
                places.append(audit_sampling.transform(probs, tokens, private))
                turns.append(turn)
                bar.update()
        except UsageError:
            raise
        except Exception as error:
            return facts | {"p": None, "error": _reason(error)}
        return facts | asdict(audit_sampling.fit(torch.cat(places))) | _steps(turns)

    def _draw(
        self, record: Record, target: TargetModel, prompt: Sequence[int], number: int
    ) -> tuple[Turn, Tensor, Tensor]:
        """An answer, the law of each of its n tokens [n, V], and their ids [n]."""
        name = label(record["method"], record["params"])
        temperature, top_k, top_p = (record[n] for n in ("temperature", "top_k", "top_p"))
        seed = int(digest([self.depth.seed, name, temperature, number])[:12], 16)
        generator = torch.Generator(target.device).manual_seed(seed)
        sampling = Sampling(temperature, top_k or 0, top_p or 1.0, generator)
        _, budget = self._answers(record)
        turn = self._again.turn(name, target, prompt, budget, sampling, seed)
        logits = audit_quality.forced_logits(target.model, prompt, turn.output_ids)
        tokens = torch.tensor(turn.output_ids, device=logits.device)
        return turn, sampling.probs(logits), tokens

    # Lossy methods

    def _judge(self, records: Sequence[Record]) -> None:
        """Agreement and perplexity of methods that change the output by design."""
        lossy: dict[Row, list[tuple[Record, Record]]] = {}
        for record, rivals in audit_outputs.beside_reference(records):
            if not record["lossless"]:
                lossy.setdefault(row_of(record), []).append((record, rivals[0]))
        answers = {_answer(record) for pairs in lossy.values() for pair in pairs for record in pair}
        surprises = {
            (prompt, ids): audit_quality.surprise(self.loaded.model, self.prompts[prompt], ids)
            for prompt, ids in self._each("perplexities", sorted(answers))
        }
        for pairs in lossy.values():
            figures = audit_quality.quality(pairs, lambda record: surprises[_answer(record)])
            self._entry(pairs[0][0]).update(figures)

    # Progress

    def _bar(self, what: str, count: int) -> tqdm[Any]:
        disable = True if count == 0 else None  # None: shown on a terminal only
        return tqdm(total=count, desc=f"{self.name}: {what}", disable=disable)

    def _each(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        with self._bar(what, len(items)) as bar:
            for item in items:
                yield item
                bar.update()


def settle(entries: Iterable[Entry]) -> None:
    """Corrects the distribution tests of all rows together, and says which are passed."""
    found = (entry["sampling"] for entry in entries if "sampling" in entry)
    tests = list({id(test): test for test in found if test["p"] is not None}.values())
    for test, corrected in zip(tests, holm([t["p"] for t in tests]).tolist(), strict=True):
        test["p_holm"] = corrected
        test["level"] = audit_sampling.LEVEL
        test["passed"] = corrected >= audit_sampling.LEVEL


def _place(found: Difference) -> tuple[Any, ...]:
    """What is explained once."""
    ids, expected = found.record["output_ids"], found.reference["output_ids"]
    end = None if found.position is None else found.position + 1
    tokens = (*ids[:end][-1:], *expected[:end][-1:])
    return (row_of(found.record), found.record["prompt_sha256"], found.position, tokens)


def _doubt(divergence: Divergence) -> float:
    """The larger, the sooner it is looked into."""
    return float("inf") if divergence.gap is None else divergence.gap


def _engine(found: Difference) -> str:
    """The engine to decode on: the row's; for the stock row that of the reference beside it."""
    stock = found.record["engine"] == STOCK_ENGINE
    return str((found.reference if stock else found.record)["engine"])


def _answer(record: Record) -> tuple[str, tuple[int, ...]]:
    return record["prompt_sha256"], tuple(record["output_ids"])


def _steps(turns: Sequence[Turn]) -> dict[str, Any]:
    """Whether drafts were accepted and refused at all: tokens and drafted nodes a verify step."""
    lengths = [length for turn in turns for length in turn.accept_lengths or ()]
    if not lengths:
        return {"accepted_length": None, "nodes_per_step": None}
    drafted = sum(turn.drafted or 0 for turn in turns)
    return {
        "accepted_length": sum(lengths) / len(lengths),
        "nodes_per_step": drafted / len(lengths),
    }


def _reason(error: Exception) -> str:
    """One line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
