"""The viewer: answers as blocks, which turns are shown, and text that means harm."""

import re
import unicodedata
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from bench.records.runs import PHASES
from reports import build, view
from reports.page import step_texts
from reports.page.model import Page, Section
from reports.page.turns import KINDS, Turns
from reports.sections import SECTIONS, answers
from tests.reports.fabricate import Record, crowd, duel, failure, record, stock, write_run

HOSTILE = (
    "<script>alert(1)</script>",
    "</bdi></div></details><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;",
    "\u202egnp.exe \u2066\u2067\u2069 \u200fabc\u061c",
    "\x00\x1b[31m\x07\x7f\x85 \ud800 \udfff \ufffe \u2028 \u2029 \u200b\ufeff\xad",
    "]]><!-- --><!doctype html><style>*{display:none}</style>",
    "e" + "\u0301" * 300,
    "مرحبا بالعالم, שלום",
)


def stepped(text: str, lengths: Iterable[int], ends: Iterable[int], **changes: Any) -> Record:
    """A record whose steps end where `ends` says; the first is of prefill's token."""
    first, *rest = ends
    lengths = list(lengths)
    steps = [
        {"drafted": 7, "depth": 3, "end": end, "us": [100, 200, 30, 4]}
        for end, _ in zip(rest, lengths, strict=True)
    ]
    spent = zip(PHASES, (100, 200, 30, 4), strict=True)
    figures: Record = {
        "text": text,
        "accept_lengths": lengths,
        "steps": steps,
        "prefill_end": first,
        "drafted": 7 * len(lengths),
        "phase_s": {phase: len(lengths) * us / 1e6 for phase, us in spent},
        "max_new_tokens": 10**6,
        "output_ids": list(range(1 + sum(lengths))),
    }
    return record(**figures | changes)


def both(text: str, lengths: Iterable[int], ends: Iterable[int], **changes: Any) -> list[Record]:
    """The reference and `fast`, with the same text."""
    lengths, ends = list(lengths), list(ends)
    return [
        stepped(text, lengths, ends, **changes),
        stepped(text, lengths, ends, method="fast", params={"n": 3}, **changes),
    ]


def load(folder: Path, lines: Iterable[Record]) -> Page:
    return build.load([write_run(folder / "run", lines)])


def section(folder: Path, lines: Iterable[Record]) -> Section:
    return answers.section(load(folder, lines))


class Tree(HTMLParser):
    """The elements of a page: (name, attributes, text directly in it)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in ("meta", "link", "wbr", "rect", "line", "input", "path", "use"):
            self._open.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self._open:
            if self.found[self._open.pop()][0] == tag:
                return

    def handle_data(self, data: str) -> None:
        for at in self._open:
            self.found[at][2].append(data)

    def all(self, tag: str, name: str = "") -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements of a tag and a class."""
        return [
            (attributes, "".join(text))
            for found, attributes, text in self.found
            if found == tag and (not name or name in (attributes.get("class") or "").split())
        ]


def body(made: Section) -> Tree:
    assert made.body is not None
    return Tree(str(made.body))


def shown(page: Tree) -> list[str]:
    """Texts of the answers."""
    return [text for _, text in page.all("div", "blocks")]


# Blocks


def test_blocks_cover_the_text_and_say_what_their_step_did() -> None:
    made = stepped("Hello, world", [2, 3], [1, 5, 12], prefill_s=0.0215)
    found = step_texts.step_texts(made)
    assert found is not None
    assert [made["text"][block.begin : block.end] for block in found] == ["H", "ello", ", world"]
    assert [block.name for block in found] == ["a0", "a2", "a3"]
    assert [block.words for block in found] == [
        "prefill: 1 token, 21.5 ms",
        "step 1: 2 tokens, 7 nodes, depth 3, 100 + 200 + 30 + 4 µs",
        "step 2: 3 tokens, 7 nodes, depth 3, 100 + 200 + 30 + 4 µs",
    ]


