"""One browser for the session, one page made of fabricated records, a tab that notes trouble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reports import build
from tests.browser.chromium import WIDE, chromium
from tests.reports.fabricate import crowd, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    run = write_run(
        folder / "run",
        crowd(),
        run_yaml="models: [small, large]\n",
        environment_json='{"python": "3.11", "packages": {"torch": "2.13"}}',
    )
    build.build([run], folder / "index.html")
    return (folder / "index.html").as_uri()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page in a fresh context; no error, warning or request may come of the test."""
    contexts = []
    trouble: list[str] = []

    def watched(**settings: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **settings})
        context.set_default_timeout(5000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        tab.on("request", lambda request: note(request.url))
        tab.goto(address)
        return tab

    def note(url: str) -> None:
        if url.partition("#")[0] != address and not url.startswith("data:"):
            trouble.append(f"request: {url}")

    yield watched
    for context in contexts:
        context.close()
    assert not trouble


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "saved"
