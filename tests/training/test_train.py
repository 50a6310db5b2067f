"""Training small drafts on the predictable target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts import trainable
from bench.decoding.drafts.weights import read_draft, rewrite_card
from bench.errors import UsageError
from bench.training import train
from bench.training.anchors import sample_anchors
from bench.training.data import Batch, _by_length
from bench.training.states import KeptStates, TargetStates
from bench.training.train import TrainConfig, Trainer
from tests.decoding.known import tiny_model
from tests.training import drafts
from tests.training.drafts import METHODS, PREDICTABLE, RUNS

ABLATIONS = ("chimera_unigram", "chimera_no_context", "chimera_heads_o", "chimera_no_distil")
VOCAB = 64
# A draft that ranks at random has the true token among the first eight of 64 one time in eight:
# no tree of eight nodes emits much more than 1 + 1/8 tokens a step.
CHANCE = 1.2
MARGIN = 1.0


def short(out: Path, **changes: Any) -> TrainConfig:
    """A few steps on little data."""
    base: dict[str, Any] = {"method": ("medusa",), "steps": 6, "eval_every": 2, "warm_up": 2}
    config = drafts.settings(drafts.data(PREDICTABLE), out, **base)
    return replace(config, **({"anchors": 6} | changes))


def losses(out: Path, label: str) -> list[float]:
    return [entry["methods"][label]["loss"] for entry in drafts.log(out)]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_held_out_text_is_accepted(method: str) -> None:
    out = drafts.weights(PREDICTABLE, method).parent
    log = [entry["methods"][f"{method}-0"] for entry in drafts.log(out)]
    curve = [entry["loss"] for entry in log]
    assert len(curve) == 3
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < 0.85 * curve[0]
    last = log[-1]
    assert last["accepted"]["8"] > CHANCE + MARGIN
    lengths = [last["accepted"][nodes] for nodes in ("8", "15", "26", "63")]
    assert lengths == sorted(lengths)
    assert last["top1"][0] > 0.3 > 10 / VOCAB
    assert all(one <= three for one, three in zip(last["top1"], last["top3"], strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_card_tells_how_a_draft_was_made(method: str) -> None:
    path = drafts.weights(PREDICTABLE, method)
    card = json.loads(path.with_suffix(".json").read_text())
    saved = read_draft(path)
    (run,) = (run for run in RUNS if method in run["method"])
    assert card["sha256"] == saved.sha256
    assert {key: value for key, value in card.items() if key != "sha256"} == saved.card
    assert (card["method"], card["seed"], card["target"]) == (method, 0, PREDICTABLE)
    assert card["distil_weight"] == trainable.load(method).distil
    assert card["recipe"]["steps"] == run["steps"]
    assert not {"out", "data", "device"} & set(card["recipe"]), "no paths"
    assert card["data"]["sequences"] == drafts.SEQUENCES
    assert card["held_out"] == drafts.log(path.parent)[-1]["methods"][f"{method}-0"]
    assert card["parameters"] == sum(
        tensor.numel()
        for name, tensor in saved.state.items()
        if not name.endswith(("mean", "scale"))
    )
    assert sorted(saved.vocabulary.tolist()) == list(range(VOCAB))
    known: set[tuple[int, ...]] = {()}
    for rank_path in card["tree"]:
        assert tuple(rank_path[:-1]) in known
        known.add(tuple(rank_path))
    assert (path.parent / "curve.svg").stat().st_size > 0


def test_a_head_of_the_drafts_own_starts_as_the_targets_and_is_trained() -> None:
    saved = read_draft(drafts.weights(PREDICTABLE, "eagle3"))
    own = saved.state["lm_head.weight"]
    target = drafts.MODELS[PREDICTABLE]().lm_head.weight[saved.vocabulary[: len(own)]]
    alike = torch.nn.functional.cosine_similarity(own, target)
    assert 0.3 < float(alike.mean()) < 0.999
    assert float(alike.mean()) > 2 * float(alike.std())


@pytest.mark.parametrize("method", METHODS)
def test_eight_bits_cost_little(method: str) -> None:
    card = read_draft(drafts.weights(PREDICTABLE, method)).card
    assert card["bits"] == 8
    trained, saved = card["held_out"], card["held_out_as_saved"]
    for nodes, length in trained["accepted"].items():
        assert saved["accepted"][nodes] == pytest.approx(length, rel=0.06)
    assert saved["top1"] == pytest.approx(trained["top1"], abs=0.06)
    assert saved["anchors"] == trained["anchors"] > 100


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    methods = ("chimera", "medusa")
    whole = short(tmp_path / "whole", method=methods, anchors=4)
    Trainer(whole).run()
    halves = replace(whole, out=str(tmp_path / "halves"), save_every=2)
    Trainer(replace(halves, stop_at=4)).run()
    assert not list((tmp_path / "halves").glob("*.safetensors")), "not done yet"
    Trainer(halves).run()
    for method in methods:
        label = f"{method}-0"
        curves = [losses(tmp_path / name, label) for name in ("whole", "halves")]
        assert curves[0] == pytest.approx(curves[1], rel=1e-5)
        states = [
            read_draft(tmp_path / n / f"{label}.safetensors").state for n in ("whole", "halves")
        ]
        for name, tensor in states[0].items():
            torch.testing.assert_close(tensor, states[1][name], rtol=0.02, atol=1e-3)


def test_drafts_that_train_together_do_not_disturb_each_other(tmp_path: Path) -> None:
    Trainer(short(tmp_path / "both", method=("chimera_plus", "medusa"), steps=4)).run()
    Trainer(short(tmp_path / "alone", steps=4)).run()
    both, alone = (losses(tmp_path / name, "medusa-0") for name in ("both", "alone"))
    assert both == pytest.approx(alone, rel=1e-6)
    assert (
        drafts.log(tmp_path / "both")[-1]["methods"]["medusa-0"]
        == (drafts.log(tmp_path / "alone")[-1]["methods"]["medusa-0"])
    )


def test_seeds_are_runs_of_their_own(tmp_path: Path) -> None:
    config = short(tmp_path, method=("chimera",), seeds=(0, 1), steps=2, anchors=4)
    Trainer(config).run()
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "chimera-0.safetensors",
        "chimera-1.safetensors",
    }
    assert losses(tmp_path, "chimera-0") != losses(tmp_path, "chimera-1")


def test_ablations_are_of_one_size() -> None:
    for target in (TargetInfo("a", 96, 64, 2), TargetInfo("b", 576, 1000, 30)):
        sizes = {
            sum(parameter.numel() for parameter in trainable.load(name).build(target).parameters())
            for name in ("chimera", *ABLATIONS)
        }
        assert len(sizes) == 1


def test_ablations_train(tmp_path: Path) -> None:
    config = short(tmp_path, method=ABLATIONS, muon_lr=0.05, anchors=4)
    Trainer(config).run()
    for name in ABLATIONS:
        curve = losses(tmp_path, f"{name}-0")
        assert curve[-1] < curve[0]
        assert (
            read_draft(tmp_path / f"{name}-0.safetensors").card["note"] == trainable.load(name).note
        )


def test_hard_labels_and_a_cut_vocabulary(tmp_path: Path) -> None:
    Trainer(short(tmp_path, hard=True, vocabulary=32, steps=30, eval_every=10, muon_lr=0.1)).run()
    curve = losses(tmp_path, "medusa-0")
    assert curve[-1] < 0.9 * curve[0]
    assert read_draft(tmp_path / "medusa-0.safetensors").card["recipe"]["hard"]


def test_16_bits_hold_matrices_as_bfloat16(tmp_path: Path) -> None:
    Trainer(short(tmp_path, bits=16, steps=1, eval_every=1)).run()
    saved = read_draft(tmp_path / "medusa-0.safetensors")
    assert saved.card["bits"] == 16
    for tensor in saved.state.values():
        if tensor.dim() == 2:
            assert torch.equal(tensor, tensor.bfloat16().float())


def test_anchors_lie_in_answers_and_weights_end_with_them() -> None:
    roles = torch.zeros(2, 30, dtype=torch.bool)
    roles[0, 5:12] = True
    roles[1, 10:14] = roles[1, 17:21] = True
    anchors, weights = sample_anchors(roles, 4, 30, torch.Generator().manual_seed(0))
    for row in range(2):
        for t, weight in zip(anchors[row].tolist(), weights[row].tolist(), strict=True):
            inside = [bool(roles[row, t + 1 : t + 2 + j].all()) for j in range(1, 5)]
            assert weight == [float(flag) for flag in inside]
    used = anchors[0][weights[0, :, 0] > 0]
    assert sorted(set(used.tolist())) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": ("chimaera",)}, "unknown method 'chimaera'; choose from chimera"),
        (
            {"data": ("nowhere",)},
            "nowhere holds no data card; run python -m bench.training.distill",
        ),
        ({"model": "synthetic:tiny"}, "written by synthetic:predictable, not synthetic:tiny"),
        ({"held_out": 5000}, "--held-out 5000 of 288 sequences cannot be; give 1 to 287"),
        ({"held_out": 0}, "--held-out 0 of 288 sequences cannot be"),
        ({"steps": 0}, "--steps must be at least 1"),
    ],
    ids=["method", "no data", "another target", "all held out", "none held out", "no steps"],
)
def test_what_cannot_be_trained_is_refused(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=match):
        Trainer(short(out, **changes)).run()
    assert not out.exists()


def little(folder: Path, sequences: int, length: int = drafts.LENGTH) -> TrainConfig:
    """A training on the first sequences of the data."""
    (shard,) = drafts.data(PREDICTABLE).glob("*.safetensors")
    tensors = {k: v[:sequences, :length].contiguous() for k, v in load_file(shard).items()}
    drafts.write_data(folder / "data", PREDICTABLE, tensors["ids"], tensors["roles"])
    changes = {"data": (str(folder / "data"),), "held_out": None, "tokens": 1_000_000}
    return short(folder / "out", steps=2, **changes)


def test_little_data_trains(tmp_path: Path) -> None:
    """In one batch; a sixteenth is held out, at least one sequence."""
    config = little(tmp_path, 3)
    trainer = Trainer(config)
    assert [len(batch.ids) for batch in trainer.shards.held(99)] == [1]
    trainer.run()
    assert read_draft(tmp_path / "out" / "medusa-0.safetensors").card["recipe"]["held_out"] is None
    whole = Trainer(short(tmp_path / "whole", held_out=None))
    assert sum(len(batch.ids) for batch in whole.shards.held(99)) == 288 // 16


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than two sequences of one length; write more"):
        Trainer(little(tmp_path / "a", 1))
    with pytest.raises(UsageError, match="1 held-out sequences have 0 places with 6 answer tokens"):
        Trainer(little(tmp_path / "b", 2, length=9))
    assert not (tmp_path / "b" / "out").exists()


def test_a_killed_training_resumes_and_a_finished_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = drafts.data(PREDICTABLE)
    flags = ["--method", "medusa", "--model", PREDICTABLE, "--data", str(folder), "--device", "cpu"]
    flags += ["--out", str(tmp_path), "--steps", "6", "--tokens", "384", "--anchors", "6"]
    flags += ["--eval-every", "2", "--save-every", "2"]
    step = Trainer._step

    def killed(trainer: Trainer, *batch: Any) -> dict[str, Any]:
        if trainer.progress.step == 5:
            raise KeyboardInterrupt
        return step(trainer, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", killed)
        assert train.main(flags) == 130
    assert "stopped; the same command resumes" in capsys.readouterr().err
    assert train.main([*flags, "--steps", "7"]) == 2
    assert f"{tmp_path} holds a training with --steps 6, not 7" in capsys.readouterr().err
    assert train.main(flags) == 0
    assert f"{tmp_path} holds 4 of 6 steps; going on from there" in capsys.readouterr().err
    assert [entry["step"] for entry in drafts.log(tmp_path)] == [2, 4, 6]
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-6"], "the newest alone"
    rewrite_card(tmp_path / "medusa-0.safetensors", {"tree": [[0]]})
    assert train.main(flags) == 0
    assert "is trained: 6 steps; nothing is left to do" in capsys.readouterr().err
    assert read_draft(tmp_path / "medusa-0.safetensors").card["tree"] == [[0]]


def test_out_of_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "run", full)
    flags = ["--method", "medusa", "--model", PREDICTABLE, "--device", "cpu"]
    flags += ["--data", str(drafts.data(PREDICTABLE)), "--out", str(tmp_path)]
    assert train.main(flags) == 2
    assert capsys.readouterr().err.startswith("error: out of memory; give fewer --tokens than 5")


def test_kept_states_are_those_of_the_target() -> None:
    model = tiny_model(20, layers=2)
    states = TargetStates(model)
    states.tap(1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (10, 16), generator=generator)
    each = 2 * 16 * 32 * 4  # bytes of a sequence
    kept = KeptStates(states, 7 * each)
    run: list[int] = []
    model.base_model.register_forward_hook(
        lambda _m, _a, kwargs, _o: run.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for _ in range(2):
        for rows in torch.split(torch.randperm(10, generator=generator), 5):
            hidden, taps = kept(0, 10, rows, ids[rows])
            counted = len(run)
            plain, streams = states(ids[rows])
            del run[counted:]
            torch.testing.assert_close(hidden, plain)
            torch.testing.assert_close(taps[1], streams[1])
    assert sum(run) == 10 + 3, "three do not fit"


def test_rows_end_with_the_last_answer() -> None:
    ids = torch.arange(4 * 200).view(4, 200)
    roles = torch.zeros(4, 200, dtype=torch.bool)
    roles[0, 10:56] = roles[1, 10:57] = roles[2, 199] = roles[3, 5] = True
    found = _by_length(Batch(ids, roles))
    assert [tuple(batch.ids.shape) for batch in found] == [(2, 64), (1, 128), (1, 200)]
    assert torch.equal(found[0].ids, ids[[0, 3], :64])
    assert sum(int(batch.roles.sum()) for batch in found) == int(roles.sum())


def test_the_first_tokens_of_answers_are_preferred() -> None:
    roles = torch.zeros(64, 600, dtype=torch.bool)
    roles[:, 40:300] = roles[:, 350:580] = True
    generator = torch.Generator().manual_seed(0)
    share = []
    for from_start in (False, True):
        anchors, _ = sample_anchors(roles, 4, 24, generator, from_start)
        assert roles.gather(1, anchors + 1).all()
        early = ((anchors >= 40) & (anchors < 168)) | ((anchors >= 350) & (anchors < 478))
        share.append(float(early.float().mean()))
    assert share[0] == pytest.approx(256 / 490, abs=0.04)
    assert share[1] > share[0] + 0.15


def test_every_loss_trains(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "depth_weights": "dpace",
        "tv": 0.5,
        "anchors_from_start": True,
        "keep_states": 1.0,
    }
    Trainer(short(tmp_path, **options)).run()
    assert (tmp_path / "medusa-0.safetensors").exists()
    with pytest.raises(UsageError, match=r"--tv must lie in 0\.\.1"):
        Trainer(short(tmp_path / "other", tv=2.0))
