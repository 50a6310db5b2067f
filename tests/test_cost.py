"""The cost study: what it measures and keeps, resuming, what cannot run, and its validator."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
import transformers

from baselines.hydra import published as hydra_layouts
from baselines.medusa import published as medusa_layouts
from bench.cli import Parser, add_arguments
from bench.cost.__main__ import main
from bench.cost.config import CostConfig
from bench.cost.device import bandwidth, facts
from bench.decoding.decoder import Block, Decoder
from bench.decoding.engines import trial as engines
from bench.decoding.engines.eager import EagerTarget
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.decoding.timing import timed
from bench.errors import UsageError
from bench.records.__main__ import main as check_records
from bench.records.costs import COSTS, ENGINE, FORWARD, STEP, latest, read, violations
from bench.records.runs import REFERENCE, Record
from bench.records.validation import check
from bench.run.methods import discover, method, resolve
from bench.run.runner import run_turn
from bench.targets import registry as targets
from bench.targets import synthetic
from chimera import published as chimera_layouts
from tests import harness
from tests.reports import studies
from tests.test_readme import commands

QUICK = (
    *("--models", "synthetic:tiny", "--widths", "1", "3", "--contexts", "16", "40"),
    *("--methods", "medusa", "chimera", "chimera_plus", "lookahead", "prompt_lookup"),
    *("--repeats", "2", "--turns", "1", "--max-new-tokens", "4", "--no-report"),
)
FORWARDS, STEPS = 4, 12  # two contexts; two widths, five methods and the reference


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def measure(*flags: str) -> int:
    """`python -m bench.cost` with quick settings and `flags`, which win; its exit code."""
    with harness.one_thread():
        return main([*QUICK, *flags])


def kept(folder: Path | str, kind: str | None = None) -> list[Record]:
    return [record for record in latest(read(folder)) if kind in (None, record["kind"])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study on two engines, of which one cannot run here; copy it."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert measure("--out", str(folder), "--engine", "eager", "graph") == 0
    return folder


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


# What is measured


def test_a_study_measures_everything_once(whole: Path) -> None:
    assert check(whole) == []
    good = [record for record in kept(whole) if record["status"] == "ok"]
    forwards = [record for record in good if record["kind"] == FORWARD]
    steps = [record for record in good if record["kind"] == STEP]
    assert {(r["context"], r["width"]) for r in forwards} == {(16, 1), (16, 3), (40, 1), (40, 3)}
    assert len(forwards) == FORWARDS
    assert all(len(r["seconds"]) == 2 and min(r["seconds"]) > 0 for r in forwards)
    assert len(steps) == STEPS
    assert {r["method"] for r in steps} == {
        *(REFERENCE, "medusa", "chimera", "chimera_plus", "lookahead", "prompt_lookup")
    }
    for record in steps:
        (turn,) = record["turns"]
        assert turn["quiet_s"] > 0
        assert sum(turn["accept_lengths"]) == 3
        assert turn["phase_s"]["verify"] > 0
        assert (turn["phase_s"]["draft"] > 0) == (record["method"] != REFERENCE)
    (engine,) = (record for record in good if record["kind"] == ENGINE)
    assert engine["startup_s"] > 0


def test_drafts_without_weights_are_random_and_say_so(whole: Path) -> None:
    given = {r["method"]: r["checkpoint"] for r in kept(whole, STEP)}
    assert given == {
        **dict.fromkeys((REFERENCE, "lookahead", "prompt_lookup")),
        **dict.fromkeys(("medusa", "chimera", "chimera_plus"), "random"),
    }
    for record in kept(whole, STEP):
        assert (record["checkpoint_sha256"] is None) == (record["checkpoint"] is None)
        assert (record["draft_bytes"] > 0) == (record["draft_parameters"] > 0)


def test_an_engine_that_cannot_run_is_skipped_with_its_reason(whole: Path) -> None:
    (skipped,) = (record for record in kept(whole) if record["status"] != "ok")
    assert (skipped["kind"], skipped["engine"], skipped["status"]) == (ENGINE, "graph", "skipped")
    assert "GPU" in skipped["error"] or "CUDA" in skipped["error"]
    assert skipped["parameters"] is None


def test_settings_and_environment_lie_beside_the_records(whole: Path) -> None:
    assert "models:\n- synthetic:tiny\n" in (whole / "cost.yaml").read_text()
    assert json.loads((whole / "environment.json").read_text())["device"]


# Continuing


def test_a_finished_study_is_not_measured_again(done: Path) -> None:
    before = harness.contents(done)
    assert measure("--out", "out", "--engine", "eager", "graph") == 0
    assert harness.contents(done) == before


@pytest.mark.parametrize("share", [0.0, 0.35, 0.8])
def test_a_study_continues_after_a_kill(done: Path, share: float) -> None:
    data = (done / COSTS).read_bytes()
    cut = data[: int(share * len(data))]  # mostly in the middle of a line
    (done / COSTS).write_bytes(cut)
    assert measure("--out", "out", "--engine", "eager", "graph") == 0
    now = (done / COSTS).read_bytes()
    assert now.startswith(cut[: cut.rfind(b"\n") + 1])
    assert check(done) == []
    assert {r["key"] for r in kept(done)} == {json.loads(line)["key"] for line in data.splitlines()}


def test_settings_fed_back_continue_the_study(done: Path) -> None:
    before = harness.contents(done)
    with harness.one_thread():
        assert main(["--config", "out/cost.yaml", "--out", "out", "--no-report"]) == 0
    assert harness.contents(done) == before


def test_the_folder_is_named_after_the_settings() -> None:
    only = ("--methods", "lookahead", "--contexts", "8", "--widths", "1", "--repeats", "1")
    assert measure(*only) == measure(*only) == measure(*only, "--seed", "1") == 0
    first, second = sorted(Path("results").iterdir())
    assert all(path.name.startswith("cost-synthetic-tiny-") for path in (first, second))
    assert len(kept(first)) == len(kept(second)) == 4


def test_a_report_is_built_of_the_study() -> None:
    only = ("--methods", "lookahead", "--contexts", "8", "--widths", "1", "--repeats", "1")
    assert measure(*only, "--out", "out", "--report") == 0
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert '<section id="cost"' in page
    assert '<section id="speedup"' not in page


# What cannot be measured


def test_a_model_that_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert measure("--out", "out") == 0
    (record,) = kept("out")
    assert record["status"] == "skipped"
    assert record["error"] == "the weights need 0.0 GB of memory, 0.0 GB are free"
    assert check("out") == []


def test_what_needs_more_positions_than_the_model_has_is_skipped() -> None:
    flags = ("--models", "synthetic:predictable", "--contexts", "16", "2046", "--widths", "1", "3")
    assert measure(*flags, "--methods", "prompt_lookup", "--out", "out") == 0
    skipped = [record for record in kept("out") if record["status"] == "skipped"]
    assert {(r["kind"], r["context"], r.get("width")) for r in skipped} == {
        (FORWARD, 2046, 3),
        (STEP, 2046, None),
    }
    assert len(skipped) == 3
    assert skipped[0]["error"] == "2049 positions are needed, the model has 2048"
    assert check("out") == []


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(RuntimeError("it broke"), 1, "error"), (torch.OutOfMemoryError("large"), 0, "skipped")],
)
@pytest.mark.parametrize("place", ["make", "reserve"])
def test_an_engine_that_fails_is_recorded_and_the_next_model_is_measured(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, status: str, place: str
) -> None:
    module, made = (
        (engines, engines.make) if place == "make" else (TargetModel, TargetModel.reserve)
    )

    def breaks(*arguments: Any) -> Any:
        if "synthetic:tiny" in (arguments[1], getattr(arguments[0], "name", None)):
            raise error
        return made(*arguments)

    monkeypatch.setattr(module, place, breaks)
    models = ("--models", "synthetic:tiny", "synthetic:predictable")
    assert measure(*models, "--methods", "lookahead", "--out", "out") == code
    (failed,) = (record for record in kept("out") if record["status"] != "ok")
    assert (failed["model"], failed["kind"]) == ("synthetic:tiny", ENGINE)
    assert (failed["status"], failed["error"]) == (status, f"{type(error).__name__}: {error}")
    assert {r["model"] for r in kept("out", FORWARD)} == {"synthetic:predictable"}


class Failing(Decoder):
    """Raises at its second token."""

    name: ClassVar[str] = "failing"
    lossless: ClassVar[bool] = True
    error: ClassVar[Exception] = RuntimeError("it\nbroke")

    def decode(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[Block]:
        yield Block((int(self.target.prefill(prompt_ids).logits.argmax()),))
        raise self.error


class Large(Failing):
    """Does not fit."""

    name: ClassVar[str] = "large"
    error: ClassVar[Exception] = torch.OutOfMemoryError("tried to allocate")


@pytest.mark.parametrize(
    ("decoder", "code", "status", "reason"),
    [
        (Failing, 1, "error", "RuntimeError: it broke"),
        (Large, 0, "skipped", "OutOfMemoryError: tried to allocate"),
    ],
)
def test_a_method_that_fails_leaves_its_reason_and_spares_the_others(
    monkeypatch: pytest.MonkeyPatch, decoder: type[Decoder], code: int, status: str, reason: str
) -> None:
    harness.install(monkeypatch, decoder)
    assert measure("--methods", decoder.name, "lookahead", "--out", "out") == code
    failed = [record for record in kept("out") if record["status"] != "ok"]
    assert [(r["method"], r["status"], r["error"]) for r in failed] == [
        (decoder.name, status, reason)
    ] * 2
    good = {r["method"] for r in kept("out", STEP) if r["status"] == "ok"}
    assert good == {REFERENCE, "lookahead"}
    assert check("out") == []


def test_a_model_of_another_form_runs_with_the_drafts_that_fit() -> None:
    shape = {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = transformers.GPT2Config(**shape, bos_token_id=256, eos_token_id=256)
    transformers.GPT2LMHeadModel(config).save_pretrained("gpt2")
    synthetic.tokenizer(512, 64).save_pretrained("gpt2")
    assert measure("--models", "gpt2", "--contexts", "16", "58", "--out", "out") == 0
    failed = [record for record in kept("out") if record["status"] != "ok"]
    assert {(r["method"], r["status"]) for r in failed} == {("chimera", "skipped")}
    assert "gpt2 has no intermediate_size" in failed[0]["error"]
    assert check("out") == []


# Bad input

REFUSED = [
    (["--models", "synthetic:tinny"], "unknown model .*did you mean 'synthetic:tiny'"),
    (["--methods", "lookahed"], "unknown method 'lookahed'; did you mean 'lookahead'"),
    (["--methods", "transformers_generate"], "has no steps to measure; leave it out"),
    (["--engine", "fast"], "--engine 'fast': choose from eager, graph, compile"),
    (["--widths", "0"], "--widths must be at least 1, not 0"),
    (["--widths", "1", "1"], "--widths names something twice"),
    (["--contexts"], "--contexts needs at least one value"),
    (["--contexts", "many"], "argument --contexts: invalid int value: 'many'; see --help"),
    (["--max-new-tokens", "1"], "--max-new-tokens must be at least 2, not 1"),
    (["--turns", "0"], "--turns must be at least 1, not 0"),
    (["--device", "tpu"], "tpu"),
    (["--checkpoint", "lookahead=random"], "lookahead takes no weights"),
    (["--what"], "unrecognized arguments: --what; see --help"),
    (["--config", "none.yaml"], "cannot read none.yaml"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[" ".join(f) for f, _ in REFUSED])
def test_bad_input_is_refused_in_one_line(
    flags: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert measure(*flags) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(UsageError, match=message):
        raise UsageError(line)
    assert not list(tmp_path.iterdir())


def test_another_study_is_not_written_into_the_folder(
    done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = harness.contents(done)
    assert measure("--out", "out", "--repeats", "3") == 2
    assert "other settings: engine (eager graph, now eager)" in capfd.readouterr().err
    path = done / "environment.json"
    path.write_text(path.read_text().replace('"transformers": "', '"transformers": "0.'))
    assert measure("--out", "out", "--engine", "eager", "graph") == 2
    assert "recorded with another packages transformers" in capfd.readouterr().err
    assert harness.contents(done)[COSTS] == before[COSTS]


def test_every_study_in_the_readme_can_be_asked_for() -> None:
    found = commands("bench.cost")
    assert found
    for argv in found:
        parser = Parser()
        add_arguments(parser, CostConfig)
        config = CostConfig(**vars(parser.parse_args(argv)))
        resolve(config.methods, config.checkpoint, config.tree)
        assert all(targets.resolve(name).name == name for name in config.models)


# Bytes and seconds


def test_bytes_of_a_forward() -> None:
    d, ffn, v, layers, kv = 64, 128, 512, 2, 32
    layer = d * d + 2 * d * kv + d * d + 3 * d * ffn + 2 * d
    weights = layers * layer + d + v * d  # the LM head is read whole, the embeddings are not
    tiny = targets.load(targets.resolve("synthetic:tiny"), "cpu", torch.float32).model
    expected = {"parameters": weights + v * d, "weight_bytes": 4 * weights}
    assert facts(tiny) == expected | {"row_bytes": 2 * layers * kv * 4}
    tiny.set_output_embeddings(tiny.get_input_embeddings())  # one table that is both
    tied = facts(tiny)
    assert (tied["parameters"], tied["weight_bytes"]) == (weights, 4 * weights)


def test_bandwidth_is_that_of_some_memory() -> None:
    speed = bandwidth(torch.device("cpu"))
    assert 1e8 < speed.copy < 1e13
    assert 1e8 < speed.read < 1e13


def test_timed_is_the_call_alone() -> None:
    calls: list[int] = []
    assert 0 <= timed(torch.device("cpu"), lambda: calls.append(1)) < 1
    assert calls == [1]


# Random drafts


@pytest.fixture(scope="module")
def model() -> Any:
    return targets.load(targets.resolve("synthetic:predictable-mha"), "cpu", torch.float32).model


@pytest.mark.parametrize(
    "name",
    [
        "hydra",
        "medusa",
        "medusa_typical",
        "chimera",
        "chimera_plus",
        "chimera_block",
        "eagle3",
        "dflash",
    ],
)
def test_a_random_draft_changes_no_answer(model: Any, name: str) -> None:
    prompt = [5, 3, 8, 1, 9]
    outputs = []
    for each in (REFERENCE, name):
        found = method(each, discover(), {name: "random"})
        assert found.decoder is not None
        decoder = found.decoder(EagerTarget(model), found.settings)
        outputs.append(run_turn(decoder, prompt, Sampling(), 16, ()).output_ids)
    assert decoder.draft_parameters > 0
    assert decoder.checkpoint_sha256 is not None
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_drafts_have_the_published_shapes(model: Any, dtype: torch.dtype) -> None:
    config = model.config
    d, v, ffn = config.hidden_size, config.vocab_size, config.intermediate_size
    device = torch.device("cpu")
    medusa, known = medusa_layouts.random(d, v, device, dtype)
    assert sum(p.numel() for p in medusa.parameters()) == 5 * (d * d + d + v * d)
    assert all(p.dtype is dtype and not p.requires_grad for p in medusa.parameters())
    assert medusa_layouts.random(d, v, device, dtype)[1] == known
    hydra, _ = hydra_layouts.random(d, v, device, dtype)
    reads = 2 + 3 + 4 + 5  # h_t and k embeddings, by the two matrices of head k
    heads = 2 * (reads * d * d + 4 * d)
    assert sum(p.numel() for p in hydra.parameters()) == heads + 4 * (v * d + v)
    assert hydra.state_dict()["scale"].item() == 1
    chimera, _ = chimera_layouts.random(chimera_layouts.shape(config), device, dtype)
    trigram, layer = 12 * d * d + 3 * d, 4 * d * d + 3 * d * ffn
    norms = 3 * d  # the published layer has two; its input's serves context and query here
    assert sum(p.numel() for p in chimera.parameters()) == trigram + layer + norms + 5 * 2 * d * v
    state = chimera.state_dict()
    assert state["encoder.state_norm.scale"].eq(1).all()
    assert state["encoder.state_norm.mean"].eq(0).all()
    assert 0.015 < state["encoder.q_proj.weight"].float().std() < 0.025


def drafted_bytes(text: str, checkpoint: str | None, model: Any, name: str) -> tuple[int, Decoder]:
    found = method(text, discover(), {} if checkpoint is None else {text.split("(")[0]: checkpoint})
    assert found.decoder is not None
    decoder = found.decoder(EagerTarget(model, name), found.settings)
    return decoder.draft_bytes(), decoder


def test_bytes_of_a_random_draft(model: Any) -> None:
    config = model.config
    d, v, ffn = config.hidden_size, config.vocab_size, config.intermediate_size
    medusa, _ = drafted_bytes("medusa", "random", model, "any")
    assert medusa == 4 * 5 * (d * d + d + v * d)
    hydra, _ = drafted_bytes("hydra(depth=2)", "random", model, "any")
    assert hydra == 4 * (2 * (5 * d * d + 2 * d) + 2 * (v * d + v))  # of two levels alone
    trigram, layer = 12 * d * d + 3 * d, 4 * d * d + 3 * d * ffn + 3 * d
    for text, levels in (("chimera", 5), ("chimera(nodes=12)", 2), ("chimera(depth=3)", 3)):
        chimera, _ = drafted_bytes(text, "random", model, "any")
        # Every level reads all but the other levels' heads; what was committed, keys and values.
        assert chimera == 4 * (levels * (trigram + layer + 2 * d * v) + 2 * d * d)


def test_a_shared_lm_head_is_read_at_every_level(model: Any) -> None:
    d, v = model.config.hidden_size, model.config.vocab_size
    depth = 5  # of the paper's tree, and of the heads no fewer
    short, _ = drafted_bytes("chimera_plus(vocab=8)", "random", model, "any")
    whole, decoder = drafted_bytes("chimera_plus(vocab=0)", "random", model, "any")
    assert whole - short == 4 * depth * (v - 8) * d
    assert whole > 4 * decoder.draft_parameters


def test_one_pass_is_read_once(model: Any) -> None:
    """A further level reads the sequential head and the LM head's rows."""
    d, v = model.config.hidden_size, model.config.vocab_size
    shallow, deep = (
        drafted_bytes(f"chimera_block(depth={k})", "random", model, "any")[0] for k in (2, 3)
    )
    assert deep - shallow == 4 * (2 * d * 3 * d + d * 2 * d + v * d)


