"""Tuning: the search finds what is fastest, its files are exact, and runs take what they hold."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from baselines.autoregressive import Autoregressive
from baselines.medusa.decoder import Medusa, MedusaSettings
from baselines.medusa.model import Medusa as MedusaHeads
from baselines.medusa.model import MedusaConfig
from bench.decoding.decoder import Decoder, Settings, TargetInfo
from bench.decoding.drafts.weights import save_draft
from bench.decoding.engines import trial as engines
from bench.decoding.sampling import Sampling
from bench.distributed import World
from bench.questions.registry import REGISTRY
from bench.records import runs as records
from bench.records import tuned
from bench.records.tuned import FINAL, SEARCH, Point, Tuned, TunedFor, TunedMethod
from bench.run import __main__ as run
from bench.run import methods
from bench.run import tuning as shelf
from bench.run.runner import Turn
from bench.tune import __main__ as tune
from bench.tune import config as tune_config
from bench.tune import measuring
from bench.tune.config import Effort, TuneConfig
from tests import harness
from tests.test_published import with_own_heads
from tests.test_readme import commands

ROOT = Path(__file__).resolve().parent.parent
MODEL = "synthetic:predictable"
SMALL = Effort(search=2, search_tokens=5, final=3, final_tokens=7, warm_up_tokens=2, finalists=2)
REFERENCE_S = 0.010


@dataclass(frozen=True)
class DialSettings(Settings):
    """Like a tree: more nodes are accepted further and cost more; `odd` cannot be above 2."""

    nodes: int = 8
    depth: int = 0
    odd: int = 1
    fixed: str = "kept"

    def __post_init__(self) -> None:
        if self.odd > 2:
            raise ValueError("dial needs odd <= 2")

    @classmethod
    def grid(cls) -> Mapping[str, Sequence[Any]]:
        return {"nodes": (1, 2, 4, 8, 16, 64), "depth": (2, 4, 0), "odd": (1, 2, 3)}


class Dial(Autoregressive):
    name: ClassVar[str] = "dial"
    settings_type: ClassVar[type[Settings]] = DialSettings

    @classmethod
    def weights_sha256(cls, target: TargetInfo, settings: Settings) -> str | None:  # noqa: ARG003
        return cls.checkpoint_sha256


class Absent(Dial):
    name: ClassVar[str] = "absent"

    @classmethod
    def unavailable(cls, target: TargetInfo, settings: Settings) -> str | None:  # noqa: ARG003
        return f"no weights for {target.name}"


Cost = Callable[[DialSettings, tuple[int, ...]], tuple[int, float]]
"""(tokens a step, seconds a step) of a setting, for a prompt's ids."""


def hill(settings: DialSettings, _: tuple[int, ...]) -> tuple[int, float]:
    """Fastest at nodes=2, depth=4, odd=2; 64 nodes are hopeless."""
    accepted = {1: 2, 2: 4, 4: 4, 8: 4, 16: 5, 64: 6}[settings.nodes]
    seconds = REFERENCE_S * (1 + 0.1 * settings.nodes)
    seconds *= {2: 1.1, 4: 1.0, 0: 1.2}[settings.depth] * {1: 1.05, 2: 1.0}[settings.odd]
    return accepted, seconds


