"""Writes one prompt's answers, whole and of every method, as a page of its own.

python -m reports.view results/<run> PROMPT_ID [--turn N] [--out FILE]
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.cli import Parser, run_command
from bench.errors import UsageError
from bench.records.runs import RECORDS
from reports import build
from reports.page.model import Page, Section
from reports.page.shown_turns import shown_turn
from reports.page.turns import Turns
from reports.sections import answers

FILE = "answer.html"
NEAREST = 5


def view(folder: Path, prompt_id: str, turn: int | None, out: Path) -> None:
    """Writes the page of a prompt of the run in `folder`: all its turns, or one.

    UsageError where there is no such run, prompt or turn, or `out` cannot be written.
    """
    if not folder.is_dir():
        known = [path.parent.name for path in folder.parent.glob(f"*/{RECORDS}")]
        raise UsageError(f"there is no run {folder}{_nearest(folder.name, known)}")
    page = build.load([folder])
    turns = Turns(page)
    found = _find(page, turns, prompt_id, turn)

    def section(page: Page) -> Section:
        shown = [shown_turn(turns, at) for at in found]
        lead = (
            f"Every answer to {prompt_id} in the first repeat that the reference answered, of "
            "those with the phase clock where there are any: the reference, the fastest lossless "
            "method of the run, then the others by speedup."
        )
        return answers.made(page, shown, lead)

    build.write(out, build.render(page, [section]))


def _find(page: Page, turns: Turns, prompt_id: str, turn: int | None) -> list[int]:
    """Places of the turns asked for."""
    table = turns.table
    ids = table["prompt_id"].astype(str)
    own = ids == prompt_id
    if not own.any():
        asked = page.records["prompt_id"].dropna().astype(str)
        if (asked == prompt_id).any():
            raise UsageError(f"no reference answered {prompt_id}; see the failures in the report")
        raise UsageError(f"the run has no prompt {prompt_id}{_nearest(prompt_id, ids.unique())}")
    if turn is not None:
        known = sorted(int(one) for one in table.loc[own, "turn"].unique())
        own &= table["turn"].eq(turn)
        if not own.any():
            listed = ", ".join(map(str, known))
            raise UsageError(f"{prompt_id} has no turn {turn}; it has {listed}")
    return [int(at) for at in table.index[own]]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), NEAREST, cutoff=0.0)
    return f"; the nearest are {', '.join(close)}" if close else "; there are none"


def main(argv: Sequence[str] | None = None, prog: str = "python -m reports.view") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = Parser(
        prog=prog,
        description="Write one prompt's answers, whole and of every method, as a page of its own.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="results/<run>")
    parser.add_argument("prompt_id", metavar="PROMPT_ID")
    parser.add_argument("--turn", type=int, help="one turn of the prompt; all by default")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"page to write; by default {FILE} in the run's folder",
    )
    return run_command(parser, _command, argv)


def _command(flags: dict[str, Any]) -> int:
    out = flags["out"] or flags["folder"] / FILE
    view(flags["folder"], flags["prompt_id"], flags["turn"], out)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
