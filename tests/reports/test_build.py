"""The page: one file that loads nothing, the same for the same records, and honest."""

import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import StrictUndefined

from bench.errors import UsageError
from reports import build
from reports.page import rendering
from tests.reports.fabricate import audit, duel, failure, record, stock, write_run
from tests.reports.smoke import smoke_run

VOID = {"meta", "link", "br", "use", "wbr", "input"}


class Elements(HTMLParser):
    """Every element's attributes; raises where a tag is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def page_of(tmp_path: Path, *folders: Path) -> str:
    out = tmp_path / "page.html"
    build.build(folders, out)
    return out.read_text(encoding="utf-8")


def words(page: str) -> str:
    """The page's text without its figures, scripts and tags, in one line."""
    page = re.sub(r"<(svg|script|style)\b.*?</\1>|<wbr>|</?b>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def block_of(page: str, section: str) -> str:
    """The markup of a section, folded or not."""
    return page.partition(f' id="{section}"')[2].partition("</section>")[0]


def row_of(page: str, section: str, label: str) -> str:
    """The first table row of the method in a section, as text."""
    block = block_of(page, section)
    rows = [words(row) for row in re.findall(r"<tr>.*?</tr>", block, re.DOTALL)]
    return next(row for row in rows if label in row)


def example_run(folder: Path) -> Path:
    lines = [
        *duel(),
        *(stock(prompt_id=n, prompt_sha256=f"{n:02x}", decode_s=4.4) for n in range(4)),
        failure("fast", "RuntimeError: out of memory", params={"n": 3}, prompt_id=9),
        failure("heads", "no heads for tiny", "skipped", prompt_id=None, turn=None, repeat=None),
        record("loose", lossless=False, prompt_id=0, prompt_sha256="00", warnings=["drift"]),
    ]
    return write_run(
        folder,
        lines,
        run_yaml="models: [tiny]\n",
        environment_json=json.dumps({"python": "3.11", "packages": {"torch": "2.13"}}),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("example")
    return page_of(folder, example_run(folder / "run"))


def test_same_records_same_bytes(page: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page.html"
    build.build([example_run(tmp_path / "run")], out)
    assert out.read_text(encoding="utf-8") == page
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]  # no draft left behind


def test_page_is_sound_html_that_loads_nothing(page: str) -> None:
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    loads = ("src", "href", "xlink:href", "srcset", "action", "data")
    for tag, attributes in elements.found:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        for name in loads:
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,", "data:text/csv;"))
            if value is not None and value.startswith("#"):
                assert value[1:] in ids
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))  # a name


def test_every_section_has_its_table_figure_and_definitions(page: str) -> None:
    for section in ("speedup", "accepted", "shares", "categories"):
        block = block_of(page, section)
        assert re.search(r'<svg [^>]*role="img" aria-label="[^"]+"', block)
        assert re.search(r'<table aria-labelledby="[^"]+"', block)
        assert 'scope="col"' in block
        assert '<dl class="definitions"' in block
        assert row_of(page, section, "fast(n=3)")
    text = words(page)
    assert "verify forwards" in text
    assert "packages.torch 2.13" in text
    assert "models: [tiny]" in text


def test_rows_say_what_a_reader_must_know(page: str) -> None:
    assert row_of(page, "speedup", "autoregressive").startswith("eager autoregressive")  # no run
    assert "All rows: Model tiny, Question set mini, T 0 " in words(page)  # said once
    assert "1.00×" in row_of(page, "speedup", "autoregressive")
    assert "reference" in row_of(page, "speedup", "autoregressive")
    fast = row_of(page, "speedup", "fast(n=3)")
    assert "2.00× [2.00, 2.00]" in fast
    assert "1 failed" in fast
    assert "stock" in row_of(page, "speedup", "transformers_generate")
    for section in ("speedup", "accepted", "shares", "categories", "matches"):
        assert "lossy" in row_of(page, section, "loose")
    assert "50.0 %" in row_of(page, "shares", "fast(n=3)")
    assert "2.00" in row_of(page, "accepted", "fast(n=3)")
    assert "not audited" in row_of(page, "matches", "fast(n=3)")
    assert "RuntimeError: out of memory 1" in row_of(page, "failures", "fast(n=3)")
    assert "skipped no heads for tiny 1" in row_of(page, "failures", "heads")
    assert "drift 1" in row_of(page, "failures", "loose")