class Bench:
    """Stands in for `run_turn`: notes what is asked, and answers as fast as `cost` says."""

    def __init__(self, cost: Cost = hill) -> None:
        self.cost = cost
        self.asked: list[tuple[str, tuple[int, ...], int]] = []  # label, prompt, budget

    def __call__(
        self,
        decoder: Decoder,
        prompt_ids: tuple[int, ...],
        sampling: Sampling,
        max_new_tokens: int,
        eos_ids: Sequence[int],
    ) -> Turn:
        assert sampling.greedy
        accepted, seconds, label = 1, REFERENCE_S, records.REFERENCE
        if isinstance(decoder.settings, DialSettings):
            accepted, seconds = self.cost(decoder.settings, prompt_ids)
            label = methods.Method("dial", Dial, decoder.settings).label
        self.asked.append((label, prompt_ids, max_new_tokens))
        left = max_new_tokens - 1
        lengths = [accepted] * (left // accepted) + [left % accepted] * (left % accepted > 0)
        return Turn(
            output_ids=[0] * max_new_tokens,
            finish="length",
            accept_lengths=lengths,
            prefill_s=1.0,
            decode_s=seconds * len(lengths),
            drafted=len(lengths) * getattr(decoder.settings, "nodes", 0),
        )

    def prompts(self, budget: int) -> set[tuple[int, ...]]:
        return {prompt for _, prompt, tokens in self.asked if tokens == budget}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of tuned files in a cache of one's own; small stages; one thread."""
    harness.work_in(tmp_path, monkeypatch)
    monkeypatch.setenv("CHIMERA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune_config, "EFFORT", dict.fromkeys(tune_config.EFFORT, SMALL))
    harness.install(monkeypatch, Dial, Absent)
    with harness.one_thread():
        yield tmp_path / "cache" / "tuned"


def timed(monkeypatch: pytest.MonkeyPatch, cost: Cost = hill) -> Bench:
    bench = Bench(cost)
    monkeypatch.setattr(measuring, "run_turn", bench)
    return bench


def tuned_by(*flags: str) -> int:
    return tune.main(["--model", MODEL, "--device", "cpu", *flags])


def entry_of(folder: Path, method: str = "dial") -> TunedMethod:
    (path,) = folder.glob("*.json")
    found = tuned.read(path)
    assert found is not None
    return found.methods[method]


# The search


def test_the_fastest_setting_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda settings, _: (1 + settings.odd, hill(settings, ())[1]))
    assert tuned_by("--methods", "dial") == 0
    entry = entry_of(cache)
    assert entry.params == {"nodes": 1, "depth": 4, "odd": 2, "fixed": "kept"}
    chosen = entry.chosen
    assert chosen.accepted == pytest.approx(3.0)
    assert chosen.width == 2.0  # a node and the root
    assert chosen.step_s == pytest.approx(1.1 * REFERENCE_S)
    assert chosen.reference_s == pytest.approx(REFERENCE_S)
    assert chosen.speedup == pytest.approx(3 / 1.1)
    assert (chosen.low, chosen.high) == pytest.approx((3 / 1.1, 3 / 1.1))
    assert chosen.questions == SMALL.final
    for point in entry.points:
        worth = point.accepted * point.reference_s / point.step_s
        assert point.speedup == pytest.approx(worth)


def test_settings_far_behind_are_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch)
    assert tuned_by("--methods", "dial") == 0
    search = [point for point in entry_of(cache).points if point.stage == SEARCH]
    asked = {tuple(point.params.values())[:3]: point.questions for point in search}
    assert asked[64, 0, 1] == 1
    assert asked[2, 0, 1] == SMALL.search
    assert asked[8, 0, 1] >= 1  # the method's own default is among them
    assert not any(nodes == 64 and depth != 0 for nodes, depth, _ in asked)
    assert not any(odd == 3 for *_, odd in asked)  # the settings refuse it
    assert len(asked) == len(search)  # none is searched twice
    assert len(search) < 6 * 3 * 2  # nor is the whole grid


def test_both_stages_have_questions_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = timed(monkeypatch)
    assert tuned_by("--methods", "dial") == 0
    search, final = bench.prompts(SMALL.search_tokens), bench.prompts(SMALL.final_tokens)
    assert (len(search), len(final)) == (SMALL.search, SMALL.final)
    assert not search & final
    asked = {label for label, _, tokens in bench.asked if tokens == SMALL.final_tokens}
    assert len(asked) == SMALL.finalists + 1  # and the reference
    for budget in (SMALL.search_tokens, SMALL.final_tokens):  # nobody is always first
        places = defaultdict(list)
        for label, prompt, tokens in bench.asked:
            if tokens == budget:
                places[prompt].append(label)
        assert len({order[0] for order in places.values()}) > 1
        assert all(records.REFERENCE in order for order in places.values())


