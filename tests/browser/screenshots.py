"""Pictures of a run's page: light, dark and narrow; or of all its sections, to look at.

python -m tests.browser.screenshots FOLDER results/<run> [...] [--sections]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.errors import UsageError
from reports import build
from tests.browser.chromium import NARROW, WIDE, chromium

PICTURES = {  # name: size, scheme, pixels a point
    "report-light": ({**WIDE, "height": 1000}, "light", 1.0),
    "report-dark": ({**WIDE, "height": 1000}, "dark", 1.0),
    "report-narrow": (NARROW, "light", 1.5),
}

WIDTHS = (1400, 800, 390)
TALLEST = 16_000  # points; taller sections are answers, and are left out
SLOW = 120_000  # ms that a picture may take


def take(page: Path, folder: Path) -> list[Path]:
    """Writes the pictures of a page to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with chromium() as browser:
        for name, (size, scheme, scale) in PICTURES.items():
            context = browser.new_context(
                viewport=size, color_scheme=scheme, device_scale_factor=scale
            )
            tab = context.new_page()
            tab.goto(page.resolve().as_uri())
            if size is NARROW:
                tab.locator("#overview").evaluate("section => section.scrollIntoView()")
            written.append(folder / f"{name}.png")
            tab.screenshot(path=written[-1])
            context.close()
    return written


def take_sections(page: Path, folder: Path) -> list[Path]:
    """Writes pictures of the whole page as it opens, and of every section opened, at each of
    WIDTHS."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with chromium() as browser:
        for width in WIDTHS:
            tab = browser.new_page(viewport={"width": width, "height": 1000})
            tab.set_default_timeout(SLOW)
            tab.goto(page.resolve().as_uri())
            written.append(folder / f"page-{width}.png")
            tab.screenshot(path=written[-1], full_page=True)
            tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            for section in tab.locator("main > section").all():
                name = (section.get_attribute("aria-labelledby") or "").removesuffix("-title")
                box = section.bounding_box()
                if box and box["height"] <= TALLEST:
                    written.append(folder / f"{name}-{width}.png")
                    section.screenshot(path=written[-1])
            tab.close()
    return written


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("runs", nargs="+", type=Path, metavar="results/<run>")
    parser.add_argument("--sections", action="store_true", help="every section at three widths")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "index.html"
        try:
            build.build(arguments.runs, page)
            written = (take_sections if arguments.sections else take)(page, arguments.folder)
        except (UsageError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    for path in written:
        print(f"{path}: {path.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