def test_the_headline_is_of_lossless_methods(tmp_path: Path) -> None:
    lines = duel()
    lossy = [
        line | {"method": "loose", "lossless": False, "decode_s": 0.1, "key": line["key"][::-1]}
        for line in lines
        if line["method"] == "fast"
    ]
    folder = write_run(tmp_path / "run", [*lines, *lossy])
    text = words(page_of(tmp_path, folder))
    headline = (
        "Fastest lossless setting 2.00 tokens/s, 2.00× fast(n=3) on mini, engine eager, T = 0; "
    )
    assert f"{headline}95 % interval of the speedup [2.00, 2.00]" in text
    found = {
        "model": "tiny",
        "engine": "eager",
        "dtype": "float32",
        "dataset": "mini",
        "label": "fast(n=3)",
        "temperature": 0.0,
        "compared": 8,
        "equal": 7,
        "ties": 0,
        "defects": 1,
        "examples": [
            {
                "prompt_id": 3,
                "turn": 1,
                "repeat": 0,
                "position": 2,
                "gap": 0.5,
                "verdict": "defect",
            }
        ],
    }
    audit(folder, [found])
    page = page_of(tmp_path, folder)
    assert "No lossless method was compared" in words(page)  # a defect is no lossless method
    assert "1 defect" in row_of(page, "speedup", "fast(n=3)")
    assert "without a tie 87.5 % 7 of 8 0 1" in row_of(page, "matches", "fast(n=3)")
    assert "tiny mini fast(n=3) 3 defect 1 0 2 0.5" in words(page)


def test_an_audit_of_older_records_is_not_believed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", duel())
    audit(folder, [])
    write_run(folder, duel(questions=5))
    page = page_of(tmp_path, folder)
    assert "audit is of older records" in row_of(page, "matches", "fast(n=3)")


@pytest.mark.parametrize(("preset", "smoke"), [("quick", True), ("full", False)])
def test_a_smoke_run_says_so(tmp_path: Path, preset: str, smoke: bool) -> None:
    lines = duel(questions=8, max_new_tokens=48)
    folder = write_run(tmp_path / "run", lines, run_yaml=f"preset: {preset}\n")
    banner = (
        "A smoke run: 8 questions, 48 tokens, 2 repeats. "
        "It shows that the suite works; it is no benchmark result."
    )
    assert (banner in words(page_of(tmp_path, folder))) is smoke


def test_a_smoke_page_is_short(tmp_path: Path) -> None:
    page = page_of(tmp_path, smoke_run(tmp_path / "quick"))
    text = re.sub(r"<(script|style)\b.*?</\1>|<wbr>|</?b>", "", page, flags=re.DOTALL)
    assert len(re.sub(r"<[^>]+>", " ", text).split()) <= 2_500  # folded text and drawings too
    assert "chimera(nodes=7,depth=4,vocab=8192)" in text  # what the preset sets
    assert "chimera_plus(nodes=15,depth=5,vocab=8192)" in text
    assert "Finer sections are left out" in text
    assert 'id="answers"' not in page


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (lambda _: 5.0, "No lossless method is faster than plain decoding"),
        (lambda n: 2.0 + 3.0 * (n % 2), "No lossless method is distinguishably faster than plain"),
    ],
)
def test_the_headline_says_where_nothing_is_faster(tmp_path: Path, seconds: Any, said: str) -> None:
    lines = [
        line | ({"decode_s": seconds(line["prompt_id"])} if line["method"] == "fast" else {})
        for line in duel(questions=6)
    ]
    page = page_of(tmp_path, write_run(tmp_path / "run", lines))
    assert f"Fastest lossless setting {said}" in words(page)
    assert '<li class="figure">' not in page
    alone = page_of(tmp_path, write_run(tmp_path / "run", duel(questions=1)))
    assert "One question is too few to tell a method from plain decoding" in words(alone)