@pytest.mark.parametrize(
    ("position", "step"), [(0, 0), (1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (99, 3)]
)
def test_the_step_of_a_token(position: int, step: int) -> None:
    assert step_texts.step_of([2, 3], position) == step
    found = step_texts.step_texts(stepped("Hello, world", [2, 3], [1, 5, 12]), position)
    assert found is not None
    assert [block.differs for block in found] == [at == step for at in range(3)]


def test_without_offsets_there_are_no_blocks() -> None:
    assert step_texts.step_texts(stepped("ab", [1], [1, 2]) | {"steps": None}) is None
    assert step_texts.step_texts(stepped("ab", [1], [1, 2]) | {"prefill_end": float("nan")}) is None
    assert step_texts.step_texts(stepped("ab", [1], [1, 2]) | {"accept_lengths": None}) is None
    assert step_texts.step_texts(stepped("ab", [1], [1, 2]) | {"accept_lengths": [1, 1]}) is None


@pytest.mark.parametrize(
    ("ids", "expected", "position"),
    [
        ([1, 2], [1, 2], None),
        ([1, 2], [1, 3], 1),
        ([2], [1, 3], 0),
        ([1], [1, 3], 1),
        ([1, 3], [1], 1),
    ],
)
def test_first_difference(ids: list[int], expected: list[int], position: int | None) -> None:
    assert step_texts.difference(ids, expected) == position


def test_what_cannot_be_seen_is_named() -> None:
    assert step_texts.visible("a\nb\tc") == "a<b>↵</b>\nb<b>→</b>\tc"
    assert step_texts.visible("\x00\x7f\x85") == "<b>␀</b><b>␡</b><b>U+0085</b>"
    assert step_texts.visible("\u202e\ud800\ufeff") == "<b>U+202E</b><b>U+D800</b><b>U+FEFF</b>"
    assert step_texts.visible("\u0301\u0301e") == "\u25cc\u0301\u0301e"
    assert step_texts.visible("<&\"'>") == "&lt;&amp;&#34;&#39;&gt;"
    assert step_texts.visible("naïve 好 👩‍👩‍👧 नमस्ते e\u0301") == "naïve 好 👩‍👩‍👧 नमस्ते e\u0301"


def test_direction_follows_the_first_letter() -> None:
    assert step_texts.direction("12 «שלום» abc") == "rtl"
    assert step_texts.direction("مرحبا") == "rtl"
    assert step_texts.direction("abc שלום") == "ltr"
    assert step_texts.direction("12, 13!") == step_texts.direction("") == "ltr"


# The section


def test_methods_stand_side_by_side(tmp_path: Path) -> None:
    fast = stepped("Hello, world", [4, 1], [1, 11, 12], method="fast", decode_s=1.0)
    loose = stepped("Hello", [1], [2, 5], method="loose", lossless=False, decode_s=0.1)
    slow = stepped("Hello, world", [5], [1, 12], method="slow", decode_s=3.0)
    reference = stepped("Hello, world", [1] * 5, [1, 2, 4, 6, 8, 12])
    found = section(tmp_path, [slow, loose, fast, reference])
    page = body(found)
    assert shown(page) == ["Hello, world", "Hello, world", "Hello", "Hello, world"]
    heads = [" ".join(text.split()) for _, text in page.all("h5")]
    assert heads == ["autoregressive reference", "fast fastest lossless", "loose lossy", "slow"]
    facts = [text for _, text in page.all("p", "facts")]
    assert facts[0] == "1.00× · 6 tokens in 5 steps, 1.00 a step · 4 s"
    assert facts[1] == "4.00× · 6 tokens in 2 steps, 2.50 a step · 1 s"
    assert found.records == 4
    assert {name for name, _ in found.definitions} > {"Block", "Nodes", "Depth", "Times"}
    (summary,) = page.all("summary")
    assert summary[1].split() == ["1,", "turn", "1,", "writing", "4.00×"]


def test_one_tab_stop_an_answer_and_words_without_script(tmp_path: Path) -> None:
    page = body(section(tmp_path, both("Hello, world", [2, 3], [1, 5, 12])))
    stops = [name for name, attributes, _ in page.found if "tabindex" in attributes]
    assert stops == ["div", "div"]
    titles = [attributes["title"] for attributes, _ in page.all("bdi")]
    assert titles[1] == "step 1: 2 tokens, 7 nodes, depth 3, 100 + 200 + 30 + 4 µs"
    assert all(titles)


def test_the_first_difference_is_marked(tmp_path: Path) -> None:
    lines = [
        *both("Hello, world", [2, 3], [1, 5, 12], output_ids=[1, 2, 3, 4, 5, 6]),
        *(
            stepped("Hello", lengths, ends, method=name, output_ids=ids)
            for name, lengths, ends, ids in (
                ("other", [2, 3], [1, 3, 5], [1, 2, 3, 9, 5, 6]),
                ("short", [2], [1, 5], [1, 2, 3]),
                ("long", [2, 4], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7]),
            )
        ),
    ]
    page = body(section(tmp_path, lines))
    held = {text for _, text in page.all("p", "held")}
    assert held == {
        "",
        "same ids as the reference",
        "first differs at token 3 (step 2)",
        "ends at token 3, the reference goes on",
        "the reference ends at token 6, this goes on",
    }
    marked = [text for _, text in page.all("bdi", "differs")]
    assert sorted(marked) == ["llo", "lo"]


