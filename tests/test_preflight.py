"""What a run is refused for before weights load, and what a dry run tells."""

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants

from bench import hub
from bench.errors import UsageError
from bench.questions import chat
from bench.run.__main__ import main
from bench.targets import loading, synthetic
from tests import harness
from tests.harness import run

PARTS = (
    "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    "assistant: "
)
TWICE = "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}\n{% endfor %}"
BAD = {
    "{{ raise_exception('System role not supported') }}": "turn 1: .*System role not supported",
    "{% for m in messages %}{{ m.content }": "turn 1: .*TemplateSyntaxError",
    "{{ 1 / 0 }}": "turn 1: .*division by zero",
    "assistant: ": "turn 1: .*leaves the question out",
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('one turn only') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}": "turn 2: .*one turn only",
    "{{ messages[0]['content'] }}": "turn 2: .*leaves the question out",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.work_in(tmp_path, monkeypatch)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights must not be loaded."""

    def refuse(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(loading, "load_model", refuse)


def test_a_run_prints_the_command_of_a_dry_run(capfd: pytest.CaptureFixture[str]) -> None:
    Path("a folder").mkdir()
    Path(saved()).rename("a folder/mine")
    flags = ["--models", "./a folder/mine", "--methods", "medusa", "--limit", "1", "--turns", "1"]
    flags += ["--datasets", harness.QUESTIONS, "--max-new-tokens", "2", "--out", "out"]
    found = []
    for more in (["--dry-run"], ["--no-report"], []):
        assert main([*flags, *more]) == 0
        shown = capfd.readouterr()
        match = re.search(
            r"no medusa weights for .*", shown.out if more == ["--dry-run"] else shown.err
        )
        assert match is not None, more
        found.append(match[0])
    assert found == [found[0]] * 3
    assert "--models './a folder/mine' --out" in found[0]
    assert "PATH/TO/mine" in Path("out/records.jsonl").read_text()  # no path of this machine


def saved(template: str | None = synthetic.TEMPLATE, config: Any = None) -> str:
    """The name of a checkpoint folder."""
    model, tokenizer = synthetic.build("synthetic:predictable", "cpu", torch.float32)
    if config is not None:
        tokenizer = synthetic.tokenizer(512, 2048)
        model = transformers.AutoModelForCausalLM.from_config(config)
    tokenizer.chat_template = template
    model.save_pretrained("mine")
    tokenizer.save_pretrained("mine")
    return "mine"


def line(capfd: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line by which a run and a dry run are refused."""
    capfd.readouterr()
    found = set()
    for mode in (["--dry-run"], []):
        assert run("--out", "new", *flags, *mode) == 2
        out, error = capfd.readouterr()
        assert out == ""
        found.add(error)
    (text,) = found
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert not list(Path("new").glob("records.jsonl"))
    return text