def test_methods_without_weights_read_none(model: Any) -> None:
    assert [drafted_bytes(m, None, model, "any")[0] for m in ("lookahead", "prompt_lookup")] == [
        0,
        0,
    ]


# The validator


def study(tmp_path: Path, *lines: Record) -> Path:
    return studies.write_study(tmp_path / "study", lines)


def test_the_examples_are_sound(tmp_path: Path) -> None:
    lines = [*studies.example(), studies.skipped(ENGINE, "no GPU", engine="graph")]
    assert check(study(tmp_path, *lines)) == []


BROKEN: list[tuple[str, Callable[[], Record]]] = [
    ("kind must be", lambda: studies.measurement(ENGINE) | {"kind": "prefill"}),
    ("seconds holds 3 of 4 repeats", lambda: studies.measurement(FORWARD, repeats=4)),
    ("turns holds 1 of 2 repeats", lambda: studies.measurement(STEP, repeats=2)),
    ("accept_lengths sums to 4, not 8", lambda: studies.measurement(STEP, max_new_tokens=9)),
    ("seconds must be", lambda: studies.measurement(FORWARD) | {"seconds": [-1.0, 1.0, 1.0]}),
    ("turns must be", lambda: studies.measurement(STEP) | {"turns": [{"decode_s": 1.0}]}),
    (
        "turns must be",
        lambda: studies.measurement(STEP) | {"turns": [studies.turn() | {"quiet_s": "1"}]},
    ),
    ("startup_s is null", lambda: studies.measurement(ENGINE) | {"startup_s": None}),
    ("extra is no key", lambda: studies.measurement(ENGINE) | {"extra": 1}),
    ("width is missing", lambda: {k: v for k, v in studies.fast().items() if k != "width"}),
    ("key is not the hash", lambda: studies.measurement(FORWARD) | {"width": 2}),
    ("error is not null", lambda: studies.measurement(ENGINE) | {"error": "why"}),
    ("gives no reason", lambda: studies.skipped(ENGINE, "why") | {"error": None}),
    ("is a figure, null in", lambda: studies.skipped(ENGINE, "why") | {"startup_s": 1.0}),
]


