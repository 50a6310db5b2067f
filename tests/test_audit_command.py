"""python -m bench.audit: reruns, draws, the file it writes, and the input it refuses."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from baselines.autoregressive import Autoregressive
from bench.audit import __main__ as command
from bench.audit import argmax
from bench.audit import outputs as audit_outputs
from bench.audit.__main__ import main
from bench.decoding.decoder import Block
from bench.decoding.sampling import Sampling
from bench.decoding.target import Step
from bench.decoding.tree import TokenTree
from bench.decoding.verify import Verdict, typical
from bench.records import runs as records
from bench.records import validation
from tests import harness
from tests.decoding.scripted import NoisyOracle
from tests.harness import install, run

VOCAB = 64
DRAWS, FEW = ("--draws", "400"), ("--draws", "200")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    harness.work_in(tmp_path, monkeypatch)
    with harness.one_thread():
        yield


class Slip(Autoregressive):
    """Claims to be lossless and emits another id at one step of some prompts."""

    name: ClassVar[str] = "slip"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        for number, block in enumerate(super().decode(prompt_ids, sampling)):
            off = number == 4 and len(prompt_ids) % 2
            yield Block(((block.ids[0] + 1) % (VOCAB - 1),), depth=0) if off else block


class Rounding(Autoregressive):
    """Emits another id at one step in half precision, as rounding may."""

    name: ClassVar[str] = "rounding"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        half = self.target.dtype == torch.bfloat16
        for number, block in enumerate(super().decode(prompt_ids, sampling)):
            off = half and number == 4
            yield Block(((block.ids[0] + 1) % (VOCAB - 1),), depth=0) if off else block


class Unlucky(Rounding):
    """The same, but it fails in float32."""

    name: ClassVar[str] = "unlucky"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        if self.target.dtype == torch.float32:
            raise RuntimeError("no float32")
        return super().decode(prompt_ids, sampling)


class Colder(Autoregressive):
    """Claims to be lossless and samples at another temperature than it was asked to."""

    name: ClassVar[str] = "colder"

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        wrong = Sampling(0.7 * sampling.temperature, generator=sampling.generator)
        return super().decode(prompt_ids, wrong)


class Honest(NoisyOracle):
    """Accepts correctly."""

    name: ClassVar[str] = "honest"


class Keen(NoisyOracle):
    """Claims to be lossless and accepts by typical acceptance."""

    name: ClassVar[str] = "keen"

    def accept(self, tree: TokenTree, step: Step, sampling: Sampling) -> Verdict:
        if sampling.greedy:
            return super().accept(tree, step, sampling)
        return typical(tree, sampling.probs(step.logits), sampling)


class Loose(Keen):
    """The same, and says so."""

    name: ClassVar[str] = "loose"
    lossless: ClassVar[bool] = False


class Broken(Autoregressive):
    """Fails when it draws, if `fails`."""

    name: ClassVar[str] = "broken"
    fails: ClassVar[bool] = False

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        if self.fails:
            raise RuntimeError("out of\nmemory")
        return super().decode(prompt_ids, sampling)


def audited(folder: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "audit.json").read_text())
    return found


def rows(folder: str = "run") -> dict[str, dict[str, Any]]:
    return {f"{row['label']} at {row['temperature']:g}": row for row in audited(folder)["rows"]}


# Outputs


def test_a_float32_run_is_audited_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", "run") == 0
    before = rows()
    content = harness.contents(Path("run"))
    assert main(["run"]) == 0
    assert rows() == before
    changed = {n for n, data in harness.contents(Path("run")).items() if data != content[n]}
    assert changed == {"audit.json"}
    found = audited()
    assert (found["reruns"], found["draws"], found["prompts_missing"]) == (8, 2048, 0)
    assert found["notes"] == []
    assert validation.check("run") == []
    text = capsys.readouterr()
    assert f"{5 * harness.TURNS} outputs compared: {5 * harness.TURNS} equal" in text.out
    assert text.err.count("\r") == 0  # no progress bar off a terminal


def test_a_slip_is_a_defect_with_its_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Slip)
    assert run("--out", "run", "--methods", "slip", "prompt_lookup") == 0
    assert main(["run"]) == 1
    found = rows()
    off = [r for r in harness.of("run", "slip", None) if r["prompt_tokens"] % 2]
    assert found["slip at 0"]["defects"] == len(off) > 0
    assert found["prompt_lookup(n=3,k=10) at 0"]["defects"] == 0
    references = {(r["prompt_id"], r["turn"]): r for r in harness.of("run", records.REFERENCE)}
    for example in found["slip at 0"]["examples"]:
        reference = references[example["prompt_id"], example["turn"]]["output_ids"][4]
        assert (example["position"], example["verdict"]) == (4, "defect")
        assert example["reference_token"] == reference
        assert example["token"] == (reference + 1) % (VOCAB - 1)
        assert example["token_text"] != example["reference_token_text"]
        assert example["gap"] > example["noise"] == audit_outputs.FLOAT32_GAP
        assert example["top2_gap"] > 0
    assert "slip on synthetic:predictable" in capsys.readouterr().out
    assert "reruns" not in found["slip at 0"]


@pytest.mark.parametrize("kind", [Slip, Rounding])
def test_half_precision_is_decoded_again_in_float32(
    kind: type[Autoregressive], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, kind)
    assert run("--out", "run", "--methods", kind.name, "--dtype", "bfloat16") == 0
    (row,) = rows().values()
    assert "reruns" not in row
    main(["run", "--reruns", "2"])
    (row,) = rows().values()
    reruns = row["reruns"]
    assert (reruns["engine"], [reruns["device"]]) == ("eager", row["devices"])
    assert 2 * reruns["prompts"] == row["compared"] - row["equal"] >= 2 * 2
    assert (reruns["rerun"], reruns["limit"], reruns["failed"]) == (2, 2, 0)
    same = kind is Rounding
    assert (reruns["equal"], reruns["defects"]) == ((2, 0) if same else (0, 2))
    assert len(reruns["found"]) == (0 if same else 2)


def test_a_rerun_that_fails_fails_the_audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Unlucky)
    assert run("--out", "run", "--methods", "unlucky", "--dtype", "bfloat16") == 0
    monkeypatch.setattr(audit_outputs, "NOISES", 1e6)  # its differences are ties
    monkeypatch.setattr(argmax, "MARGIN", 1.0)
    assert main(["run", "--reruns", "2", "--draws", "0"]) == 1
    (row,) = rows().values()
    assert row["defects"] == 0
    assert (row["reruns"]["rerun"], row["reruns"]["failed"]) == (2, 2)
    assert row["reruns"]["found"][0]["error"] == "RuntimeError: no float32"
    assert "AUDIT FAILED" in capsys.readouterr().out


# Samplers


def test_right_samplers_pass_and_wrong_ones_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Colder, Keen, Honest)
    names = ("prompt_lookup", "honest", "colder", "keen")
    flags = ("--limit", "2", "--turns", "1", "--max-new-tokens", "40")
    assert run("--out", "run", "--methods", *names, "--temperature", "1", *flags) == 0
    assert all("sampling" not in row for row in rows().values())
    assert main(["run", *DRAWS]) == 1
    found = {label.partition("(")[0].split()[0]: row["sampling"] for label, row in rows().items()}
    right = {"autoregressive", "prompt_lookup", "honest"}
    assert set(found) == {*right, "colder", "keen"}
    for name, test in found.items():
        assert test["passed"] == (name in right), name
        assert test["passed"] == (test["p_holm"] >= test["level"] == 0.001)
        assert test["p_holm"] >= test["p"]
        assert (test["tokens"], test["answers"], test["contexts"]) == (400, 10, 4)
        assert (test["dtype"], test["impossible"]) == ("float32", 0)
    assert 1.2 < found["honest"]["accepted_length"] < found["honest"]["nodes_per_step"]
    assert found["autoregressive"]["accepted_length"] == 1
    assert "5 samplers tested, 3 follow the target" in capsys.readouterr().out


def test_top_k_and_top_p_are_a_part_of_the_distribution() -> None:
    flags = ("--limit", "1", "--turns", "1", "--methods", "transformers_generate")
    cut = ("--temperature", "0.7", "--top-k", "3", "--top-p", "0.9")
    assert run("--out", "run", *flags, *cut) == 0
    assert main(["run", *FEW]) == 0
    first = rows()
    assert [row["sampling"]["passed"] for row in first.values()] == [True, True]
    assert first["transformers_generate at 0.7"]["sampling"]["engine"] == "stock"
    main(["run", *FEW])
    assert rows() == first  # seeded
    main(["run", *FEW, "--seed", "1"])
    assert rows() != first


def test_a_sampler_that_cannot_draw_fails_the_audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Broken)
    flags = ("--methods", "broken", "--temperature", "1", "--limit", "1", "--turns", "1")
    assert run("--out", "run", *flags) == 0
    monkeypatch.setattr(Broken, "fails", True)
    assert main(["run", *DRAWS]) == 1
    assert "broken on synthetic:predictable, eager, asked, T = 1: AUDIT FAILED" in (
        capsys.readouterr().out
    )
    test = rows()["broken at 1"]["sampling"]
    assert (test["p"], test["error"]) == (None, "RuntimeError: out of memory")
    assert "passed" not in test


# Lossy methods


def test_lossy_methods_have_agreement_and_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Loose)
    flags = ("--turns", "1", "--methods", "loose", "--temperature", "0", "1", "--repeats", "2")
    assert run("--out", "run", *flags, "--max-new-tokens", "24") == 0
    greedy, sampled = (rows()[f"loose(accuracy=0.7,seed=0,dynamic=false) at {t}"] for t in (0, 1))
    assert greedy["answers"] == sampled["answers"] == 3 * len(harness.ROWS)
    assert greedy["compared"] == sampled["compared"] == 0  # not compared with the reference
    assert (greedy["agreement"], greedy["equal_answers"]) == (1, 1)
    assert greedy["reference_agreement"] == 1
    assert greedy["perplexity"] == greedy["reference_perplexity"] >= 1
    assert sampled["agreement"] < 1
    assert sampled["reference_agreement"] < 1
    assert sampled["perplexity"] < sampled["reference_perplexity"]  # it prefers likely tokens
    assert sampled["reference_perplexity"] > greedy["reference_perplexity"]


# audit.json


def test_a_run_that_continues_keeps_a_deeper_audit_of_its_records() -> None:
    flags = ("--out", "run", "--limit", "1", "--turns", "1", "--methods", "prompt_lookup")
    assert run(*flags) == 0
    assert main(["run"]) == 0
    deep = audited()
    assert run(*flags) == 0
    assert audited() == deep
    data = Path("run/records.jsonl").read_bytes()
    Path("run/records.jsonl").write_bytes(data[: data.rindex(b"\n", 0, -1) + 1])
    assert run(*flags) == 0  # other records now
    assert audited()["draws"] == 0 != deep["draws"]


def test_records_that_change_meanwhile_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "run", "--limit", "1") == 0
    before = Path("run/audit.json").read_bytes()

    def append(_entries: object) -> None:
        with open("run/records.jsonl", "a") as file:
            file.write("\n")

    monkeypatch.setattr(command, "correct_for_many", append)
    assert main(["run"]) == 2
    assert "changed during the audit" in capsys.readouterr().err
    assert Path("run/audit.json").read_bytes() == before


def test_archived_records_are_audited_too() -> None:
    assert run("--out", "run", "--limit", "1", "--turns", "1") == 0
    first = audited()
    plain = Path("run/records.jsonl")
    Path("run/records.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert main(["run"]) == 0
    assert audited()["rows"] == first["rows"]
    assert audited()["records_sha256"] == first["records_sha256"]


def test_a_stopped_audit_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "run", "--limit", "1") == 0
    before = harness.contents(Path("run"))

    def stop(_entries: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "correct_for_many", stop)
    assert main(["run"]) == 130
    assert "audit.json is unchanged" in capsys.readouterr().err
    assert harness.contents(Path("run")) == before


# Prompts


def test_later_turns_come_from_the_history_and_what_is_lost_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--out", "run") == 0
    history = Path("run/history.jsonl")
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:1]))
    assert main(["run"]) == 0
    found = audited()
    assert found["prompts_missing"] == 2
    for row in found["rows"]:
        repeats = 1 if row["label"] == "transformers_generate" else 2
        assert row["left_out"] == repeats * 2
        assert row["compared"] == repeats * (harness.TURNS - 2)
    assert "2 of 6 prompts of synthetic:predictable could not be found" in capsys.readouterr().err


def test_questions_are_found_in_the_data_folder_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "run", "--turns", "1") == 0
    (tmp_path / "data").mkdir()
    asked = Path(harness.QUESTIONS).rename(tmp_path / "data" / harness.QUESTIONS)
    assert main(["run"]) == 0
    assert audited()["prompts_missing"] == 3
    assert "cannot read the question set" in capsys.readouterr().err
    assert main(["run", "--data-dir", "data"]) == 0
    assert audited()["prompts_missing"] == 0
    harness.ask(asked, [harness.ROWS[0], {**harness.ROWS[1], "turns": ["another"]}])
    assert main(["run", "--data-dir", "data"]) == 0
    assert audited()["prompts_missing"] == 2  # one is another question, one is gone
    assert "question set asked has changed" in capsys.readouterr().err


# What is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("nowhere",), "give the folder of a run"),
        (("run", "--reruns", "-1"), "--answers, --reruns and --seed must be at least 0"),
        (("run", "--answers", "-1"), "--answers, --reruns and --seed must be at least 0"),
        (("run", "--draws", "10"), "--draws must be 0 (off) or at least 200"),
        (("run", "--device", "cuda:99"), "is not on this machine"),
        (("run", "--models", "nothing"), "unknown model 'nothing'"),
        (("run", "--models", "synthetic:tiny"), "name the run's models by --models"),
        (("run", "--checkpoint", "medusa=x"), "--checkpoint names 'medusa'"),
        (("run", "--depth", "3"), "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "run", "--limit", "1", "--turns", "1", "--methods", "prompt_lookup") == 0
    before = harness.contents(Path("run"))
    capsys.readouterr()
    assert main(list(flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert harness.contents(Path("run")) == before


def test_a_run_without_settings_or_with_other_weights_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--out", "run", "--limit", "1", "--turns", "1") == 0
    settings = Path("run/run.yaml")
    text = settings.read_text()
    settings.unlink()
    assert main(["run"]) == 2
    assert "holds no run.yaml" in capsys.readouterr().err
    settings.write_text(text.replace("- prompt_lookup(", "- prompt_look("))
    assert main(["run"]) == 2
    assert "unknown method 'prompt_look'" in capsys.readouterr().err
    settings.write_text(text)
    lines = harness.kept("run")
    moved = [{**line, "revision": "0" * 64} for line in lines]
    Path("run/records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in moved))
    assert main(["run"]) == 2
    assert "synthetic:predictable has revision" in capsys.readouterr().err
    older = [{**line, "package_version": "0.0.1"} for line in lines]
    Path("run/records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    assert main(["run"]) == 0
    assert "records are of package version 0.0.1" in capsys.readouterr().err
    assert len(audited()["notes"]) == 1