# Prompts


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("template", BAD)
def test_a_template_that_fails_is_one_line(
    template: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = line(capfd, "--models", saved(template))
    assert re.search("asked question 1 " + BAD[template], text)
    assert "--chat-template" in text


@pytest.mark.usefixtures("unloaded")
def test_without_a_template_the_advice_can_be_followed(capfd: pytest.CaptureFixture[str]) -> None:
    name = saved(None)
    Path("mine/chat_template.jinja").unlink(missing_ok=True)
    assert "no chat template; choose one by --chat-template" in line(capfd, "--models", name)
    Path("plain.jinja").write_bytes(b"\xef\xbb\xbf" + synthetic.TEMPLATE.encode())
    flags = ("--models", name, "--chat-template", "plain.jinja")
    assert run("--out", "new", *flags, "--dry-run") == 0


@pytest.mark.parametrize("template", [PARTS, TWICE])
def test_contents_as_parts_and_questions_said_twice_are_fine(template: str) -> None:
    tokenizer = synthetic.tokenizer(512, 2048)
    tokenizer.chat_template = template
    ids = chat.render(tokenizer, [{"role": "user", "content": "Why is\n it so?"}], None)
    assert "Why is\n it so?" in tokenizer.decode(ids)


def test_a_template_file_is_kept_with_the_run_and_in_its_settings() -> None:
    own = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    Path("own.jinja").write_text(own)
    flags = ("--turns", "1", "--methods", "--out", "new", "--chat-template")
    assert run(*flags, "own.jinja") == 0
    assert Path("new", chat.FILE).read_text() == own
    settings = yaml.safe_load(Path("new/run.yaml").read_text())
    assert settings["chat_template"] == "own.jinja"
    prompts = Path("new/prompts.jsonl").read_text()
    Path("own.jinja").write_text(own + " ")
    assert run(*flags, "own.jinja") == 2  # another template is another run
    assert Path("new/prompts.jsonl").read_text() == prompts


@pytest.mark.usefixtures("unloaded")
def test_a_tokenizer_of_another_model(capfd: pytest.CaptureFixture[str]) -> None:
    name = saved()
    wide = synthetic.tokenizer(512, 2048)
    wide.save_pretrained(name)
    assert "the model has embeddings for 64" in line(capfd, "--models", name)


# Models, drafts, trees, files


SIZES = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {**SIZES, "intermediate_size": 16, "num_key_value_heads": 2, "eos_token_id": 256}
REFUSED: dict[str, Callable[[], Any]] = {
    "sliding window": lambda: transformers.MistralConfig(**WIDE, sliding_window=8),
    "MLA": lambda: transformers.DeepseekV3Config(**WIDE),
    "ALiBi": lambda: transformers.FalconConfig(**SIZES, alibi=True, eos_token_id=256),
}


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_form_that_no_engine_takes(
    form: str, place: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the configuration alone; the hub's is in the local cache."""
    name = saved()
    if place == "hub":
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("cache").resolve()))
        kept = Path("cache/models--nobody--mine")
        (kept / "refs").mkdir(parents=True)
        (kept / "refs/main").write_text("a" * 40)
        name, folder = "nobody/mine", kept / "snapshots" / ("a" * 40)
    else:
        folder = Path(name)
    REFUSED[form]().save_pretrained(folder)
    said = line(capfd, "--models", name)
    assert f"{name} cannot run: " in said
    assert form in said


@pytest.mark.usefixtures("unloaded")
def test_a_dry_run_and_the_list_tell_which_engines_take_a_model(
    capfd: pytest.CaptureFixture[str],
) -> None:
    shape = {"vocab_size": 512, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 2048}
    name = saved(config=transformers.GPT2Config(**shape, bos_token_id=256, eos_token_id=256))
    capfd.readouterr()
    assert run("--models", name, "--engine", "eager", "compile", "--dry-run") == 0
    assert "mine does not run on compile: a model other than Llama" in capfd.readouterr().out
    assert run("--models", name, "--list") == 0
    engines = capfd.readouterr().out.partition("engines, on mine\n")[2].splitlines()[:4]
    assert [text.split()[0] for text in engines] == ["eager", "graph", "compile", "exact"]
    gpu = torch.cuda.is_available()
    assert ["ready" in text for text in engines] == [True, gpu, False, False]
    assert gpu or "needs a GPU" in engines[1]


def checkpoint(path: str) -> str:
    """A trained draft for another hidden size."""
    from baselines.medusa.model import Medusa
    from bench.decoding.drafts.weights import save_draft

    draft = Medusa.from_dict({"hidden_size": 24, "depth": 2})
    save_draft(Path(path), draft, torch.arange(8), {}, bits=8)
    return path


def published(content: bytes) -> str:
    """A folder in Medusa's published layout."""
    Path("heads").mkdir()
    Path("heads/medusa_lm_head.pt").write_bytes(content)
    return "heads"


def fitting(path: str) -> str:
    """A trained draft of depth 2 for the target."""
    from baselines.medusa.model import Medusa
    from bench.decoding.drafts.weights import save_draft

    draft = Medusa.from_dict({"hidden_size": 96, "depth": 2})
    save_draft(Path(path), draft, torch.arange(64), {"method": "medusa"}, bits=8)
    return path


DRAFTS: dict[str, tuple[str, Callable[[], str], str]] = {
    "missing": ("medusa", lambda: "x.pt", "no local file or folder"),
    "missing in a folder": ("medusa", lambda: "trained/x.safetensors", "no local file or folder"),
    "text": ("medusa", lambda: text("x.pt", "hello"), "is not a chimera-bench-draft-1 checkpoint"),
    "of another size": ("medusa", lambda: checkpoint("x.pt"), "is for hidden size 24"),
    "of another method": (
        "chimera",
        lambda: fitting("x.safetensors"),
        "is no chimera draft (its card says 'medusa'",
    ),
    "published, no weights": ("medusa", lambda: published(b"hello"), "cannot be read"),
    "published, empty": ("medusa", lambda: published(b""), "cannot be read"),
}