def test_sampled_answers_are_not_held_against_each_other(tmp_path: Path) -> None:
    lines = both("ab", [1], [1, 2], temperature=1.0)
    lines[1]["output_ids"] = [5, 6]
    page = body(section(tmp_path, lines))
    assert {text for _, text in page.all("p", "held")} == {""}
    assert not page.all("bdi", "differs")


def test_records_without_steps_say_so(tmp_path: Path) -> None:
    lines = [
        record(text="one two", schema="1.0"),
        record("fast", text="one two", accept_lengths=[3, 1], schema="1.0"),
        stock(text="one two"),
    ]
    page = body(section(tmp_path, lines))
    assert shown(page) == ["one two"] * 3
    notes = [" ".join(text.split()) for _, text in page.all("div", "note")]
    assert notes[0].startswith("This record does not say where in the text its steps end")
    assert "Timed as a whole: its steps are unknown." in notes
    (strip,) = page.all("p", "strip")
    assert strip[0]["aria-label"] == "Tokens of each step: 3, 1"
    assert not [a for a, _ in page.all("bdi") if "title" in a]


def test_long_answers_are_cut_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BUDGET", 12_000)
    text = "word " * 400
    lengths = [2] * 199 + [1]
    ends = list(accumulate([10] * 199 + [5], initial=5))
    found = section(tmp_path, both(text, lengths, ends))
    page = body(found)
    (limit,) = {len(text) for text in shown(page)}
    assert limit in answers.LIMITS
    cuts = [text for _, text in page.all("p", "cut")]
    assert cuts == [f"Cut after {limit} of 2,000 characters."] * 2
    assert f"Answers are cut after {limit} characters." in found.lead
    (rest,) = page.all("p", "rest")
    assert rest[1].startswith("2 answers are cut. All of it: python -m reports.view results/run 1")


def test_at_most_so_many_answers_the_reference_and_the_fastest_first(tmp_path: Path) -> None:
    lines = [record(), *(record(f"m{n}", decode_s=4.0 / n) for n in range(1, 9))]
    page = body(section(tmp_path, lines))
    names = [text.split()[0] for _, text in page.all("h5")]
    assert names == ["autoregressive", "m8", "m7", "m6", "m5", "m4"]
    (rest,) = page.all("p", "rest")
    assert "3 more methods answered." in rest[1]


