"""What a run is refused for before weights load, and what a dry run tells."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

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


@pytest.mark.usefixtures("unloaded")
def test_a_form_that_no_engine_takes(capfd: pytest.CaptureFixture[str]) -> None:
    config = transformers.MistralConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=8, eos_token_id=256,
    )  # fmt: skip
    assert "sliding window" in line(capfd, "--models", saved(config=config))


@pytest.mark.usefixtures("unloaded")
def test_a_dry_run_and_the_list_tell_which_engines_take_a_model(
    capfd: pytest.CaptureFixture[str],
) -> None:
    shape = {"vocab_size": 512, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 2048}
    name = saved(config=transformers.GPT2Config(**shape, bos_token_id=256, eos_token_id=256))
    capfd.readouterr()
    assert run("--models", name, "--engine", "eager", "compile", "--dry-run") == 0
    assert "mine runs on eager, not on compile: a model other than Llama" in capfd.readouterr().out
    assert run("--models", name, "--list") == 0
    engines = capfd.readouterr().out.partition("engines, on mine\n")[2].splitlines()[:4]
    assert [text.split()[0] for text in engines] == ["eager", "graph", "compile", "exact"]
    assert ["ready" in text for text in engines] == [True, True, False, False]


def checkpoint(path: str) -> str:
    """A trained draft for another hidden size."""
    from baselines.medusa.model import Medusa
    from bench.decoding.drafts.weights import save_draft

    draft = Medusa.from_dict({"hidden_size": 24, "depth": 2})
    save_draft(Path(path), draft, torch.arange(8), {}, bits=8)
    return path


DRAFTS: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (lambda: None, "no local file or folder"),
    "text": (lambda: Path("x.pt").write_text("hello"), "is not a chimera-bench-draft-1 checkpoint"),
    "misfit": (
        lambda: checkpoint("x.pt"),
        "is for hidden size 24",
    ),
}


@pytest.mark.parametrize("kind", DRAFTS)
def test_draft_weights_are_read_before_the_models(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, words = DRAFTS[kind]
    make()
    assert words in line(capfd, "--methods", "medusa", "--checkpoint", "medusa=x.pt")


@pytest.mark.parametrize("content", [None, "{", '{"paths": [[0, 0]]}', "[]"])
def test_so_are_trees(content: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("tree.json").write_text(content)
    assert "tree.json" in line(capfd, "--tree", "tree.json")


def test_a_name_with_a_hyphen_is_suggested(capfd: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'mt_bench'" in line(capfd, "--datasets", "mt-bench")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_questions_with_a_byte_order_mark_are_read(end: bytes) -> None:
    lines = [json.dumps(row).encode() for row in harness.ROWS]
    Path("marked.jsonl").write_bytes(b"\xef\xbb\xbf" + end.join(lines) + end)
    assert run("--datasets", "marked.jsonl", "--out", "new", "--dry-run") == 0


def test_a_normal_run_says_where_its_records_are(capfd: pytest.CaptureFixture[str]) -> None:
    name = saved()
    capfd.readouterr()
    assert run("--models", name, "--out", "new", "--turns", "1") == 0
    assert capfd.readouterr() == ("", "records: new\n")


def test_a_hub_id_without_a_network_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["--models", "nobody/nothing", "--datasets", harness.QUESTIONS]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "nobody/nothing" in error


def test_an_unknown_template_is_named() -> None:
    with pytest.raises(UsageError, match="unknown chat template"):
        chat.source("vicunna")