def text(path: str, content: str) -> str:
    Path(path).write_text(content)
    return path


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("kind", DRAFTS)
def test_draft_weights_are_read_before_the_models(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    method, make, words = DRAFTS[kind]
    assert words in line(capfd, "--methods", method, "--checkpoint", f"{method}={make()}")


@pytest.mark.usefixtures("unloaded")
def test_drafts_of_an_unreachable_hub_are_refused_before_the_model_loads(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    flags = ("--methods", "medusa", "--checkpoint", "medusa=nobody/nothing", "--out", "new")
    assert run(*flags, "--dry-run") == 0
    assert "medusa: its weights are checked when they are fetched" in capfd.readouterr().out
    assert run(*flags) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("error: --checkpoint medusa=nobody/nothing: ")
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "content", [None, "", "{", '{"paths": [[0, 0]]}', "[]", "[" * 100_000, '{"paths": [[1e3]]}']
)
def test_so_are_trees(content: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("tree.json").write_text(content)
    assert "tree.json" in line(capfd, "--tree", "tree.json")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([[0], [0, 0], [0, 0, 0]], "tree.json is 3 deep, the draft 2"),
        ([[64]], "tree.json has rank 64, and ranks go to 63"),
    ],
)
def test_a_tree_must_fit_the_draft(
    paths: list[list[int]], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("tree.json").write_text(json.dumps({"paths": paths}))
    flags = ("--methods", "medusa", "--checkpoint", f"medusa={fitting('x.safetensors')}")
    assert f"--tree for medusa: {words}" in line(capfd, *flags, "--tree", "tree.json")
    Path("tree.json").write_text(json.dumps({"paths": [[0], [0, 0]]}))
    assert run(*flags, "--tree", "tree.json", "--dry-run") == 0


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--datasets", "mt-bench"), "mt_bench"),
        (("--datasets", "MTBench"), "mt_bench"),
        (("--datasets", "GSM-8K"), "gsm8k"),
        (("--models", "SMOLLM2_135M"), "smollm2-135m"),
        (("--models", "Vicuna-7B"), "vicuna-7b-v1.3"),
        (("--methods", "prompt-lookup"), "prompt_lookup"),
        (("--methods", "Chimera-Plus(nodes=5)"), "chimera_plus"),
        (("--methods", "LOOKAHEAD"), "lookahead"),
        (("--methods", "lookahead(N=5)"), "n"),
        (("--engine", "Eager"), "eager"),
        (("--dtype", "Float-32"), "float32"),
        (("--preset", "QUICK"), "quick"),
    ],
)
def test_case_and_hyphens_do_not_hide_the_name_that_is_meant(
    flags: tuple[str, str], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {name!r}?" in line(capfd, *flags)


# Files as Windows writes them, and files that are none

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_files_with_a_byte_order_mark_are_read(end: bytes) -> None:
    lines = [json.dumps(row).encode() for row in harness.ROWS]
    Path("marked.jsonl").write_bytes(MARK + end.join(lines) + end)
    Path("tree.json").write_bytes(MARK + b'{"paths": [[0]]}' + end)
    Path("own.jinja").write_bytes(MARK + synthetic.TEMPLATE.encode())
    Path("run.yaml").write_bytes(MARK + b"limit: 1" + end)
    flags = ("--datasets", "marked.jsonl", "--config", "run.yaml", "--methods", "--out")
    assert run(*flags, "one") == 0
    answers = Path("one/history.jsonl").read_bytes()
    Path("marked-history.jsonl").write_bytes(MARK + answers.replace(b"\n", end))
    more = ("--tree", "tree.json", "--chat-template", "own.jinja")
    assert run(*flags, "two", "--history", "marked-history.jsonl", *more) == 0
    assert Path("two/history.jsonl").read_bytes() == answers


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n \n", b"\xff\xfe", b"[]", b'{"turns": ["?"]}', b'{"question_id": 1}', b"{"),
        b'{"question_id": 1, "turns": []}',
        b'{"question_id": 1, "turns": "?"}',
        b'{"question_id": 1, "turns": ["why?"]}\n{"question_id": 1, "turns": ["why?"]}',
        b'{"question_id": ' + b"9" * 5000 + b', "turns": ["why?"]}',
        b"[" * 100_000,
    ],
)
def test_broken_questions_are_one_line(content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    Path("broken.jsonl").write_bytes(content)
    assert "broken.jsonl, line " in line(capfd, "--datasets", "broken.jsonl")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"- 1", b"[", b"\xff", b"limit: many", b"limit: " + b"9" * 5000, b"out: 2026-99-99"),
        b"models: " + b"[" * 2000,
    ],
)
def test_broken_settings_are_one_line(content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_bytes(content)
    assert "broken.yaml" in line(capfd, "--config", "broken.yaml")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("content", [b"{\n", b"[]\n", b"\xff\n", b"[" * 100_000 + b"\n", b""])
def test_a_broken_or_another_runs_history_is_one_line(
    content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("broken.jsonl").write_bytes(content)
    said = line(capfd, "--history", "broken.jsonl")
    assert "broken.jsonl" in said or "--history has no answer" in said


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    "name", ["--datasets", "--config", "--history", "--tree", "--chat-template", "--models"]
)
def test_a_folder_is_no_file(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("folder.jsonl").mkdir()
    assert "folder.jsonl" in line(capfd, name, "folder.jsonl")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_an_out_that_cannot_be_written(out: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("mine")
    assert run("--out", out) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.endswith("choose another --out")
    assert Path("taken").read_text() == "mine"


@pytest.mark.parametrize("name", ["run.yaml", "environment.json", "prompts.jsonl", "history.jsonl"])
@pytest.mark.parametrize("broken", [b"\xff\n", b"[]\n", None])
def test_a_damaged_run_folder_is_one_line(
    name: str, broken: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "new", "--methods", "--limit", "1") == 0
    path = Path("new", name)
    path.unlink()
    if broken is None:
        path.mkdir()
    else:
        path.write_bytes(broken)
    before = harness.contents(Path("new"))
    capfd.readouterr()
    assert run("--out", "new", "--methods", "--limit", "1") == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert harness.contents(Path("new")) == before


def test_another_runs_folder_says_which_settings_differ(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--out", "new", "--methods", "--limit", "1") == 0
    capfd.readouterr()
    flags = ("--limit", "2", "--seed", "7", "--dtype", "bfloat16", "--turns", "1")
    assert run("--out", "new", "--methods", *flags) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert "new holds a run of other settings: limit (1, now 2), turns (none, now 1), seed" in said
    assert ", dtype" in said


# Numbers and lengths


@pytest.mark.usefixtures("unloaded")
def test_numbers_beyond_any_use(capfd: pytest.CaptureFixture[str]) -> None:
    huge = "9" * 30
    assert "at most" in line(capfd, "--methods", f"lookahead(n={huge})")
    said = line(capfd, "--max-new-tokens", huge)
    assert "can answer no question: turn 1 needs a context of" in said


def test_a_question_that_is_too_long_is_skipped_and_the_run_goes_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = [*harness.ROWS, {"question_id": 9, "category": "sums", "turns": ["river " * 9000, "?"]}]
    harness.ask(Path("long.jsonl"), rows)
    flags = ("--datasets", "long.jsonl", "--methods", "prompt_lookup", "--out", "new")
    assert run(*flags, "--dry-run") == 0
    notes = [t for t in capfd.readouterr().out.splitlines() if t.startswith("note ")]
    assert len(notes) == 2
    assert "skips long question 9 turn 1: turn 1 needs a context of" in notes[0]
    assert run(*flags) == 0
    skipped = [r for r in harness.kept("new") if r["status"] != "ok"]
    assert {(r["prompt_id"], r["turn"], r["status"]) for r in skipped} == {
        ("9", 1, "skipped"),
        ("9", 2, "skipped"),
    }
    assert all("needs a context of" in r["error"] for r in skipped)
    assert len(harness.of("new", "prompt_lookup")) == harness.TURNS + 2


# What a run says


def test_a_normal_run_says_where_its_records_are(capfd: pytest.CaptureFixture[str]) -> None:
    name = saved()
    capfd.readouterr()
    assert run("--models", name, "--out", "new", "--turns", "1") == 0
    shown = capfd.readouterr()
    heads = [line.partition(":")[0] for line in shown.err.splitlines()]
    assert (shown.out, heads) == ("", ["plan", "dtype", name, "records"])
    assert shown.err.endswith("records: new\n")


@pytest.mark.parametrize("hub_is", ["down", "silent"])
def test_a_hub_id_without_a_network_is_one_line_within_seconds(
    hub_is: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = 9 if hub_is == "down" else silent.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        assert main(["--models", "nobody/nothing", "--datasets", harness.QUESTIONS]) == 2
        assert time.monotonic() - started < 5
    (said,) = capfd.readouterr().err.splitlines()
    assert "nobody/nothing" in said


def test_an_unknown_template_is_named() -> None:
    with pytest.raises(UsageError, match="unknown chat template"):
        chat.source("vicunna")