def test_the_page_without_answers(tmp_path: Path) -> None:
    found = section(tmp_path, [failure("autoregressive", "out of memory")])
    assert (found.body, bool(found.empty)) == (None, True)
    found = section(tmp_path / "alone", [record("fast")])
    assert (found.body, bool(found.empty)) == (None, True)


def test_the_report_has_the_section(tmp_path: Path) -> None:
    assert answers.section in SECTIONS
    page = load(tmp_path, crowd())
    text = build.render(page, [answers.section])
    assert text.count('id="answers"') == 1
    assert text.count('class="turn"') == 32
    assert build.render(page, [answers.section]) == text


# Which turns


def many(tmp_path: Path) -> Page:
    """60 turns, on which `fast` is 0.5 to 3.45 times as fast; on three it gives other ids."""
    lines = []
    for question in range(60):
        same: Record = {"prompt_id": question, "prompt_sha256": f"{question:02x}"}
        lines.append(record(**same))
        ids = [0, 0, 0, 1, 0] if question in (50, 51) else [0] * 5
        ids = [0, 2, 0, 0, 0] if question == 52 else ids
        lines.append(record("fast", decode_s=4 / (0.5 + 0.05 * question), output_ids=ids, **same))
    return load(tmp_path, lines)


def test_turns_are_chosen_by_the_rule(tmp_path: Path) -> None:
    page = many(tmp_path)
    turns = Turns(page)
    chosen = turns.choose(40)
    assert len(dict(chosen)) == len(chosen) == 40
    ids = {
        kind: [turns.table["prompt_id"][at] for at, why in chosen if why == kind] for kind in KINDS
    }
    gain, loss, middle, differs, drawn = (ids[kind] for kind in KINDS)
    assert gain[:3] == [59, 58, 57]
    assert loss[:3] == [0, 1, 2]
    assert set(middle[:4]) == {28, 29, 30, 31}
    assert set(differs) == {50, 51, 52}
    assert differs[0] == 52  # the earliest difference
    assert len(drawn) >= 8
    assert turns.choose(40) == chosen
    assert sum(len(one) for one in ids.values()) == 40
    found = answers.section(page)
    assert found.lead.startswith("40 of 60 turns: of each setting in turn, the largest gain, ")
    whys = [text for _, text in body(found).all("span", "why")]
    assert whys == [why for _, why in chosen]


def test_panels_take_turns(tmp_path: Path) -> None:
    turns = Turns(load(tmp_path, crowd()))
    chosen = turns.choose(8)
    panels = [turns.table["panel"][at] for at, _ in chosen]
    assert panels == sorted(panels)
    assert [panels.count(panel) for panel in set(panels)] == [2, 2, 2, 2]
    assert {why for _, why in chosen} == set(KINDS[:2])


def test_the_first_repeat_that_the_reference_answered(tmp_path: Path) -> None:
    lines = [line for line in duel(2, 3) if not (line["method"] == "fast" and line["repeat"] == 1)]
    lines = [
        line
        for line in lines
        if not (
            line["method"] == "autoregressive" and line["prompt_id"] == 1 and not line["repeat"]
        )
    ]
    turns = Turns(load(tmp_path, lines))
    repeats = {int(turns.answers(at)["repeat"].iloc[0]) for at in range(len(turns))}
    assert repeats == {0, 1}
    assert [len(turns.answers(at)) for at in range(2)] == [2, 1]


# Text that means harm