def test_luck_in_the_search_does_not_win(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Bench()
    monkeypatch.setattr(measuring, "run_turn", seen)
    assert tuned_by("--methods", "dial") == 0
    search = seen.prompts(SMALL.search_tokens)

    def lucky(settings: DialSettings, prompt: tuple[int, ...]) -> tuple[int, float]:
        accepted, seconds = hill(settings, prompt)
        return accepted, seconds * (0.84 if settings.nodes == 4 and prompt in search else 1)

    assert entry_of(cache).params["nodes"] == 2
    timed(monkeypatch, lucky)
    assert tuned_by("--methods", "dial") == 0
    entry = entry_of(cache)
    best = max((p for p in entry.points if p.stage == SEARCH), key=lambda p: p.speedup)
    assert best.params["nodes"] == 4
    assert entry.params["nodes"] == 2


def test_decoders_are_built_once_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch)
    built: Counter[str] = Counter()
    make = measuring.build

    def count(method: methods.Method, target: Any) -> Decoder:
        built[method.label] += 1
        return make(method, target)

    monkeypatch.setattr(measuring, "build", count)
    assert tuned_by("--methods", "dial") == 0
    assert built[records.REFERENCE] == 1
    assert set(built.values()) <= {1, 2}
    assert sum(count == 2 for count in built.values()) <= SMALL.finalists


def test_every_grid_is_of_parameters_that_exist() -> None:
    kinds = {name: point.load() for name, point in methods.discover().items()}
    grids = {n: k.settings_type.grid() for n, k in kinds.items() if not issubclass(k, Dial)}
    drafting = {"chimera", "chimera_plus", "hydra", "medusa", "lookahead", "prompt_lookup"}
    assert {name for name, grid in grids.items() if grid} >= drafting
    assert not grids["autoregressive"]
    for name, grid in grids.items():
        for key, values in grid.items():
            for value in values:  # every one is accepted alone
                text = f"{name}({key}={str(value).lower()})"
                found = methods.method(text, methods.discover())
                assert found.params[key] == value


def test_documented_commands_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TuneConfig] = []

    def keep(config: TuneConfig, _: World) -> tuple[Tuned, Path]:
        asked.append(config)
        return Tuned(PLACE, {}), Path("file")

    monkeypatch.setattr(tune, "tune", keep)
    documented = commands("bench.tune")
    assert [tune.main(argv) for argv in documented] == [0] * len(documented) != []
    known = methods.discover()
    assert all(name in known for config in asked for name in config.methods)


def test_settings_that_the_engine_refuses_are_left_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def narrow(settings: DialSettings, prompt: tuple[int, ...]) -> tuple[int, float]:
        if settings.nodes > limit:
            raise ValueError(f"trees of {limit} nodes,\nnot {settings.nodes}")
        return hill(settings, prompt)

    limit = 4  # the method's own default is wider
    timed(monkeypatch, narrow)
    assert tuned_by("--methods", "dial") == 0
    made = entry_of(cache)
    assert made.params["nodes"] == 2
    assert max(point.params["nodes"] for point in made.points) == 4
    limit = 0
    capsys.readouterr()
    assert tuned_by("--methods", "dial") == 2
    assert "dial(nodes=8,depth=0,odd=1,fixed=kept): trees of 0 nodes, not 8" in line_of(capsys)


