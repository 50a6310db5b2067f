"""The audit's power in half precision: wrong decoders that nearly pass must fail, correct ones must
not. Whole runs on a tiny target in bfloat16, whose rounding makes correct methods differ too."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from baselines.autoregressive import Autoregressive
from bench.audit import argmax
from bench.audit.__main__ import main
from bench.decoding.decoder import Block
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step, TargetModel
from bench.decoding.tree import TokenTree, Topology
from bench.decoding.verify import Verdict
from tests import harness
from tests.decoding.scripted import NoisyOracle, OracleSettings
from tests.harness import install, run

PROMPTS, TOKENS = 16, 40
LETTERS = "abcdefghijklmnopqrstuvwxyz "


class RunnerUp(Autoregressive):
    """Emits the target's second choice where `wrong` says so."""

    def wrong(self, gap: float, chance: random.Random) -> bool:
        """`gap`: between the two best logits."""
        raise NotImplementedError

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        ids, chance = list(prompt_ids), random.Random(f"{prompt_ids}")
        while True:
            (first, second), best = self.target.prefill(ids).logits[-1].float().topk(2)
            ids.append(int(best[int(self.wrong(float(first - second), chance))]))
            yield Block((ids[-1],), depth=0)


class Near(RunnerUp):
    """The second choice wherever it is within 0.45 logits."""

    name: ClassVar[str] = "near"

    def wrong(self, gap: float, chance: random.Random) -> bool:
        return gap < 0.45


class Rare(RunnerUp):
    """The second choice at one position in a hundred, whatever the gap."""

    name: ClassVar[str] = "rare"

    def wrong(self, gap: float, chance: random.Random) -> bool:
        return chance.random() < 0.01


class Honest(NoisyOracle):
    """Correct, with trees of up to 15 nodes and of 21."""

    name: ClassVar[str] = "honest"

    def __init__(self, target: TargetModel, settings: OracleSettings) -> None:
        super().__init__(target, replace(settings, dynamic=True))
        self._wide = Topology.from_rank_paths([(i, 0, 0, 0) for i in range(5)], target.device)
        self.width = self._wide.width

    def _random_topology(self) -> Topology:
        return self._wide if self._rng.random() < 0.3 else self._static


class Wide(Honest):
    """The same, but its forwards are wrong at widths over 16."""

    name: ClassVar[str] = "wide"

    def _settle_matched(self, tree: TokenTree, step: Step) -> Verdict:
        if tree.width > 16:
            generator = torch.Generator().manual_seed(int(tree.tokens.sum()))
            noise = torch.randn(step.logits.shape, generator=generator)
            step = replace(step, logits=step.logits + noise)
        return super()._settle_matched(tree, step)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    harness.work_in(tmp_path, monkeypatch)
    with harness.one_thread():
        yield


def questions(seed: int) -> None:
    chance = random.Random(seed)
    rows = [
        {"question_id": n, "category": "any", "turns": ["".join(chance.choices(LETTERS, k=24))]}
        for n in range(PROMPTS)
    ]
    harness.ask(Path(harness.QUESTIONS), rows)


def audited(*methods: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The audit's exit code, and its rows by method."""
    flags = ("--dtype", "bfloat16", "--max-new-tokens", str(TOKENS), "--out", "run")
    assert run("--methods", *methods, *flags) == 0
    code = main(["run", "--reruns", "0", "--draws", "0"])
    rows = json.loads(Path("run/audit.json").read_text())["rows"]
    return code, {row["label"].partition("(")[0]: row for row in rows}


@pytest.mark.parametrize("seed", range(3))
def test_correct_methods_pass(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Honest)
    questions(seed)
    methods = ("transformers_generate", "lookahead(n=3,w=3,g=3)", "prompt_lookup", "honest")
    code, rows = audited(*methods)
    assert code == 0
    for row in rows.values():
        assert (row["defects"], row["argmax"]["passed"]) == (0, True)
        assert row["argmax"]["prompts"] == PROMPTS
    assert sum(row["ties"] for row in rows.values()) > 0


@pytest.mark.parametrize("method", [Near, Rare, Wide], ids=lambda kind: kind.name)
@pytest.mark.parametrize("seed", range(3))
def test_wrong_methods_fail(
    seed: int, method: type[RunnerUp], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, method)
    questions(seed)
    code, rows = audited(method.name)
    row = rows[method.name]
    assert code == 1
    assert row["defects"] or row["argmax"]["passed"] is False


def test_twenty_simulated_audits_raise_no_alarm() -> None:
    """Shares of 2.6 % that vary by prompt, of answers that are their own after a first difference;
    wrong decoders miss the argmax at 16.5 %."""
    chance = np.random.default_rng(0)
    for _ in range(20):
        reference, tokens = simulated(chance, 0.026)
        for _ in range(5):
            correct, _ = simulated(chance, 0.026)
            counts = zip(correct, tokens, reference, tokens, strict=True)
            assert argmax.compare(counts)["passed"] is not False
        wrong, _ = simulated(chance, 0.165)
        assert argmax.compare(zip(wrong, tokens, reference, tokens, strict=True))["passed"] is False


def simulated(chance: np.random.Generator, share: float) -> tuple[list[int], list[int]]:
    """(tokens that are not the argmax, all tokens) of 16 answers of 128 tokens."""
    tokens = [128] * 16
    rates = chance.beta(8 * share, 8 * (1 - share), 16) * 0.5 + 0.5 * share
    return chance.binomial(128, rates).tolist(), tokens


def test_few_answers_pass_no_row() -> None:
    assert argmax.compare([(1, 100, 1, 100)])["passed"] is None
    assert argmax.compare([(2, 12, 0, 12), (0, 12, 1, 12), (1, 12, 0, 12)])["passed"] is None
    equal = argmax.compare([(1, 100, 1, 100), (3, 90, 3, 90)])
    assert (equal["difference_low"], equal["difference_high"], equal["passed"]) == (0, 0, True)


def test_the_difference_is_over_all_tokens_and_paired() -> None:
    found = argmax.compare([(9, 100, 1, 100), (10, 100, 2, 100), (23, 200, 5, 200)] * 4)
    assert found["share"] == pytest.approx(42 / 400)
    assert found["reference_share"] == pytest.approx(8 / 400)
    assert found["difference"] == pytest.approx(34 / 400)
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert found["passed"] is False
