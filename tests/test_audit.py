"""The audit of a run: whether lossless methods are lossless."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers.utils import generic

from baselines.autoregressive import Autoregressive
from bench.audit import forced
from bench.audit import outputs as audit_outputs
from bench.audit.__main__ import main as audit
from bench.audit.outputs import Difference, Divergence
from bench.audit.redecoding import in_precision
from bench.decoding.decoder import Block, Settings
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.records import runs as records
from bench.records import validation
from bench.records.runs import REFERENCE, STOCK_ENGINE
from bench.run.runner import run_turn
from bench.targets import synthetic
from tests import harness
from tests.harness import install, run

COUNTS = ("compared", "equal", "ties", "defects")
VOCAB = 64


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.work_in(tmp_path, monkeypatch)


class Wrong(Autoregressive):
    """Claims to be lossless and sometimes emits the next id instead."""

    name: ClassVar[str] = "wrong"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        for number, block in enumerate(super().decode(prompt_ids, sampling)):
            off = number % 5 == 4 and len(prompt_ids) % 2
            yield Block(((block.ids[0] + 1) % (VOCAB - 1),)) if off else block


class Lossy(Wrong):
    """The same, and says so."""

    name: ClassVar[str] = "lossy"
    lossless: ClassVar[bool] = False


class Early(Autoregressive):
    """Claims to be lossless and ends answers with an EOS of its own."""

    name: ClassVar[str] = "early"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        for number, block in enumerate(super().decode(prompt_ids, sampling)):
            yield Block((VOCAB - 1,)) if number == 3 else block


class Doubtful(Autoregressive):
    """Takes the second choice where its logit is near: in float32, and in float64 if `always`."""

    name: ClassVar[str] = "doubtful"
    always: ClassVar[bool] = False

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        target = self.target
        step = target.prefill(prompt_ids)
        while True:
            (first, second), ids = step.logits[-1].double().topk(2)
            near = float(first - second) < audit_outputs.FLOAT32_GAP
            doubt = near and (self.always or target.dtype == torch.float32)
            token = int(ids[1] if doubt else ids[0])
            yield Block((token,))
            prompt_ids = [*prompt_ids, token]
            step = target.prefill(prompt_ids)


def rows(folder: str) -> dict[str, dict[str, Any]]:
    """The audit by label; asserts that it is of the folder's records."""
    content = json.loads(Path(folder, "audit.json").read_text())
    data = Path(folder, "records.jsonl").read_bytes()
    assert content["records_sha256"] == hashlib.sha256(data).hexdigest()
    for row in content["rows"]:
        unexplained = row.get("unexplained", 0)
        assert row["compared"] == row["equal"] + row["ties"] + row["defects"] + unexplained
        assert len(row["examples"]) == row["compared"] - row["equal"]
        gaps = [example["gap"] for example in row["examples"] if example["gap"] is not None]
        assert gaps == sorted(gaps, reverse=True)  # the largest first
    return {f"{row['label']} at {row['temperature']:g}": row for row in content["rows"]}


# Whole runs


def test_equal_outputs_give_equal_counts() -> None:
    assert run("--out", "run", "--repeats", "2", "--temperature", "0", "1") == 0
    found = rows("run")
    assert set(found) == {f"{name} at 0" for name in harness.LABELS if name != REFERENCE}
    for row in found.values():
        repeats = 2 if row["label"] == "transformers_generate" else 3  # one with the phase clock
        assert [row[name] for name in COUNTS] == [repeats * harness.TURNS] * 2 + [0, 0]
        assert row["engine"] == (
            STOCK_ENGINE if row["label"] == "transformers_generate" else "eager"
        )
        assert (row["model"], row["dtype"]) == ("synthetic:predictable", "float32")
    assert validation.check("run") == []