# Bad input


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--methods", "dial(nodes=3)"], "bench.tune chooses the parameters; name it alone"),
        (["--methods", "dail"], "unknown method 'dail'; did you mean 'dial'"),
        (["--methods", "autoregressive", "transformers_generate"], "has no parameters to tune"),
        (["--methods", "absent"], f"none of the methods can run on {MODEL}"),
        (["--engine", "warp"], "--engine 'warp': choose from eager"),
        (["--dtype", "int8"], "--dtype 'int8': choose from auto, float32"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--model", "nowhere"], "unknown model 'nowhere'"),
        (["--model", "synthetic:tiny"], "synthetic:tiny has random weights"),
        (["--methods", "medusa", "--checkpoint", "medusa=none.pt"], "none.pt is no local file"),
        (["--what"], "unrecognized arguments: --what; see --help"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], complaint: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuned_by(*flags) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{complaint}", line)
    assert not cache.exists()


def test_an_engine_that_falls_back_is_not_tuned(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "make", lambda *_: (None, "it needs a CUDA device"))
    assert tuned_by("--methods", "dial") == 2
    assert line_of(capsys) == "error: --engine eager cannot run here: it needs a CUDA device"
    assert not cache.exists()


def test_what_cannot_run_is_named_and_left_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed(monkeypatch)
    assert tuned_by("--methods", "absent", "dial") == 0
    shown = capsys.readouterr()
    assert "absent is left out: no weights for synthetic:predictable" in shown.err
    assert "dial(nodes=2,depth=4,odd=2,fixed=kept)" in shown.out
    assert list(json.loads(next(cache.glob("*.json")).read_text())["methods"]) == ["dial"]


# Files


PLACE = TunedFor("cpu, 1 thread", "eager", MODEL, "0" * 64, "float32")


def point(stage: str = FINAL, **params: Any) -> Point:
    return Point(params, stage, 2, 10, 3.0, 2.0, 0.02, 0.01, 1.0, None, None)


def entry(sha256: str | None = None, **params: Any) -> TunedMethod:
    points = (point(SEARCH, **params), point(**params))
    return TunedMethod(params, sha256, {"set": "tuning"}, "0.1.0", {"cpu": 1}, points)


def test_a_file_reads_back_and_keeps_other_methods(tmp_path: Path) -> None:
    first = Tuned(PLACE, {"dial": entry(nodes=1, rate=0.5, wide=True)})
    path = tuned.write(tmp_path / "deep", first)
    assert tuned.read(path) == first
    tuned.write(tmp_path / "deep", Tuned(PLACE, {"other": entry(k=1)}))
    tuned.write(tmp_path / "deep", Tuned(PLACE, {"dial": entry(nodes=2)}))
    found = tuned.read(path)
    assert found is not None
    assert {name: e.params for name, e in found.methods.items()} == {
        "dial": {"nodes": 2},
        "other": {"k": 1},
    }
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert not re.search(r"[^a-z0-9.-]", path.name)


@pytest.mark.parametrize("field", ["device", "engine", "model", "revision", "dtype"])
def test_nothing_is_found_for_another_place(field: str, tmp_path: Path) -> None:
    tuned.write(tmp_path, Tuned(PLACE, {"dial": entry(nodes=1)}))
    assert tuned.find(PLACE, "dial", ["nodes"], None, [tmp_path])
    other = replace(PLACE, **{field: "another"})
    assert tuned.find(other, "dial", ["nodes"], None, [tmp_path]) is None


def test_the_first_folder_with_the_same_weights_wins(tmp_path: Path) -> None:
    own, shipped, empty = (tmp_path / name for name in ("own", "shipped", "empty"))
    tuned.write(own, Tuned(PLACE, {"a": entry(nodes=1), "b": entry("11", nodes=1)}))
    tuned.write(shipped, Tuned(PLACE, {"a": entry(nodes=2), "b": entry("22", nodes=2)}))

    def nodes(method: str, sha256: str | None) -> int | None:
        found = tuned.find(PLACE, method, ["nodes"], sha256, [empty, own, shipped])
        return found and found[0].params["nodes"]

    assert (nodes("a", None), nodes("b", "11"), nodes("b", "22")) == (1, 1, 2)
    assert nodes("b", "33") is nodes("c", None) is None
    assert tuned.find(PLACE, "a", ["nodes", "depth"], None, [own]), "depth was added since"
    assert tuned.find(PLACE, "a", ["depth"], None, [own]) is None, "nodes is no parameter now"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: text.replace('"schema": "1.0"', '"schema": "2.0"'),
        lambda text: text.replace('"stage": "final"', '"stage": "search"'),
        lambda text: text.replace('"device"', '"machine"'),
        lambda _: "[]",
    ],
)
def test_a_damaged_file_is_refused_before_the_work(
    damage: Callable[[str], str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = timed(monkeypatch)
    assert tuned_by("--methods", "dial") == 0
    (path,) = cache.glob("*.json")
    path.write_text(damage(path.read_text()))
    before, asked = path.read_bytes(), len(bench.asked)
    capsys.readouterr()
    assert tuned_by("--methods", "dial") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is not a file of tuned parameters" in line
    assert (path.read_bytes(), len(bench.asked)) == (before, asked)


def test_later_minor_versions_are_read() -> None:
    content = json.loads(Tuned(PLACE, {"dial": entry(nodes=1)}).text())
    content |= {"schema": "1.7", "new": 1}
    content["methods"]["dial"]["new"] = 2
    found = tuned.parse(json.dumps(content), "file")
    assert found.methods["dial"] == entry(nodes=1)


def test_shipped_files_are_sound() -> None:
    for path in shelf.SHIPPED.glob("*.json"):
        found = tuned.read(path)
        assert found is not None
        assert found.tuned_for.file == path.name
        sha256 = REGISTRY["tuning"].sha256
        for method, made in found.methods.items():
            assert made.tuning["sha256"] == sha256
            known = methods.method(method, methods.discover())
            assert made.params.keys() <= known.params.keys(), "one added since has its default"
            assert known.decoder is not None
            info = TargetInfo(found.tuned_for.model)
            assert known.decoder.weights_sha256(info, known.settings) == made.checkpoint_sha256


def test_weights_are_known_before_they_are_loaded(tmp_path: Path) -> None:
    for name in ("chimera", "chimera_plus", "medusa"):
        known = methods.method(name, methods.discover())
        assert known.decoder is not None
        (card,) = ROOT.glob(f"*/**/weights/{name}-smollm2-135m.json")
        found = known.decoder.weights_sha256(TargetInfo("smollm2-135m"), known.settings)
        assert found == json.loads(card.read_text())["sha256"]
        with pytest.raises(ValueError, match=r"no .* for nowhere"):
            known.decoder.weights_sha256(TargetInfo("nowhere"), known.settings)
    folder = with_own_heads(tmp_path / "heads")
    (file,) = folder.glob("*.pt")
    given = Medusa.weights_sha256(TargetInfo("any"), MedusaSettings(checkpoint=str(folder)))
    assert given == hashlib.sha256(file.read_bytes()).hexdigest()
    assert Autoregressive.weights_sha256(TargetInfo("any"), Settings()) is None


# Runs


def tuned_run(*flags: str) -> int:
    return harness.run("--tree", "tuned", "--out", "out", "--device", "cpu", *flags)


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_takes_what_was_tuned_and_can_be_fed_back(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch)
    assert tuned_by("--methods", "dial") == 0
    assert tuned_run("--methods", "dial", "prompt_lookup(n=2,k=4)") == 0
    label = "dial(nodes=2,depth=4,odd=2,fixed=kept)"
    labels = {records.label(r["method"], r["params"]) for r in harness.kept("out")}
    assert labels == {"autoregressive", label, "prompt_lookup(n=2,k=4)"}
    kept = yaml.safe_load(Path("out/run.yaml").read_text())
    assert kept["tree"] == "tuned"
    assert kept["methods"] == ["autoregressive", label, "prompt_lookup(n=2,k=4)"]
    copied = Path("out/tuned.json").read_bytes()
    assert kept["provenance"]["tuned_sha256"] == hashlib.sha256(copied).hexdigest()
    found = tuned.parse(copied.decode(), "copy")
    assert found.methods == {"dial": entry_of(cache)}
    assert found.tuned_for.device == "cpu, 1 thread"

    before = harness.contents(Path("out"))
    for path in cache.glob("*.json"):
        path.unlink()
    Path("fed.yaml").write_bytes(before["run.yaml"])
    flags = ("--config", "fed.yaml", "--out", "out", "--no-report")
    assert run.main(flags) == 0  # without the cache
    assert harness.contents(Path("out")) == before


def test_given_values_win(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed(monkeypatch)
    assert tuned_by("--methods", "dial") == 0
    capsys.readouterr()
    assert tuned_run("--methods", "dial(nodes=16)", "dial", "autoregressive", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "dial(nodes=16,depth=4,odd=2,fixed=kept)" in shown
    assert "dial(nodes=2,depth=4,odd=2,fixed=kept)" in shown
    (path,) = cache.glob("*.json")
    assert f"tuned       dial: cached {path.name}" in shown


def test_what_is_not_tuned_is_refused_with_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tuned_run("--methods", "dial", "prompt_lookup", "absent") == 2
    line = line_of(capsys)
    assert "no tuned parameters of dial prompt_lookup for synthetic:predictable, eager" in line
    command = (
        "run python -m bench.tune --models synthetic:predictable --methods dial prompt_lookup "
        "--engine eager --dtype float32 --device cpu"
    )
    assert line.endswith(command)
    assert not Path("out").exists()


def test_the_dtypes_that_were_tuned_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed(monkeypatch)
    assert tuned_by("--methods", "dial") == 0
    assert tuned_run("--methods", "dial", "--dtype", "bfloat16", "--dry-run") == 2
    assert "(there are some for float32: pass --dtype)" in line_of(capsys)


def test_weights_of_another_kind_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed(monkeypatch)
    assert tuned_by("--methods", "dial") == 0
    assert tuned_run("--methods", "dial", "--dry-run") == 0
    monkeypatch.setattr(Dial, "checkpoint_sha256", "ab" * 32)
    capsys.readouterr()
    assert tuned_run("--methods", "dial") == 2
    assert "no tuned parameters of dial" in line_of(capsys)


def test_shipped_files_serve_where_the_cache_has_none(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed(monkeypatch)
    assert tuned_by("--methods", "dial", "--out", "shipped") == 0
    assert not cache.exists()
    monkeypatch.setattr(shelf, "SHIPPED", tmp_path / "shipped")
    capsys.readouterr()
    assert tuned_run("--methods", "dial", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "dial(nodes=2,depth=4,odd=2,fixed=kept)" in shown
    assert "tuned       dial: shipped " in shown


def test_one_model_and_one_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuned_run("--models", MODEL, "synthetic:predictable-mha") == 2
    assert "--tree tuned takes one model and one engine" in line_of(capsys)


def test_methods_that_cannot_be_tuned_run_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--methods", "transformers_generate", "absent", "--dry-run")
    assert tuned_run(*flags) == 0
    shown = capsys.readouterr().out
    assert "absent(nodes=8,depth=0,odd=1,fixed=kept)" in shown
    assert "tuned_sha256: null" in shown


def test_trained_weights_are_tuned_for_real(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No stand-in: real answers of two methods, one with weights of one's own, then a run."""
    torch.manual_seed(0)
    heads = MedusaHeads(MedusaConfig(hidden_size=96, depth=2))
    save_draft(tmp_path / "heads.safetensors", heads, torch.arange(64), {}, bits=8)
    weights = ("--checkpoint", "medusa=heads.safetensors")
    assert tuned_by("--methods", "medusa", "prompt_lookup", *weights) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^medusa +\d", shown, re.MULTILINE)
    sha256 = hashlib.sha256((tmp_path / "heads.safetensors").read_bytes()).hexdigest()
    assert entry_of(cache, "medusa").checkpoint_sha256 == sha256
    made = entry_of(cache, "prompt_lookup")
    assert made.chosen.accepted >= 1
    assert made.environment["cpu"]["torch_threads"] == 1
    assert shelf.cache() == cache
    assert tuned_run("--methods", "medusa", "prompt_lookup", *weights) == 0
    (found,) = {r["params"]["nodes"] for r in harness.of("out", "medusa")}
    assert found == entry_of(cache, "medusa").params["nodes"]
    assert tuned_run("--methods", "medusa", "--out", "other") == 0  # no weights, so it is skipped
    (record,) = harness.of("other", "medusa")
    assert record["status"] == "skipped"
