"""What the documents say: links lead somewhere, commands parse, the example decoder decodes."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from bench.__main__ import COMMANDS, PROG
from bench.cli import Parser
from bench.decoding.decoder import Decoder, TargetInfo
from bench.decoding.drafts import trainable
from bench.decoding.engines.compile import CompiledTarget
from bench.decoding.engines.exact import ExactTarget
from bench.decoding.engines.graph import GraphTarget
from bench.decoding.engines.registry import ENGINES
from bench.decoding.sampling import Sampling
from bench.errors import UsageError
from bench.questions.registry import REGISTRY
from bench.run import __main__ as run
from bench.run import methods, plan
from bench.run.config import RunConfig
from bench.run.runner import run_turn
from bench.targets import registry as targets
from bench.training import distill, train, trees
from reports.measures.matches import LOSSLESS
from tests import harness
from tests.decoding.known import known_predictable

ROOT = Path(__file__).resolve().parent.parent
DRAFTS = "docs/train-a-draft.md"  # tests/training runs its commands
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "chimera/README.md"),
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md") if p.name not in DRAFTS),
)
WITH_LINKS = (*DOCUMENTS, DRAFTS)
README_WORDS = 1500  # most
OWN = ("baselines", "chimera")  # packages whose methods the README lists
TOKENS = 40


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(module: str) -> list[list[str]]:
    """The arguments of every `python -m MODULE ...` in the documents' consoles, and of the
    `chimera-bench` command that is the same."""
    own = {n: c for n, c in COMMANDS.items() if c.module.removesuffix(".__main__") == module}
    found = []
    for name in DOCUMENTS:
        for console in blocks((ROOT / name).read_text(encoding="utf-8"), "console"):
            for line in console.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:3] == ["python", "-m", module]:
                    found.append(words[3:])
                if words[:1] == [PROG] and words[1] in own:
                    found.append([*own[words[1]].arguments, *words[2:]])
    return found


def sessions() -> list[list[str]]:
    """The session and its arguments of every `python -m nox -s SESSION [-- ...]`."""
    return [[words[1], *words[3:]] for words in commands("nox") if words[0] == "-s"]


BENCH = [*commands("bench.run"), *(words[1:] for words in sessions() if words[0] == "bench")]
EXAMPLE = next(
    code for code in blocks(text_of("docs/add-a-decoder.md"), "python") if "(TreeDecoder)" in code
)
PACKAGE = tomllib.loads(
    next(t for t in blocks(text_of("docs/add-a-decoder.md"), "toml") if methods.GROUP in t)
)
((NAME, VALUE),) = PACKAGE["project"]["entry-points"][methods.GROUP].items()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Decoder]:
    """The documented decoder, installed by the entry point that the document gives it."""
    module, _, name = VALUE.partition(":")
    (tmp_path / f"{module}.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    decoder: type[Decoder] = getattr(importlib.import_module(module), name)
    harness.install(monkeypatch, decoder)
    return decoder


def test_the_package_declares_the_example(example: type[Decoder]) -> None:
    assert example.name == NAME
    assert PACKAGE["tool"]["setuptools"]["py-modules"] == [example.__module__]


@pytest.mark.usefixtures("example")
def test_the_example_decodes_what_the_reference_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.work_in(tmp_path, monkeypatch)
    flags = ("--methods", NAME, f"{NAME}(k=8)", "--max-new-tokens", str(TOKENS), "--out", "out")
    assert harness.run(*flags) == 0
    records = harness.kept("out")
    expected = {r["prompt_sha256"]: r["output_ids"] for r in harness.of("out", "autoregressive")}
    assert len(records) == 3 * len(expected) == 3 * harness.TURNS
    assert all(r["output_ids"] == expected[r["prompt_sha256"]] for r in records)
    drafted = [r for r in records if r["method"] == NAME]
    assert {r["params"]["k"] for r in drafted} == {4, 8}
    lengths = [length for r in drafted for length in r["accept_lengths"]]
    assert max(lengths) > 2, "it accepts drafts"
    assert min(lengths) == 1, "it is wrong at times"


@pytest.mark.parametrize("engine", [GraphTarget, CompiledTarget, ExactTarget])
def test_so_it_does_on_engines_with_static_shapes(
    example: type[Decoder], engine: type[GraphTarget]
) -> None:
    known = known_predictable(kv_heads=2)
    decoder = example(engine(copy.deepcopy(known.model)), example.settings_type())
    lengths: list[int] = []
    for prompt in known.prompts[:2]:
        turn = run_turn(decoder, prompt, Sampling(), TOKENS, eos_ids=())
        assert tuple(turn.output_ids) == tuple(known.expected(prompt, TOKENS))
        lengths += turn.accept_lengths or []
    assert max(lengths) > 2, "it accepts drafts"
    assert min(lengths) == 1, "it is wrong at times"


def _ran(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Mapping[str, Any]]:
    """What `python -m bench.run` would have run with these arguments."""
    seen: list[tuple[RunConfig, Mapping[str, Any]]] = []

    class Plan:
        def __init__(self, *settings: Any) -> None:
            seen.append(settings)

        def describe(self) -> str:
            return ""

    monkeypatch.setattr(plan, "Plan", Plan)
    monkeypatch.setattr(run, "run", lambda plan, world: 0)  # noqa: ARG005
    monkeypatch.setattr(run, "show_listing", lambda config: seen.append((config, {})))
    assert run.main(argv) == 0
    return seen[0]


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("argv", BENCH, ids=" ".join)
def test_every_run_can_be_asked_for(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config, provenance = _ran(argv, monkeypatch)
    assert provenance == {}
    methods.resolve(config.methods, config.checkpoint, config.tree)
    for name in config.models:
        targets.resolve(name)
    assert set(config.datasets) <= set(REGISTRY)


def test_runs_are_found_in_the_readme() -> None:
    flags = {word for argv in BENCH for word in argv if word.startswith("--")}
    needed = {"--methods", "--config", "--list", "--dry-run", "--data-dir", "--checkpoint"}
    assert needed <= flags


@pytest.mark.parametrize("module", [distill, train, trees], ids=lambda module: module.__name__)
def test_training_commands_parse(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands(module.__name__)
    assert found
    settings: type[Any] = {
        distill: distill.DistillConfig,
        train: train.TrainConfig,
        trees: trees.TreesConfig,
    }[module]
    seen: list[Any] = []

    def command(flags: dict[str, Any]) -> int:
        seen.append(settings(**flags))
        return 0

    monkeypatch.setattr(module, "_command", command)
    assert [module.main(argv) for argv in found] == [0] * len(found)
    assert all(isinstance(config, settings) for config in seen)


def _lines() -> Iterator[str]:
    """Every command of the documents' consoles, without its prompt."""
    for name in (*DOCUMENTS, DRAFTS):
        for console in blocks(text_of(name), "console"):
            lines = console.replace("\\\n", " ").splitlines()
            yield from (line[2:] for line in lines if line.startswith("$ "))