def test_a_wrong_method_is_a_defect_and_a_lossy_one_is_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, Wrong, Lossy, Early)
    assert run("--out", "run", "--methods", "wrong", "lossy", "early", "--repeats", "2") == 0
    found = rows("run")
    assert set(found) == {"wrong at 0", "early at 0", "lossy at 0"}
    assert [found["lossy at 0"][name] for name in COUNTS] == [0, 0, 0, 0]
    expected = {(r["prompt_id"], r["turn"]): r for r in harness.of("run", REFERENCE)}
    off = [r for r in harness.of("run", "wrong", None) if r["prompt_tokens"] % 2]
    assert 0 < len(off) < 3 * harness.TURNS  # some are equal, some are not
    wrong = found["wrong at 0"]
    assert [wrong[n] for n in COUNTS] == [
        3 * harness.TURNS,
        3 * harness.TURNS - len(off),
        0,
        len(off),
    ]
    places = {(e["prompt_id"], e["turn"], e["repeat"]): e for e in wrong["examples"]}
    assert set(places) == {(r["prompt_id"], r["turn"], r["repeat"]) for r in off}
    for record in off:
        example = places[record["prompt_id"], record["turn"], record["repeat"]]
        reference = expected[record["prompt_id"], record["turn"]]["output_ids"]
        position = example["position"]
        assert position == 4
        assert reference[:position] == record["output_ids"][:position]
        assert example["verdict"] == "defect"
        assert example["gap"] > audit_outputs.FLOAT32_GAP
    early = found["early at 0"]
    assert early["defects"] == early["compared"] - early["equal"] > 0
    problems = [problem for problem in validation.check("run") if "reference" in problem]
    assert len(problems) == wrong["defects"] + early["defects"]
    lines = records.read("run")
    named = {lines[int(problem.split()[1].rstrip(":")) - 1]["method"] for problem in problems}
    assert named == {"wrong", "early"}


@pytest.mark.parametrize(("always", "verdict"), [(False, "ties"), (True, "defects")])
def test_a_float32_tie_must_agree_in_float64(
    always: bool, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Doubtful)
    monkeypatch.setattr(audit_outputs, "FLOAT32_GAP", 0.02)  # there are few ties at 1e-3
    monkeypatch.setattr(Doubtful, "always", always)
    flags = ("--models", "synthetic:tiny", "--methods", "doubtful", "--max-new-tokens", "16")
    assert run(*flags, "--out", "run") == 0
    (row,) = rows("run").values()
    assert row[verdict] == row["compared"] - row["equal"] > 0
    assert all(example["gap"] < 0.02 for example in row["examples"])
    problems = validation.check("run")
    assert len(problems) == row["defects"]


def test_an_audit_follows_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Wrong)
    assert run("--out", "run", "--methods", "wrong", "--limit", "1") == 0
    first = rows("run")
    data = Path("run/records.jsonl").read_bytes()
    Path("run/records.jsonl").write_bytes(data[: data.rindex(b"\n", 0, -1) + 1])
    assert any("audit.json is of other records" in problem for problem in validation.check("run"))
    assert run("--out", "run", "--methods", "wrong", "--limit", "1") == 0
    assert rows("run") == first


def test_half_precision_classes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Wrong)
    monkeypatch.setattr("tests.test_audit.VOCAB", 256)
    flags = ("--models", "synthetic:tiny", "--dtype", "bfloat16", "--max-new-tokens", "48")
    assert run(*flags, "--methods", "wrong", "lookahead", "prompt_lookup", "--out", "run") == 0
    assert all(row["ties"] == row["defects"] == 0 for row in rows("run").values())
    assert rows("run")["wrong at 0"]["unexplained"] > 0  # a run makes no float32 forwards
    assert audit(["run", "--draws", "0", "--reruns", "0"]) == 1
    found = rows("run")
    assert len(found) == 3
    for row in found.values():
        assert row["compared"] == 2 * harness.TURNS
        assert row["dtype"] == "bfloat16"
        assert "unexplained" not in row
        assert row["argmax"]["prompts"] == harness.TURNS
    for method in ("lookahead(n=5,w=7,g=7,prompt=true)", "prompt_lookup(n=3,k=10)"):
        assert found[f"{method} at 0"]["defects"] == 0
    assert found["wrong at 0"]["defects"] + found["wrong at 0"]["ties"] > 0
    assert validation.check("run") == []


# One difference


def reference_turn(target: TargetModel, prompt: Sequence[int], budget: int) -> list[int]:
    reference = Autoregressive(target, Settings())
    return run_turn(reference, prompt, Sampling(), budget, ()).output_ids