@pytest.mark.parametrize(("message", "broken"), BROKEN, ids=[message for message, _ in BROKEN])
def test_a_broken_record_is_found(
    message: str, broken: Callable[[], Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (problem,) = violations(broken())
    assert message in problem
    folder = study(tmp_path, studies.measurement(ENGINE, engine="graph"), broken())
    assert check_records(["check", str(folder)]) == 1
    assert f"line 2: {problem}" in capsys.readouterr().out


def test_the_validator_reads_whole_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = study(tmp_path, studies.measurement(ENGINE), studies.measurement(ENGINE))
    assert check(twice) == ["line 2: its key is done in line 1"]
    (twice / "environment.json").unlink()
    with (twice / COSTS).open("a") as file:
        file.write('{"torn')
    assert check(twice)[0] == "environment.json is missing"
    assert check(twice)[-1].startswith("line 3: torn")
    assert check_records(["check", str(tmp_path / "nowhere")]) == 2
    assert "give the folder of a run" in capsys.readouterr().err


def test_a_later_success_counts_and_a_later_failure_does_not() -> None:
    failed, good = studies.skipped(ENGINE, "no room"), studies.measurement(ENGINE)
    for order in ([failed, good], [good, failed]):
        assert latest(order) == [good]
    again = studies.skipped(ENGINE, "another reason")
    assert latest([failed, again]) == [again]


def test_another_major_version_is_refused(tmp_path: Path) -> None:
    folder = study(tmp_path, studies.measurement(ENGINE) | {"schema": "2.0"})
    with pytest.raises(UsageError, match=r"line 1: schema 2\.0 .* 1\.1"):
        read(folder)