@pytest.mark.parametrize("line", sorted(set(_lines())))
def test_every_command_exists_and_takes_its_flags(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever starts with `$` in a document, up to the parsing of its flags."""
    parsed: list[argparse.Namespace] = []
    parse_args = Parser.parse_args

    def stop(self: Parser, argv: Sequence[str]) -> NoReturn:
        parsed.append(parse_args(self, argv))
        raise UsageError("parsed")

    words = shlex.split(line, comments=True)
    if words[0] == PROG:
        command = COMMANDS[words[1]]
        words = ["-m", command.module, *command.arguments, *words[2:]]
    assert words[0] in ("-m", "python", "accelerate")
    words = words[words.index("-m") + 1 :]
    if words[0] in ("pip", "nox", "reports.quote"):
        return  # test_sessions_are_those_of_nox, and `figures` of these is the last
    monkeypatch.setattr(Parser, "parse_args", stop)
    spec = importlib.util.find_spec(words[0])
    assert spec is not None
    package = spec.submodule_search_locations is not None
    module = importlib.import_module(words[0] + ".__main__" * package)
    assert module.main(words[1:]) == 2
    assert len(parsed) == 1


def test_sessions_are_those_of_nox() -> None:
    source = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    known = set(re.findall(r"^@nox\.session.*?\ndef (\w+)\(", source, re.MULTILINE))
    assert {words[0] for words in sessions()} == known


def _links() -> Iterator[tuple[str, str]]:
    for name in WITH_LINKS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith("https://"):
                yield name, link


@pytest.mark.parametrize(("document", "link"), list(_links()))
def test_links_lead_somewhere(document: str, link: str) -> None:
    path, _, _ = link.partition("#")
    assert ((ROOT / document).parent / path).exists()


def test_configurations_that_documents_name_are_there() -> None:
    named = {
        name
        for document in WITH_LINKS
        for name in re.findall(r"configs/[\w.-]+\.yaml", text_of(document))
    }
    assert named >= {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_what_can_be_chosen_is_listed() -> None:
    own = {n for n, point in methods.discover().items() if point.value.split(".")[0] in OWN}
    for name in {*own, methods.STOCK, *ENGINES, *targets.TARGETS, *REGISTRY}:
        assert f"`{name}`" in text_of("docs/running.md")


def own_drafts() -> set[str]:
    """The trainable drafts of this package."""
    return {n for n, p in trainable.discover().items() if p.value.split(".")[0] in OWN}


def test_ablations_are_described_and_keep_their_parameters() -> None:
    text = (ROOT / "chimera/README.md").read_text(encoding="utf-8")
    shape = TargetInfo("tiny", hidden_size=64, vocab_size=512, layers=6)
    known = own_drafts()
    ablations = {name for name in known if f"| `{name}` |" in text}
    own = {"chimera_block", "chimera_narrow", "chimera_plus", "chimera_plus_narrow"}
    own |= {"dflash", "dflash_markov", "eagle3", "hydra", "medusa"}
    assert known - ablations == own
    built = [trainable.load(name).build(shape) for name in ablations]
    sizes = {sum(p.numel() for p in draft.parameters()) for draft in built}
    assert len(sizes) == 1


def test_question_sets_have_their_sizes() -> None:
    for name, entry in REGISTRY.items():
        row = next(
            line
            for line in text_of("docs/running.md").splitlines()
            if line.startswith(f"| `{name}`")
        )
        assert row.split("|")[2].split(",")[0].strip() == str(entry.questions)


def test_lossless_is_defined_in_the_words_of_the_report() -> None:
    assert f"- **Lossless**: {LOSSLESS}" in " ".join(text_of("docs/definitions.md").split())


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").split()) <= README_WORDS
