"""Pictures of a run's page: light, dark and narrow.

python -m tests.browser.screenshots FOLDER results/<run> [...]
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("runs", nargs="+", type=Path, metavar="results/<run>")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "index.html"
        try:
            build.build(arguments.runs, page)
            written = take(page, arguments.folder)
        except (UsageError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    for path in written:
        print(f"{path}: {path.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