@pytest.fixture(scope="module")
def target() -> Iterator[TargetModel]:
    model, _ = synthetic.build("synthetic:predictable", "cpu", torch.float32)
    with harness.one_thread():
        yield EagerTarget(model)


PROMPT = [1, 2, 3]


def changed(target: TargetModel, position: int, rank: int) -> tuple[list[int], list[int]]:
    """An answer that takes the `rank`-th choice at `position`, and the reference's."""
    ids = reference_turn(target, PROMPT, 8)
    with torch.inference_mode():
        logits = target.prefill([*PROMPT, *ids[:position]]).logits[0]
    other = int(logits.topk(rank + 1).indices[rank])
    return [*ids[:position], other, *ids[position + 1 :]], ids


def explain(
    target: TargetModel, answers: tuple[list[int], list[int]], agree: bool | None = None
) -> Divergence:
    """`agree`: whether both are the same in float64; None where that must not be evaluated."""

    def asked() -> bool:
        assert agree is not None
        return agree

    exact = in_precision(target.model, torch.float32)
    return audit_outputs.classify(target.model, exact, PROMPT, *answers, asked)


def test_a_float32_difference_of_some_size_is_a_defect(target: TargetModel) -> None:
    ids, expected = changed(target, 3, 5)
    found = explain(target, (ids, expected))
    assert (found.verdict, found.position) == ("defect", 3)
    assert (found.token, found.reference_token) == (ids[3], expected[3])
    assert found.noise == audit_outputs.FLOAT32_GAP
    assert found.gap is not None
    assert found.top2_gap is not None
    assert found.gap > found.top2_gap > found.noise


def test_the_two_best_logits_are_the_references(target: TargetModel) -> None:
    found = explain(target, changed(target, 3, 1))
    assert found.gap == pytest.approx(found.top2_gap, abs=1e-4)


@pytest.mark.parametrize(("agree", "expected"), [(True, "tie"), (False, "defect")])
def test_a_near_float32_difference_is_decided_in_float64(
    agree: bool, expected: str, target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_outputs, "FLOAT32_GAP", 1e3)
    assert explain(target, changed(target, 3, 1), agree).verdict == expected


def test_an_output_cut_short_is_a_defect(target: TargetModel) -> None:
    ids = reference_turn(target, PROMPT, 8)
    nothing = (None,) * 6
    assert explain(target, (ids[:5], ids)) == Divergence(*nothing, "defect")


@pytest.mark.parametrize(("rank", "expected"), [(1, "tie"), (20, "defect")])
def test_half_precision_compares_the_gap_with_the_noise(rank: int, expected: str) -> None:
    model, _ = synthetic.build("synthetic:predictable", "cpu", torch.bfloat16)
    model.lm_head.weight[VOCAB - 2] = model.lm_head.weight[VOCAB - 3]  # equal logits, within noise
    half = EagerTarget(model)
    with harness.one_thread():
        ids = reference_turn(half, PROMPT, 8)
        with torch.inference_mode():
            logits = half.prefill([*PROMPT, *ids[:3]]).logits[0]
        first = VOCAB - 3 if rank == 1 else ids[3]
        second = VOCAB - 2 if rank == 1 else int(logits.topk(rank + 1).indices[rank])
        found = explain(half, ([*ids[:3], second], [*ids[:3], first]))
    assert found.verdict == expected
    assert found.gap is not None
    assert found.noise is not None
    assert (found.gap == 0) == (rank == 1)
    assert (found.gap <= found.noise) == (expected == "tie")


