"""The audit of one target model: recorded outputs compared with the reference's, what differs
decoded again, tokens compared with the float32 argmax, samplers tested, lossy methods judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import torch

from bench import environment
from bench.audit import argmax, forced, outputs, quality
from bench.audit.config import SHALLOW, Depth
from bench.audit.draws import SamplerTests
from bench.audit.outputs import (
    DEFECT,
    ROW_FIELDS,
    TIE,
    UNEXPLAINED,
    Difference,
    Divergence,
    RowKey,
    row_key,
)
from bench.audit.redecoding import Redecoder
from bench.audit.results import AuditRow
from bench.decoding.engines import trial as engines
from bench.decoding.engines.registry import EAGER
from bench.decoding.target import TargetModel
from bench.errors import UsageError, one_line
from bench.progress import Progress
from bench.records.runs import REFERENCE, STOCK_ENGINE, Record, label
from bench.run.methods import Method
from bench.targets.registry import Loaded

EQUAL = "equal"
COUNTED = {TIE: "ties", DEFECT: "defects"}  # verdicts that are counted under another name

Item = TypeVar("Item")
Diverging: TypeAlias = dict[RowKey, list[tuple[Difference, Divergence]]]


class Auditor:
    """Audits the records of one target.

    Args:
        loaded: the target in the run's precision.
        methods: of the run; they are built when something has to be decoded again.
        prompts: sha256 -> ids of the prompts that could be found; records of others are counted.
        on_engine: the target on an engine, or on eager where that cannot run here.
        depth: how far to go.
    """

    def __init__(
        self,
        loaded: Loaded,
        methods: Sequence[Method],
        prompts: Mapping[str, Sequence[int]],
        on_engine: Callable[[str], TargetModel],
        depth: Depth = SHALLOW,
    ) -> None:
        self.name = loaded.target.name
        self.dtype: torch.dtype = loaded.model.dtype
        self.loaded = loaded
        self.prompts = prompts
        self.depth = depth
        self.device_name = environment.device_name(str(loaded.model.device))
        self._half = self.dtype != torch.float32
        self._redecoder = Redecoder(loaded, methods, on_engine)
        self._rows: dict[RowKey, AuditRow] = {}

    def rows(self, records: Sequence[Record]) -> list[AuditRow]:
        """The audit's rows of this model.

        UsageError where something has to be decoded again and a method's weights are not those of
        the records.
        """
        good = [r for r in records if r["model"] == self.name and r["status"] == "ok"]
        known = [record for record in good if record["prompt_sha256"] in self.prompts]
        self._redecoder.expect(good)
        if self.depth != SHALLOW:
            self._redecoder.check()
        diverging = self._compare(known)
        if self._half and self.depth.answers != 0:
            self._compare_shares(known)
        if self._half and self.depth.reruns:
            self._rerun(diverging)
        if self.depth.draws:
            self._test_samplers(known)
        self._judge_lossy(known)
        self._count_left_out(good)
        return list(self._rows.values())

    def _row(self, record: Record) -> AuditRow:
        """The record's row, which is added where it is new."""
        key = row_key(record)
        counts = dict.fromkeys(("compared", "equal", "ties", "defects"), 0)
        blank = {**dict(zip(ROW_FIELDS, key, strict=True)), "devices": [], **counts, "examples": []}
        row = self._rows.setdefault(key, blank)
        row["devices"] = sorted({*row["devices"], record["device"]})
        return row

    def _count_left_out(self, records: Sequence[Record]) -> None:
        for record in records:
            if record["prompt_sha256"] not in self.prompts and record["method"] != REFERENCE:
                row = self._row(record)
                row["left_out"] = row.get("left_out", 0) + 1

    # Comparing what was recorded

    def _compare(self, records: Sequence[Record]) -> Diverging:
        """Compares the greedy outputs of lossless methods; returns those that differ."""
        diverging: Diverging = {}
        explained: dict[tuple[Any, ...], Divergence] = {}
        pairs = list(outputs.differences(records))
        unequal = {_explanation_key(found) for _, found in pairs if found is not None}
        with self._bar("differences", len(unequal)) as bar:
            for record, found in pairs:
                row = self._row(record)
                row["compared"] += 1
                if found is None:
                    row["equal"] += 1
                    continue
                key = _explanation_key(found)
                if key not in explained:
                    explained[key] = self._explain(found)
                    bar.update()
                divergence = explained[key]
                name = COUNTED.get(divergence.verdict, divergence.verdict)
                row[name] = row.get(name, 0) + 1
                row["examples"].append(self._example(record, divergence))
                diverging.setdefault(row_key(record), []).append((found, divergence))
        for row in self._rows.values():
            row["examples"].sort(key=_gap, reverse=True)
        return diverging

    def _explain(self, found: Difference) -> Divergence:
        ids, expected = found.record["output_ids"], found.reference["output_ids"]
        promised = _promises_equality(found.record["engine"])
        if self._half and self.depth.answers == 0:
            return outputs.without_logits(ids, expected, DEFECT if promised else UNEXPLAINED)
        divergence = self._classify(self.dtype, found.record, ids, expected)
        return replace(divergence, verdict=DEFECT) if promised else divergence

    def _classify(
        self, dtype: torch.dtype, record: Record, ids: list[int], expected: list[int]
    ) -> Divergence:
        """`dtype`: the precision that gave the ids."""

        def agree() -> bool:
            own, reference = self._decode_both(record, EAGER, torch.float64)
            return own == reference

        prompt = self.prompts[record["prompt_sha256"]]
        model, exact = self._redecoder.model(dtype), self._redecoder.model(torch.float32)
        return outputs.classify(model, exact, prompt, ids, expected, agree)

    def _decode_both(
        self, record: Record, engine: str, dtype: torch.dtype
    ) -> tuple[list[int], list[int]]:
        """The method's and the reference's greedy answers to the record's prompt, decoded again."""
        prompt, budget = self.prompts[record["prompt_sha256"]], record["max_new_tokens"]
        own, reference = (
            self._redecoder.answer(name, engine, dtype, prompt, budget)
            for name in (label(record["method"], record["params"]), REFERENCE)
        )
        return own, reference

    def _example(self, record: Record, divergence: Divergence) -> dict[str, Any]:
        turn = {name: record[name] for name in ("prompt_id", "turn", "repeat")}
        texts = {
            "token_text": self._text(divergence.token),
            "reference_token_text": self._text(divergence.reference_token),
        }
        return {**turn, **asdict(divergence), **texts}

    def _text(self, token: int | None) -> str | None:
        return None if token is None else str(self.loaded.tokenizer.decode([token]))

    # Comparing every token with the float32 argmax

    def _compare_shares(self, records: Sequence[Record]) -> None:
        """The shares of each greedy row's tokens that are not the argmax, and the reference's."""
        rows: dict[RowKey, dict[str, list[tuple[Record, Record]]]] = {}
        for record, references in outputs.with_references(records):
            if record["lossless"] and record["temperature"] == 0:
                by_prompt = rows.setdefault(row_key(record), {})
                by_prompt.setdefault(record["prompt_sha256"], []).append((record, references[0]))
        rows = {key: _spread(found, self.depth.answers) for key, found in rows.items()}
        answers = {
            _answer(record)
            for by_prompt in rows.values()
            for pairs in by_prompt.values()
            for pair in pairs
            for record in pair
        }
        model = self._redecoder.model(torch.float32)
        missed = {
            (prompt, ids): forced.misses(model, self.prompts[prompt], ids)
            for prompt, ids in self._each("float32 forwards", sorted(answers))
        }
        for key, by_prompt in rows.items():
            self._rows[key]["argmax"] = argmax.compare(
                _counts(pairs, missed) for pairs in by_prompt.values()
            )

    # Decoding diverging prompts again in float32

    def _rerun(self, diverging: Diverging) -> None:
        """Decodes half-precision differences again, the largest gaps first: in float32 the method
        and the reference must agree."""
        chosen: list[tuple[dict[str, Any], Difference]] = []
        for key, found in diverging.items():
            by_prompt: dict[str, Difference] = {}
            for difference, _ in sorted(
                found, key=lambda pair: _gap(asdict(pair[1])), reverse=True
            ):
                by_prompt.setdefault(difference.record["prompt_sha256"], difference)
            counts = dict.fromkeys(("rerun", EQUAL, "ties", "defects", "failed"), 0)
            reruns: dict[str, Any] = {"prompts": len(by_prompt), "limit": self.depth.reruns}
            reruns |= {**counts, "engine": None, "device": self.device_name, "found": []}
            self._rows[key]["reruns"] = reruns
            chosen += [(reruns, one) for one in islice(by_prompt.values(), self.depth.reruns)]
        for reruns, difference in self._each("reruns in float32", chosen):
            result = self._in_float32(difference)
            reruns["rerun"] += 1
            reruns["engine"] = result.pop("engine", reruns["engine"])
            reruns[COUNTED.get(result["verdict"], result["verdict"])] += 1
            if result["verdict"] != EQUAL:
                reruns["found"].append(result)

    def _in_float32(self, difference: Difference) -> dict[str, Any]:
        """The turn, and the verdict on it."""
        record, engine = difference.record, _engine(difference)
        turn = {name: record[name] for name in ("prompt_id", "turn")}
        try:
            target = self._redecoder.target(engine, torch.float32)  # on eager where it must be
            stock = record["engine"] == STOCK_ENGINE
            turn["engine"] = STOCK_ENGINE if stock else target.engine
            ids, expected = self._decode_both(record, engine, torch.float32)
            if ids == expected:
                return turn | {"verdict": EQUAL}
            return turn | asdict(self._classify(torch.float32, record, ids, expected))
        except UsageError:
            raise
        except Exception as error:  # for example out of memory: the other prompts still run
            return turn | {"verdict": "failed", "error": one_line(error)}

    # Testing samplers

    def _test_samplers(self, records: Sequence[Record]) -> None:
        """A test for each lossless sampler, shared by its rows of all question sets."""
        samplers: dict[tuple[Any, ...], list[Record]] = {}
        for record in records:
            if record["lossless"] and record["temperature"] > 0:
                model, engine, dtype, _, name, temperature = row_key(record)
                settings = (record["top_k"], record["top_p"], record["max_new_tokens"])
                key = (model, engine, dtype, name, temperature, *settings)
                samplers.setdefault(key, []).append(record)
        tests = SamplerTests(self._redecoder, self.prompts, self.depth)
        total = sum(tests.answers(group[0])[0] for group in samplers.values())
        references = {
            r["prompt_sha256"]: r["output_ids"] for r in records if r["method"] == REFERENCE
        }
        with self._bar("drawn answers", total) as bar:
            for group in samplers.values():
                test = tests.test(group, references, bar.update)
                for record in group:
                    self._row(record)["sampling"] = test

    # Judging lossy methods

    def _judge_lossy(self, records: Sequence[Record]) -> None:
        """Agreement and perplexity of methods that change the output by design."""
        lossy: dict[RowKey, list[tuple[Record, Record]]] = {}
        for record, references in outputs.with_references(records):
            if not record["lossless"]:
                lossy.setdefault(row_key(record), []).append((record, references[0]))
        answers = {_answer(record) for pairs in lossy.values() for pair in pairs for record in pair}
        surprises = {
            (prompt, ids): quality.surprise(self.loaded.model, self.prompts[prompt], ids)
            for prompt, ids in self._each("perplexities", sorted(answers))
        }
        for pairs in lossy.values():
            figures = quality.quality(pairs, lambda record: surprises[_answer(record)])
            self._row(pairs[0][0]).update(figures)

    # Progress

    def _bar(self, what: str, count: int) -> Progress:
        return Progress(f"{self.name}: {what}", count, "step")

    def _each(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        with self._bar(what, len(items)) as bar:
            for item in items:
                yield item
                bar.update()


def _explanation_key(found: Difference) -> tuple[Any, ...]:
    """Equal for differences with one explanation: repeats of a turn differ in the same way."""
    ids, expected = found.record["output_ids"], found.reference["output_ids"]
    end = None if found.position is None else found.position + 1
    tokens = (*ids[:end][-1:], *expected[:end][-1:])
    return (row_key(found.record), found.record["prompt_sha256"], found.position, tokens)


def _gap(example: Mapping[str, Any]) -> float:
    """Infinite where one answer is the start of the other, which rounding cannot explain."""
    return float("inf") if example["gap"] is None else float(example["gap"])


def _promises_equality(engine: str) -> bool:
    return engine != STOCK_ENGINE and engines.load(engine, "cpu").exact


def _engine(found: Difference) -> str:
    """The engine to decode on: the row's; for the stock row that of the reference it is paired
    with."""
    stock = found.record["engine"] == STOCK_ENGINE
    return str((found.reference if stock else found.record)["engine"])


def _answer(record: Record) -> tuple[str, tuple[int, ...]]:
    return record["prompt_sha256"], tuple(record["output_ids"])


def _counts(
    pairs: Sequence[tuple[Record, Record]], missed: Mapping[tuple[str, tuple[int, ...]], int]
) -> tuple[int, int, int, int]:
    """Of one prompt: missed tokens and all tokens of the row, then of the reference."""
    own, reference = zip(*pairs, strict=True)
    found = [
        count
        for side in (own, reference)
        for count in (
            sum(missed[_answer(r)] for r in side),
            sum(len(r["output_ids"]) for r in side),
        )
    ]
    return (found[0], found[1], found[2], found[3])


def _spread(found: Mapping[str, Item], count: int | None) -> dict[str, Item]:
    """`count` of the items, spread evenly; None is all."""
    items = list(found.items())
    if count is None or count >= len(items):
        return dict(items)
    return dict(items[number * len(items) // count] for number in range(count))
