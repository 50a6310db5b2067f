"""Chromium as the tests drive it: the system's own, offline, with a profile of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "CHIMERA_BENCH_CHROMIUM"  # another executable than Debian's
EXECUTABLE = "/usr/bin/chromium"
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; FileNotFoundError where there is none."""
    from playwright.sync_api import sync_playwright

    executable = os.environ.get(VARIABLE, EXECUTABLE)
    if not Path(executable).is_file():
        raise FileNotFoundError(
            f"there is no Chromium at {executable}; install it (Debian: apt-get install chromium) "
            f"or set {VARIABLE} to its path"
        )
    root = ["--no-sandbox"] * (os.geteuid() == 0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *root])
        try:
            yield browser
        finally:
            browser.close()
