"""The overview of a page as plain text: what a run prints at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from reports.page.format import bounds, number
from reports.page.model import Page, TableRow
from reports.page.panels import panels
from reports.read.preparation import MISSED, NAME, ROW
from reports.sections import header

HEADS = ("speedup", "95 % interval", "accepted", "verify", "tokens/s")
NOTE = (
    "speedup: over autoregressive decoding on the same engine; accepted: tokens a\n"
    "step; verify: share of the decode loop's time in the target's verify forwards"
)
INDENT, GAP = "  ", "  "


def overview(page: Page, width: int) -> str:
    """A table for each setting, the fastest method first, with the page's own figures; empty
    where there are no good records.

    width: columns of the terminal. A method that is too long for its column stands on a line of
    its own, above its figures.
    """
    rows = _rows(page)
    if rows.empty:
        return ""
    blocks = ["\n".join(_table(page, p.title, p.rows, width)) for p in panels(rows)]
    return "\n\n".join([*blocks, "\n".join([NOTE, *header.smoke(page)])])


def _rows(page: Page) -> pd.DataFrame:
    """The speedup, accepted length and verification share of every row."""
    rows, by = page.speedup, list(ROW)
    if rows.empty:
        return rows
    rows = rows.merge(page.accepted[[*by, "accepted"]], how="left", on=by, validate="one_to_one")
    return rows.merge(page.shares[[*by, "verify"]], how="left", on=by, validate="one_to_one")


def _table(page: Page, title: str, rows: pd.DataFrame, width: int) -> Iterator[str]:
    ranked = rows.sort_values("speedup", ascending=False, kind="stable", na_position="last")
    lines = [(_name(page, row), _figures(row)) for row in ranked.to_dict("records")]
    widths = [max(map(len, column)) for column in zip(HEADS, *(f for _, f in lines), strict=True)]
    room = width - len(INDENT) - sum(widths) - len(GAP) * len(widths)
    room = max(room, len("method"))
    names = min(room, max(len(name) for name, _ in lines))
    yield title
    yield _line("method", HEADS, names, widths)
    for name, figures in lines:
        if len(name) > names:
            yield INDENT + name
        yield _line("" if len(name) > names else name, figures, names, widths)


def _line(name: str, figures: Sequence[str], names: int, widths: Iterable[int]) -> str:
    cells = (text.rjust(size) for text, size in zip(figures, widths, strict=True))
    return INDENT + GAP.join([name.ljust(names), *cells])


def _name(page: Page, row: TableRow) -> str:
    """The method, with what a reader must know before its figures."""
    found = ["reference"] * bool(row["reference"]) + ["lossy"] * bool(row["lossy"])
    if tuple(row[name] for name in NAME) in page.defective:
        found.append("defects")
    found += [f"{row[count]:,} {count}" for count in MISSED if row[count]]
    return ", ".join([page.name(row["label"]), *found])


def _figures(row: TableRow) -> list[str]:
    return [
        number(row["speedup"], "{:.2f}"),
        bounds(row),
        number(row["accepted"], "{:.2f}"),
        number(100 * row["verify"], "{:.0f} %"),
        number(row["tokens_per_s"], "{:,.1f}"),
    ]
