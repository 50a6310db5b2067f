"""The viewer in Chromium: keys, the same place elsewhere, numbers, paper, and hostile answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reports import build
from tests.browser.chromium import NARROW
from tests.browser.conftest import Open
from tests.reports.fabricate import write_run
from tests.reports.test_answers import HOSTILE, both

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser


def first(tab: Page) -> Locator:
    """The first turn of the section, which is opened."""
    tab.locator(".foldable > details:has(#answers)").evaluate("one => { one.open = true; }")
    return tab.locator("#answers details.turn").first


def test_arrow_keys_move_from_step_to_step(visit: Open) -> None:
    tab = visit()
    turn = first(tab)
    answer, said = turn.locator(".blocks").nth(1), turn.locator(".readout")
    tab.keyboard.press("Tab")  # so that focus is by keyboard
    answer.focus()
    assert "prefill" in (said.text_content() or "")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert "step 2: " in (said.text_content() or "")
    assert said.locator("rect").count() == 4
    tab.keyboard.press("ArrowLeft")
    assert "step 1: " in (said.text_content() or "")
    tab.keyboard.press("End")
    last = answer.locator("bdi").count() - 1
    assert f"step {last}: " in (said.text_content() or "")
    tab.keyboard.press("ArrowRight")  # there is no further one
    assert answer.locator(".now").count() == 1
    tab.keyboard.press("Tab")
    assert answer.evaluate(
        "one => document.activeElement !== one && !one.contains(document.activeElement)"
    )


def test_the_same_place_is_marked_in_the_other_answers(visit: Open) -> None:
    turn = first(visit())
    answers = turn.locator(".blocks")
    answers.nth(1).locator("bdi").nth(3).hover()
    assert answers.nth(1).locator(".twin").count() == 0
    twins = [answers.nth(at).locator(".twin").count() for at in range(answers.count())]
    assert twins == [1, 0, *[1] * (answers.count() - 2)]


def test_numbers_can_be_shown(visit: Open) -> None:
    tab = visit()
    first(tab)
    number = "block => getComputedStyle(block, '::after').position"
    block = first(tab).locator(".blocks bdi").nth(1)
    assert block.evaluate(number) == "absolute"  # there for screen readers alone
    tab.locator(".legend button").click()
    assert block.evaluate(number) == "static"
    assert block.evaluate("block => getComputedStyle(block, '::after').content") == '"1"'


def test_what_is_open_is_what_prints(visit: Open) -> None:
    tab = visit()
    first(tab)
    tab.emulate_media(media="print")
    shut = tab.locator("#answers details.turn").nth(2).locator(".columns")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert first(tab).locator(".columns").is_visible()
    assert not shut.is_visible()
    assert (
        first(tab)
        .locator("bdi")
        .nth(1)
        .evaluate("block => getComputedStyle(block, '::after').position")
        == "static"
    )
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("#answers details.turn[data-shut]").count() == 0


def test_hostile_answers_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    lines = [
        line
        for number, text in enumerate((*HOSTILE, "<i>" * 30_000))
        for line in both(
            text,
            [1, 1],
            [1, len(text) // 2, len(text)],
            prompt_id=number,
            prompt_sha256=f"{number:02x}",
        )
    ]
    build.build([write_run(tmp_path / "run", lines)], tmp_path / "page.html")
    context = browser.new_context(viewport=NARROW)
    trouble: list[str] = []
    try:
        tab = context.new_page()
        tab.on("dialog", lambda dialog: trouble.append(dialog.message))
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.goto((tmp_path / "page.html").as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        for at in range(len(HOSTILE)):
            tab.locator(".turn").nth(at).locator("bdi").nth(1).hover()
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert tab.evaluate(wide) == 0
        turned = tab.locator(".blocks[dir=rtl]")
        assert turned.count() == 2
    finally:
        context.close()
    assert not trouble