def harmless(page: str) -> Tree:
    """The page holds nothing that a text could have brought: no scripts of its own, no handlers,
    no addresses, nothing that turns text around or cannot be written."""
    page.encode("utf-8")
    unwanted = {
        char
        for char in page
        if unicodedata.bidirectional(char)
        in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
        or (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t")
        or char in "\u200e\u200f\u061c\u200b\ufeff\xad\ufffe"
    }
    assert not unwanted
    tree = Tree(page)
    assert not [
        name for name, attributes, _ in tree.found if any(a.startswith("on") for a in attributes)
    ]
    assert {name for name, *_ in tree.found}.isdisjoint({"img", "iframe", "object", "embed"})
    return tree


def plain(text: str) -> str:
    return "".join(char for char in text if char.isascii() and char.isprintable())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(text: str, tmp_path: Path) -> None:
    half = len(text) // 2
    lines = both(text, [1, 1], [1, half, len(text)])
    lines += [record("old", text=text, accept_lengths=[2], schema="1.0"), stock(text=text)]
    made = section(tmp_path, lines)
    tree = harmless(str(made.body))
    for found in shown(tree):
        assert plain(re.sub(r"U\+[0-9A-F]{4,}", "", found)) == plain(text)
    assert not tree.all("script")
    assert not tree.all("style")
    whole = build.render(load(tmp_path / "again", lines), [answers.section])
    assert len(harmless(whole).all("script")) == 1


def test_hostile_names_do_nothing(tmp_path: Path) -> None:
    name = '"><script>alert(1)</script>\u202e'
    lines = both("fine", [1], [1, 4], prompt_id=name, category=name, model=name, dataset=name)
    lines[1] |= {"method": name, "params": {name: name}}
    tree = harmless(str(section(tmp_path, lines).body))
    assert not tree.all("script")
    assert shown(tree) == ["fine", "fine"]


def test_answers_of_100_000_characters(tmp_path: Path) -> None:
    text = "<b>好\u202e&" * 14_286
    count = 25_000
    ends = [min(len(text), 4 * at + 1) for at in range(count)] + [len(text)]
    lines = []
    for question in range(3):
        lines += both(text, [1] * count, ends, prompt_id=question, prompt_sha256=f"{question:02x}")
    made = section(tmp_path, lines)
    assert made.body is not None
    assert len(made.body.encode()) < 2 * answers.BUDGET
    assert f" of {len(text):,} characters.</p>" in made.body


# The page of one prompt


def pages(tmp_path: Path, *arguments: str) -> tuple[int, Path]:
    out = tmp_path / "page.html"
    return view.main([str(tmp_path / "run"), *arguments, "--out", str(out)]), out


def test_a_prompt_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answers, "BUDGET", 0)
    lines = [
        line
        for turn in (1, 2)
        for question in range(3)
        for line in both(
            f"text {turn} of {question}",
            [1],
            [1, 11],
            turn=turn,
            prompt_id=f"q-{question}",
            prompt_sha256=f"{turn}{question}",
        )
    ]
    write_run(tmp_path / "run", lines)
    code, out = pages(tmp_path, "q-1")
    assert code == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert shown(Tree(out.read_text())) == ["text 1 of 1"] * 2 + ["text 2 of 1"] * 2
    assert pages(tmp_path, "q-1", "--turn", "2")[0] == 0
    assert shown(Tree(out.read_text())) == ["text 2 of 1"] * 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["q-22"], "error: the run has no prompt q-22; the nearest are q-2, q-1, q-0"),
        (["q-1", "--turn", "3"], "error: q-1 has no turn 3; it has 1"),
        (["q-lost"], "error: no reference answered q-lost; see the failures in the report"),
    ],
)
def test_an_unknown_prompt_is_one_line_and_the_nearest(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for n in range(3) for line in both("ab", [1], [1, 2], prompt_id=f"q-{n}")]
    lines.append(failure("autoregressive", "out of memory", prompt_id="q-lost"))
    write_run(tmp_path / "run", lines)
    code, out = pages(tmp_path, *arguments)
    assert code == 2
    assert capsys.readouterr().err == complaint + "\n"
    assert not out.exists()


def test_an_unknown_run_is_one_line_and_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "smollm2-a", duel())
    (tmp_path / "no-run").mkdir()
    assert view.main([str(tmp_path / "smollm2"), "1"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: there is no run {tmp_path / 'smollm2'}; the nearest are smollm2-a\n"
    assert view.main([str(tmp_path / "no-run"), "1"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