def test_forced_logits_are_those_of_one_forward(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forced, "CHUNK", 16)
    ids = [*PROMPT, *reference_turn(target, PROMPT, 60)]
    with torch.inference_mode():
        plain = target.model(input_ids=torch.tensor([ids])).logits[0]
    for keep in (1, 15, 16, 40, len(ids)):
        found = torch.cat(list(forced.chunks(target.model, ids, keep)))
        torch.testing.assert_close(found, plain[-keep:], rtol=1e-4, atol=1e-4)
    found, last = forced.gaps(target.model, ids, 40, 7, 9)
    torch.testing.assert_close(found, (plain[-40:, 7] - plain[-40:, 9]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(last, plain[-1], rtol=1e-4, atol=1e-4)
    assert forced.misses(target.model, PROMPT, ids[3:]) == 0
    wrong = [*ids[3:10], (ids[10] + 1) % VOCAB]
    assert forced.misses(target.model, PROMPT, wrong) == 1


def test_forced_forwards_make_no_library_warn(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    said: list[object] = []
    monkeypatch.setattr(generic.logger, "warning_once", said.append)
    assert len(list(forced.chunks(target.model, PROMPT, 1))) == 1
    assert said == []
    assert recwarn.list == []


def test_float64_is_a_separate_model(target: TargetModel) -> None:
    exact = EagerTarget(in_precision(target.model, torch.float64))
    assert exact.dtype == torch.float64
    assert target.model.dtype == torch.float32
    before = reference_turn(target, PROMPT, 12)
    assert reference_turn(exact, PROMPT, 12) == before
    assert reference_turn(target, PROMPT, 12) == before
    with torch.inference_mode():
        one, two = (each.prefill(PROMPT) for each in (target, exact))
    assert two.hidden.dtype == torch.float64
    torch.testing.assert_close(one.hidden.double(), two.hidden, rtol=1e-4, atol=1e-4)


def test_float64_copies_the_model_and_not_what_hooks_onto_it(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: TargetModel, memo: object) -> None:  # noqa: ARG001
        raise TypeError("cannot pickle 'Event' object")

    monkeypatch.setattr(TargetModel, "__deepcopy__", refuse, raising=False)
    exact = EagerTarget(in_precision(target.model, torch.float64))
    assert reference_turn(exact, PROMPT, 4) == reference_turn(target, PROMPT, 4)


# Pairs


def made(**changes: Any) -> records.Record:
    base = {
        "model": "m",
        "engine": "eager",
        "dtype": "float32",
        "dataset": "set",
        "method": "lookahead",
        "params": {},
        "temperature": 0.0,
        "prompt_id": "1",
        "turn": 1,
        "repeat": 0,
        "max_new_tokens": 8,
        "prompt_sha256": "p",
        "status": "ok",
        "lossless": True,
        "output_ids": [1, 2, 3],
    }
    return base | changes


REFERENCE_RECORD = made(method=REFERENCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "error", "output_ids": None},
        {"temperature": 0.5},
        {"lossless": False},
        {"engine": "graph"},
        {"repeat": 1},
        {"turn": 2},
        {"prompt_sha256": "q"},
        {"max_new_tokens": 9},
        {"dtype": "bfloat16"},
        {"model": "n"},
        {"method": REFERENCE},
    ],
)
def test_what_has_no_partner_is_not_compared(changes: dict[str, Any]) -> None:
    assert list(audit_outputs.differences([REFERENCE_RECORD, made(**changes)])) == []


@pytest.mark.parametrize(
    ("ids", "position"),
    [([1, 2, 4], 2), ([9, 2, 3], 0), ([1, 2], None), ([1, 2, 3, 4], None), ([1, 5], 1)],
)
def test_the_first_difference_is_named(ids: list[int], position: int | None) -> None:
    records_found = [made(output_ids=ids), REFERENCE_RECORD]
    ((record, found),) = audit_outputs.differences(records_found)
    assert audit_outputs.row_key(record) == ("m", "eager", "float32", "set", "lookahead", 0.0)
    assert found == Difference(records_found[0], REFERENCE_RECORD, position)


def test_the_stock_row_is_compared_with_any_engine() -> None:
    eager, graph = REFERENCE_RECORD, made(method=REFERENCE, engine="graph", output_ids=[1, 2, 9])
    stock = made(method="transformers_generate", engine=STOCK_ENGINE, output_ids=[1, 2, 9])
    ((record, found),) = audit_outputs.differences([eager, graph, stock])
    assert (record["engine"], found) == (STOCK_ENGINE, None)
    ((_, other),) = audit_outputs.differences([eager, stock])
    assert other is not None
    assert other.position == 2