def test_the_headline_is_the_fastest_setting_not_the_largest_ratio(tmp_path: Path) -> None:
    quick = [line | {"decode_s": line["decode_s"] / 10} for line in duel(engine="compile")]
    quick = [line | {"decode_s": 0.3} if line["method"] == "fast" else line for line in quick]
    page = page_of(tmp_path, write_run(tmp_path / "run", [*duel(), *quick]))
    assert "Fastest lossless setting 13.3 tokens/s, 1.33× fast(n=3) on mini, engine compile" in (
        words(page)
    )
    table = words(page).partition("Tokens/s by model, engine and method")[2]
    assert table.index(" compile ") < table.index(" eager ")  # the fastest engine first
    assert "fast(n=3) 13.3 1.33× 2.00 2.00×" in table


def test_differences_of_runs_are_one_line(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", duel())
    two = write_run(tmp_path / "two", duel(dtype="bfloat16", max_new_tokens=9))
    page = page_of(tmp_path, one, two)
    line = "Compare with care: the records differ in dtype and token limit"
    assert re.search(rf'<details class="warnings"[^>]*><summary>{line}</summary>', page)


def test_long_tables_and_later_sections_are_folded(page: str) -> None:
    shares = page.index('<section id="shares"')
    sections = [at.start() for at in re.finditer(r"<section ", page)]
    folded = [at.start() for at in re.finditer(r'<section class="foldable"', page)]
    assert folded
    assert folded == [at for at in sections if at > shares]
    anchors = re.findall(r"<nav .*?</nav>", page, re.DOTALL)[0].count('class="later"')
    assert anchors == len(folded)


def test_synthetic_models_show_no_speedup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", duel(model="synthetic:llama-7b"))
    page = page_of(tmp_path, folder)
    text = words(page)
    assert "×" not in text.replace("×)", "")
    assert "no speedup is reported for them" in text
    assert "The weights are random: only costs and shares are measured" in text
    assert "50.0 %" in row_of(page, "shares", "fast(n=3)")


PUBLISHED = "chimera Vicuna and LLaMA-2, 7B and 13B MT-Bench and Vicuna-Bench greedy and sampling"


def chimera(**changes: Any) -> list[dict[str, Any]]:
    """The duel's records, with `fast` named chimera."""
    lines = duel(**changes)
    return [line | {"method": "chimera"} if line["method"] == "fast" else line for line in lines]


def test_published_figures_of_other_methods_are_not_shown(page: str, tmp_path: Path) -> None:
    assert 'id="published"' not in page
    other = duel(model="vicuna-7b-v1.3", dataset="mt_bench")
    assert PUBLISHED not in words(page_of(tmp_path, write_run(tmp_path / "run", other)))


def test_published_figures_say_what_was_not_run(tmp_path: Path) -> None:
    for near_miss in (
        chimera(model="smollm2-135m", dataset="mt_bench"),
        chimera(model="vicuna-7b-v1.3", dataset="mini"),
    ):
        text = words(page_of(tmp_path, write_run(tmp_path / "run", near_miss)))
        assert text.count(PUBLISHED) == 1
        assert "arXiv 2402.15758, abstract not run" in text


def test_measured_speedups_stand_beside_the_published(tmp_path: Path) -> None:
    lines = chimera(model="vicuna-7b-v1.3", dataset="mt_bench")
    sampled = chimera(model="llama-2-13b-chat", dataset="vicuna_bench", temperature=1.0)
    text = words(page_of(tmp_path, write_run(tmp_path / "run", [*lines, *sampled])))
    assert text.count(PUBLISHED) == 2
    assert "not run" not in text.partition(PUBLISHED)[2].partition("arXiv")[2][:200]
    measured = "questions vicuna-7b-v1.3, mt_bench, float32, eager, T = 0 2.00× [2.00, 2.00]"
    assert measured in text
    assert "llama-2-13b-chat, vicuna_bench, float32, eager, T = 1 2.00×" in text


def test_the_set_for_tuning_is_in_no_table(tmp_path: Path) -> None:
    tuning = duel(dataset="tuning")
    folder = write_run(tmp_path / "run", [*duel(), *tuning], run_yaml="preset: quick\n")
    example = {"prompt_id": 9, "turn": 1, "repeat": 0, "position": 2, "gap": 1, "verdict": "defect"}
    counts = {"compared": 8, "equal": 7, "ties": 0, "defects": 1}
    row = {name: tuning[0][name] for name in ("model", "engine", "dtype", "temperature")}
    row |= {"dataset": "tuning", "label": "fast(n=3)", "examples": [example], **counts}
    audit(folder, [row])
    text = words(page_of(tmp_path, folder))
    line = "16 records of the question set tuning left out: it is for choosing parameters only"
    assert line in text
    assert text.count("tuning") == 1
    assert "Rendered from 16 records" in text
    assert "left out: it is for choosing" not in words(page_of(tmp_path, example_run(folder)))


def test_a_run_for_tuning_alone_still_has_a_page(tmp_path: Path) -> None:
    lines = duel(dataset="tuning")
    folder = write_run(tmp_path / "run", lines, run_yaml="preset: quick\n")
    page = page_of(tmp_path, folder)
    Elements(page)
    assert "16 records of the question set tuning left out" in words(page)
    assert "fast(n=3)" not in page
    assert "<svg" not in page


def test_long_labels_are_whole_in_figures_and_tables(tmp_path: Path) -> None:
    params = {"nodes": 63, "depth": 0, "dynamic": True, "beam": 8}
    label = "fast(nodes=63,depth=0,dynamic=true,beam=8,vocab={})"
    lines = [
        line | {"params": {**params, "vocab": vocab}, "key": f"{vocab:05}{line['key'][5:]}"}
        for vocab in (0, 16384)
        for line in duel()
        if line["method"] == "fast"
    ]
    lines += [line for line in duel() if line["method"] != "fast"]
    page = page_of(tmp_path, write_run(tmp_path / "run", lines))
    for vocab in (0, 16384):
        assert row_of(page, "speedup", label.format(vocab))
    drawn = re.findall(r"<figure .*?</figure>", page, re.DOTALL)
    assert len(drawn) >= 4
    for figure in drawn:
        whole = re.sub(r"<[^>]+>|\s", "", figure)
        assert "vocab=0)" in whole
        assert "vocab=16384)" in whole


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&amp; $\\frac{ {{ 7*7 }} \' onload="x'
    lines = [
        *duel(),
        record(evil, prompt_id=0, prompt_sha256="00", category=evil, accept_lengths=[2, 2]),
        record(prompt_id=0, prompt_sha256="00", category=evil),
        failure("fast", evil, params={"n": 3}, prompt_id=7),
    ]
    lines = [line | {"dataset": evil, "model": evil, "device": evil} for line in lines]
    folder = write_run(
        tmp_path / "run",
        lines,
        run_yaml=json.dumps({"note": evil}),
        environment_json=json.dumps({evil: evil}),
    )
    page = page_of(tmp_path, folder)
    elements = Elements(page)
    assert sum(tag == "script" for tag, _ in elements.found) == 1  # the page's own
    assert not any("onload" in attributes for _, attributes in elements.found)
    assert "alert(&#34;x&#34;)" in page
    assert "49" not in words(page)


def test_several_runs_name_theirs_and_stay_apart(tmp_path: Path) -> None:
    slow = [
        line | {"decode_s": 3 * line["decode_s"]} for line in duel() if line["method"] == "fast"
    ]
    slow += [line for line in duel() if line["method"] != "fast"]
    one = write_run(tmp_path / "one", duel())
    two = write_run(tmp_path / "two", slow)
    page = page_of(tmp_path, one, two)
    assert "one fast(n=3) one 2.00×" in words(page)
    assert "two fast(n=3) two 0.67×" in words(page)


def test_settings_that_differ_get_a_column(tmp_path: Path) -> None:
    lines = [*duel(), *duel(dtype="bfloat16")]
    page = page_of(tmp_path, write_run(tmp_path / "run", lines))
    assert "bfloat16 fast(n=3) bfloat16 2.00×" in words(page)


def test_rows_that_would_look_alike_get_the_column_that_tells_them_apart(tmp_path: Path) -> None:
    other = [
        line | {"checkpoint_sha256": "cc" * 32, "key": line["key"][::-1]}
        for line in duel()
        if line["method"] == "fast"
    ]
    page = page_of(tmp_path, write_run(tmp_path / "run", [*duel(), *other]))
    assert "cccccccc fast(n=3) cccccccc 2.00×" in words(page)


def test_a_run_of_failures_alone_still_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [failure("autoregressive", "boom", prompt_id=None)])
    page = page_of(tmp_path, folder)
    Elements(page)
    assert "boom 1" in row_of(page, "failures", "autoregressive")
    assert "<svg" not in page


def test_newer_minor_versions_are_read(tmp_path: Path) -> None:
    lines = [line | {"schema": "1.9", "novelty": 1} for line in duel()]
    page = page_of(tmp_path, write_run(tmp_path / "run", lines))
    assert "2.00×" in row_of(page, "speedup", "fast(n=3)")


def spoil_nothing(folder: Path) -> dict[str, Any]:
    return {"folders": [folder.parent / "missing"]}


def spoil_emptied(folder: Path) -> dict[str, Any]:
    write_run(folder, [])
    return {}


def spoil_major(folder: Path) -> dict[str, Any]:
    write_run(folder, [line | {"schema": "2.0"} for line in duel()])
    return {}


def spoil_out(folder: Path) -> dict[str, Any]:
    return {"out": folder}


def spoil_parent(folder: Path) -> dict[str, Any]:
    return {"out": folder / "records.jsonl" / "page.html"}


def spoil_twice(folder: Path) -> dict[str, Any]:
    return {"folders": [folder, folder]}


def spoil_settings(folder: Path) -> dict[str, Any]:
    (folder / "run.yaml").write_text("a: [", encoding="utf-8")
    return {}


def spoil_environment(folder: Path) -> dict[str, Any]:
    (folder / "environment.json").write_text("[1]", encoding="utf-8")
    return {}


def spoil_audit(folder: Path) -> dict[str, Any]:
    (folder / "audit.json").write_text('{"rows": [{}]}', encoding="utf-8")
    return {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nothing, "give the folder of a run"),
        (spoil_emptied, "holds no records"),
        (spoil_major, "schema 2.0 is of another major version"),
        (spoil_out, "choose another --out"),
        (spoil_parent, "choose another --out"),
        (spoil_twice, "two runs are named run"),
        (spoil_settings, "restore it"),
        (spoil_environment, "restore it"),
        (spoil_audit, "run the audit again"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    folder = write_run(tmp_path / "run", duel())
    out = tmp_path / "page.html"
    out.write_text("older page", encoding="utf-8")
    arguments = {"folders": [folder], "out": out} | spoil(folder)
    code = build.main([*map(str, arguments["folders"]), "--out", str(arguments["out"])])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said
    assert out.read_text(encoding="utf-8") == "older page"
    assert not list(tmp_path.rglob("*.part"))


def test_build_raises_usage_errors_for_its_caller(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the folder of a run"):
        build.build([tmp_path], tmp_path / "page.html")


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", duel())
    before = hashlib.sha256((folder / "records.jsonl").read_bytes()).digest()
    out = tmp_path / "index.html"
    assert build.main([str(folder), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert hashlib.sha256((folder / "records.jsonl").read_bytes()).digest() == before


def test_templates_refuse_unknown_names() -> None:
    environment = rendering.environment()
    assert environment.undefined is StrictUndefined
    assert environment.autoescape is True


def test_the_report_needs_no_torch() -> None:
    code = "import sys, reports.build; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
