"""The report in a browser: opened as a file, without network, with and without its script."""

from __future__ import annotations

import csv
import io
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.browser.chromium import NARROW, WIDE

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import Open

pytestmark = pytest.mark.browser

OPENS_IN = 2.0  # seconds
READ = "cells => cells.map((c) => c.dataset.sort ?? (c.textContent === '–' ? '' : c.textContent))"


def table(tab: Page, section: str) -> Locator:
    return tab.locator(f"#{section} table").first


def column(found: Locator, head: str) -> list[str]:
    """What the visible rows of a table hold under a head, as sorting sees it."""
    heads = found.locator("thead .name").all_text_contents()
    cells = found.locator(f"tbody tr:visible > :nth-child({heads.index(head) + 1})")
    values: list[str] = cells.evaluate_all(READ)
    return values


def sort_by(found: Locator, head: str) -> None:
    found.locator("thead").get_by_role("button", name=head, exact=True).click()


def test_it_opens_at_once_and_fits_its_window(visit: Open) -> None:
    started = time.perf_counter()
    tab = visit()
    tab.wait_for_load_state("load")
    assert time.perf_counter() - started < OPENS_IN
    assert tab.locator("h1").is_visible()
    for size in (WIDE, NARROW):
        tab.set_viewport_size(size)
        assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_tables_sort_by_each_column_and_say_so(visit: Open) -> None:
    tab = visit()
    found = table(tab, "speedup")
    sort_by(found, "Speedup")
    falling = column(found, "Speedup")
    known = [float(value) for value in falling if value]
    assert known == sorted(known, reverse=True)
    assert len(set(known)) > 3
    assert "" not in falling[: len(known)]  # rows without a value stay last
    assert tab.get_by_role("status").inner_text() == "Sorted by Speedup, descending"
    assert found.locator("th[aria-sort=descending]").count() == 1
    sort_by(found, "Speedup")
    assert [float(value) for value in column(found, "Speedup") if value] == sorted(known)
    assert found.locator("th[aria-sort=ascending]").count() == 1
    sort_by(found, "Method")
    assert column(found, "Method") == sorted(column(found, "Method"))
    assert found.locator("th[aria-sort]").count() == 1


def test_the_keyboard_reaches_skip_link_and_sorting(visit: Open) -> None:
    tab = visit()
    tab.keyboard.press("Tab")
    skip = tab.locator(":focus")
    assert skip.inner_text() == "Skip to the results"
    assert skip.evaluate("link => link.getBoundingClientRect().left") >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    button = table(tab, "speedup").get_by_role("button", name="Tokens/s", exact=True)
    button.focus()
    tab.keyboard.press("Enter")
    assert tab.get_by_role("status").inner_text() == "Sorted by Tokens/s, descending"


def test_filters_hide_rows_in_every_table(visit: Open) -> None:
    tab = visit()
    tab.get_by_role("button", name="Open all sections").click()
    form = tab.locator("#filters")
    assert set(column(table(tab, "speedup"), "Model")) == {"small", "large"}
    panels = tab.locator("#overview .table:visible").count()
    form.get_by_label("small", exact=True).uncheck()
    for section in ("overview", "speedup", "accepted", "shares", "matches"):
        assert set(column(table(tab, section), "Model")) == {"large"}
    assert tab.locator("#overview .table:visible").count() < panels
    form.get_by_label("autoregressive", exact=True).uncheck()
    assert "autoregressive" not in column(table(tab, "speedup"), "Method")
    assert " of " in tab.locator("#speedup .rows").first.inner_text()
    form.get_by_role("button", name="Show all").click()
    assert set(column(table(tab, "speedup"), "Model")) == {"small", "large"}


