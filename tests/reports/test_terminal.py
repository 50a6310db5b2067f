"""The overview in plain text: the page's figures, fastest first, within the terminal."""

from pathlib import Path

from reports import build, terminal
from reports.page.model import Page
from tests.reports.fabricate import Record, crowd, duel, failure, record, write_run


def page_of(tmp_path: Path, lines: list[Record]) -> Page:
    return build.load([write_run(tmp_path / "run", lines)])


def test_a_table_has_the_figures_of_the_page_fastest_first(tmp_path: Path) -> None:
    title, *lines = terminal.overview(page_of(tmp_path, duel()), 80).splitlines()
    assert title == "tiny · mini · eager · T=0"
    assert lines[:3] == [
        "  method                     speedup  95 % interval  accepted  verify  tokens/s",
        "  fast(n=3)                     2.00   [2.00, 2.00]      2.00    50 %       2.0",
        "  autoregressive, reference     1.00              –      1.00    75 %       1.0",
    ]


def test_a_long_method_stands_above_its_figures(tmp_path: Path) -> None:
    lines = [r | {"params": {"nodes": 15, "depth": 5, "vocab": 8192}} for r in duel()[1::2]]
    page = page_of(tmp_path, [*duel()[::2], *lines])
    narrow, wide = (terminal.overview(page, width).splitlines() for width in (80, 120))
    assert max(map(len, narrow)) <= 80
    at = narrow.index("  fast(nodes=15,depth=5,vocab=8192)")
    assert narrow[at + 1].split() == ["2.00", "[2.00,", "2.00]", "2.00", "50", "%", "2.0"]
    (line,) = (line for line in wide if "fast(" in line)
    assert line.split()[1:] == narrow[at + 1].split()


def test_every_setting_has_a_table(tmp_path: Path) -> None:
    text = terminal.overview(page_of(tmp_path, crowd()), 80)
    for title in ("small · mini", "small · mt", "large · mini", "large · mt"):
        assert f"{title} · eager · T=0\n" in text
    assert text.count("loose, lossy ") == 4
    assert max(map(len, text.splitlines())) <= 80


def test_what_failed_is_said_beside_its_figures(tmp_path: Path) -> None:
    broken = failure("fast", "out of luck", params={"n": 3}, prompt_id=9, prompt_sha256="09")
    text = terminal.overview(page_of(tmp_path, [*duel(), broken]), 80)
    assert "fast(n=3), 1 failed " in text


def test_a_skipped_turn_is_no_failure(tmp_path: Path) -> None:
    left = failure("fast", "too long", "skipped", params={"n": 3}, prompt_id=9, prompt_sha256="09")
    text = terminal.overview(page_of(tmp_path, [*duel(), left]), 80)
    assert "fast(n=3), 1 skipped " in text
    assert "failed" not in text


def test_unknown_figures_are_dashes(tmp_path: Path) -> None:
    text = terminal.overview(page_of(tmp_path, duel(model="synthetic:tiny")), 80)
    (line,) = (line for line in text.splitlines() if "fast" in line)
    assert line.split() == ["fast(n=3)", "–", "–", "–", "50", "%", "–"]


def test_a_smoke_run_is_called_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", duel(), run_yaml="preset: quick\n")
    assert "A smoke run: 4 questions" in terminal.overview(build.load([folder]), 80)


def test_nothing_is_shown_without_good_records(tmp_path: Path) -> None:
    lines = [failure("autoregressive", "it broke")]
    assert terminal.overview(page_of(tmp_path, lines), 80) == ""
    assert terminal.overview(page_of(tmp_path, [record()]), 80) != ""