@pytest.mark.parametrize(("system", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_follows_the_system_until_it_is_chosen(
    visit: Open, system: Any, other: str
) -> None:
    tab = visit(color_scheme=system)
    ground = {"light": "rgb(255, 255, 255)", "dark": "rgb(14, 18, 23)"}
    body = "getComputedStyle(document.body).backgroundColor"
    button = tab.get_by_role("button", name="Dark theme")
    assert tab.evaluate(body) == ground[system]
    button.click()
    assert tab.evaluate(body) == ground[other]
    assert button.get_attribute("aria-pressed") == str(other == "dark").lower()
    tab.reload()
    assert tab.evaluate(body) == ground[other]  # remembered
    tab.get_by_role("button", name="Dark theme").click()
    assert tab.evaluate(body) == ground[system]


def test_heads_and_figures_lead_to_definitions(visit: Open) -> None:
    tab = visit()
    tab.get_by_role("link", name="Definition of Accepted length").first.click()
    term = tab.locator(":target")
    term.wait_for()  # folds open after the event
    assert term.inner_text().startswith("Accepted length")
    tab.locator("#speedup figcaption a").first.click()
    assert tab.locator(":target").get_attribute("class") == "definitions"
    assert "records" in tab.locator("#speedup figcaption").first.inner_text()


@pytest.mark.parametrize("scripted", [True, False])
def test_tables_come_as_csv(visit: Open, saved: Path, scripted: bool) -> None:
    tab = visit(java_script_enabled=scripted)
    with tab.expect_download() as download:
        tab.locator("#speedup a.csv").first.click()
    download.value.save_as(saved)
    with saved.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == table(tab, "speedup").locator("tbody tr").count()
    assert {row["Model"] for row in rows} == {"small", "large"}
    assert all(float(row["Speedup"]) > 0 for row in rows)
    assert {"95 % interval low", "95 % interval high"} <= rows[0].keys()


def test_without_its_script_the_page_is_whole(visit: Open) -> None:
    tab = visit(java_script_enabled=False)
    for section in ("speedup", "accepted", "shares"):
        assert table(tab, section).is_visible()
        assert tab.locator(f"#{section} svg.drawn").first.is_visible()
    assert tab.locator("#overview table").first.is_visible()
    assert not tab.locator("#theme").is_visible()
    assert not tab.locator("#filters").is_visible()
    assert not tab.locator("thead button").count()


def test_the_viewer_opens_and_names_the_step_under_the_pointer(visit: Open) -> None:
    tab = visit()
    tab.locator("nav a[href='#answers']").click()
    turn = tab.locator("#answers details.turn").nth(1)
    assert not turn.locator("bdi").first.is_visible()
    turn.locator("summary").first.click()
    answer = turn.locator("article").nth(1)
    answer.locator("bdi").nth(2).hover()
    said = turn.locator(".readout").text_content() or ""
    assert "step 2" in said
    assert "token" in said
    answer.locator(".blocks").focus()
    tab.keyboard.press("ArrowRight")
    assert answer.locator(".now").count() == 1


def test_the_viewer_is_there_without_its_script(visit: Open) -> None:
    tab = visit(java_script_enabled=False)
    tab.locator("nav a[href='#answers']").click()
    block = tab.locator("#answers details.turn[open] bdi[title]").first
    assert block.is_visible()
    assert "token" in (block.get_attribute("title") or "")


@pytest.mark.parametrize("scripted", [True, False])
def test_links_open_folded_sections_and_definitions(visit: Open, scripted: bool) -> None:
    tab = visit(java_script_enabled=scripted)
    assert not table(tab, "matches").is_visible()
    tab.locator("nav a[href='#matches']").click()
    assert table(tab, "matches").is_visible()
    assert tab.locator("#matches-title").evaluate("title => title.getBoundingClientRect().top >= 0")
    term = tab.locator("#definitions-shares dt").first
    assert not term.is_visible()
    tab.locator("#shares a.define").first.click()
    assert term.is_visible()


def test_a_search_reaches_folded_text(visit: Open, address: str) -> None:
    """By a link to a text, which opens what find-in-page opens; window.find opens nothing."""
    tab = visit().context.new_page()
    tab.goto(f"{address}#:~:text=seq%2Drep%2D4")  # of a definition in a folded section
    tab.locator("#loops").wait_for()


def test_no_figure_scrolls_and_speedup_is_seen_at_once(visit: Open) -> None:
    tab = visit(viewport=NARROW)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    outside = """drawings => drawings.filter((one) => {
        const box = one.getBoundingClientRect();
        return box.right > innerWidth || box.width < 200 || one.closest('.scroll');
    }).length"""
    assert tab.locator("svg.drawn").count() > 8
    assert tab.locator("svg.drawn").evaluate_all(outside) == 0
    inner = "boxes => boxes.filter((b) => b.scrollHeight > b.clientHeight + 1).length"
    assert tab.locator("main .scroll").evaluate_all(inner) == 0
    for section in ("overview", "speedup"):
        for found in tab.locator(f"#{section} table").all():
            head = found.locator("thead th", has_text="Speedup")
            if head.count():
                assert head.first.evaluate("head => head.getBoundingClientRect().right") <= 390


def test_a_method_has_one_hue_everywhere(visit: Open) -> None:
    tab = visit()
    fills = tab.locator("#speedup .panel-drawn svg.drawn").first.evaluate(
        "svg => [...svg.querySelectorAll('path[style*=fill]')].map((p) => p.style.fill)"
    )
    bars = tab.locator("#overview svg.bar rect").evaluate_all(
        "bars => bars.map((bar) => bar.getAttribute('fill'))"
    )
    as_rgb = {tuple(int(bar[at : at + 2], 16) for at in (1, 3, 5)) for bar in bars}
    assert as_rgb <= {tuple(map(int, re.findall(r"\d+", fill))) for fill in fills if fill}


@pytest.mark.parametrize("scripted", [True, False])
def test_it_prints_everything(visit: Open, saved: Path, scripted: bool) -> None:
    tab = visit(java_script_enabled=scripted)
    tab.pdf(path=saved, prefer_css_page_size=True)
    assert saved.read_bytes().startswith(b"%PDF")
    assert saved.stat().st_size > 20_000
    tab.emulate_media(media="print")
    assert not tab.locator("aside").is_visible()
    assert table(tab, "speedup").is_visible()
    cut = "tables => tables.filter((t) => t.scrollWidth > t.parentElement.clientWidth + 1).length"
    tab.set_viewport_size({"width": 1040, "height": 720})  # A4 across, without its margins
    assert tab.locator(".scroll > table").evaluate_all(cut) == 0


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_picture_of_the_whole_page_shows_every_section(visit: Open, size: Any) -> None:
    tab = visit(viewport=size)
    picture = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
    sections = tab.locator("main > section").all()
    assert len(sections) > 3
    for section in sections:
        box = section.bounding_box()
        assert box is not None
        x, y, width, height = (round(box[key]) for key in ("x", "y", "width", "height"))
        colours = picture.crop((x, y, x + width, y + height)).getcolors(maxcolors=1 << 24)
        assert colours is not None
        assert len(colours) > 10, f"{section.get_attribute('aria-labelledby')} is blank"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing_serious(visit: Open, scheme: Any, size: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab = visit(color_scheme=scheme, viewport=size)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = Axe().run(tab).response["violations"]
    bad = [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    assert not bad, "\n".join(bad[:20])
