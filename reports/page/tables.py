"""How rows of figures become tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from reports.measures.significance import marks
from reports.page.columns import Column
from reports.page.format import NONE, bounds, number, text
from reports.page.model import Cell, Head, Page, Table, TableRow, Tag
from reports.page.settings import (
    ALWAYS,
    IF_AMBIGUOUS,
    IF_SEVERAL,
    NUMBERS,
    TITLES,
    count_values,
    setting,
    varies,
)
from reports.read.preparation import FLAGS, MISSED, ROW
from reports.read.words import counted

LONG = 24  # rows; a longer table opens on a click


def tables(page: Page, caption: str, rows: pd.DataFrame, columns: Sequence[Column]) -> list[Table]:
    """One table of the rows: their settings, the method with its tags, the columns; none if empty.

    Rows need the facts that every measure gives them.
    """
    names = [] if rows.empty else _settings(rows)
    rows = page.by_speed(rows)
    every = [tags(page, row) for row in rows.to_dict("records") if not row["reference"]]
    common = shared_tags(every)
    said = {tag.text for tag in common}
    found = plain(
        *(page, caption, rows, names, columns),
        lambda row: [tag for tag in tags(page, row) if tag.text not in said],
    )
    return [replace(table, folded=len(table.rows) > LONG, tags=common) for table in found]


def shared_tags(rows: Sequence[Sequence[Tag]]) -> list[Tag]:
    """Tags that all rows have, where there are several, without the tooltips of single rows."""
    if len(rows) < 2:
        return []
    texts = [{tag.text for tag in own} for own in rows]
    return [replace(tag, why="") for tag in rows[0] if all(tag.text in own for own in texts)]


def plain(
    page: Page,
    caption: str,
    rows: pd.DataFrame,
    names: Sequence[str],
    columns: Sequence[Column],
    marks: Callable[[TableRow], Sequence[Tag]] | None = None,
) -> list[Table]:
    """One table of the rows: the settings `names`, the method with its `marks` where rows are of
    methods, the columns that have a value in any row; none if empty.
    """
    if rows.empty:
        return []
    every = rows.to_dict("records")
    filled = [one for one in columns if any(_filled(one.cell(row)) for row in every)]
    heads = [Head(TITLES[name], name in NUMBERS) for name in names]
    heads += [Head("Method")] * (marks is not None)
    heads += [column.head() for column in filled]
    lines: list[list[Cell]] = []
    for row in every:
        line = [
            Cell(setting(name, row[name]), row[name] if name in NUMBERS else text(row[name]))
            for name in names
        ]
        line = _greyed(line, lines[-1] if lines else ())
        if marks is not None:
            name = page.name(row["label"])
            line.append(Cell(name, row["label"], tags=marks(row), names_row=True))
        lines.append(line + [column.cell(row) for column in filled])
    return [Table(caption, heads, lines)]


def _filled(cell: Cell) -> bool:
    return cell.text not in ("", NONE) or bool(cell.detail or cell.graphic or cell.tags)


def _settings(rows: pd.DataFrame) -> list[str]:
    """The settings that a table prints: the usual ones, those that vary, and those without which
    two rows would look alike.
    """
    usual = {*ALWAYS, *(name for name in IF_SEVERAL if count_values(rows, name) > 1)}
    alike = rows.groupby([*sorted(usual), "label"], dropna=False, sort=False)
    unclear = {name for name in IF_AMBIGUOUS if name in rows and varies(alike, name)}
    return [name for name in TITLES if name in usual | unclear]


def _greyed(line: Sequence[Cell], above: Sequence[Cell]) -> list[Cell]:
    """Settings that repeat those of the row above, from the left."""
    texts, known = [cell.text for cell in line], [cell.text for cell in above]
    return [
        Cell(cell.text, cell.sort, setting=True, same=texts[: place + 1] == known[: place + 1])
        for place, cell in enumerate(line)
    ]


def reference_tag(row: TableRow) -> list[Tag]:
    return [Tag("reference")] * bool(row["reference"])


def tags(page: Page, row: TableRow) -> list[Tag]:
    """The tags of a row: what a reader must know before its figures."""
    found = reference_tag(row)
    if row["lossy"]:
        found.append(Tag("lossy", "warn", "#matches"))
    if defects := page.defects(row):
        found.append(Tag(counted(defects, "defect"), "bad", "#matches"))
    if row["failed"]:
        found.append(Tag(f"{row['failed']:,} failed", "bad", "#failures"))
    if row["skipped"]:
        found.append(Tag(f"{row['skipped']:,} skipped", "warn", "#failures"))
    if row.get("unpaired"):
        found.append(Tag(f"{row['unpaired']:,} without a reference", "warn"))
    if row.get("one_token"):
        found.append(Tag(f"{counted(row['one_token'], 'one-token pair')} left out"))
    return found + [Tag(words, "warn", "#significance") for words in marks(row)]


# ---------------------------------------------------------------------------------- by value


def pivot(
    page: Page,
    caption: str,
    rows: pd.DataFrame,
    by: str,
    names: Sequence[tuple[object, str]],
    show: Callable[[TableRow], Cell],
    term: str | None = None,
) -> list[Table]:
    """A row for each method, a column for each value of `by`: (value, head) of `names`."""
    if rows.empty:
        return []
    rows = page.by_speed(rows)
    key = [name for name in ROW if name != by]
    facts = ["row", "panel", *ROW, *FLAGS, *MISSED]
    groups = list(rows.groupby(key, dropna=False, sort=False))
    first = pd.concat([group.iloc[:1] for _, group in groups], ignore_index=True)
    (base,) = tables(page, caption, first[facts], ())
    heads, lines = list(base.heads), [list(line) for line in base.rows]
    if by in TITLES:
        at = next(place for place, head in enumerate(heads) if head.text == TITLES[by])
        heads.pop(at)
        for line in lines:
            line.pop(at)
    heads += [Head(head, True, term) for _, head in names]
    whole = dict(zip(rows.index, rows.to_dict("records"), strict=True))
    for line, (_, group) in zip(lines, groups, strict=True):
        found = {whole[at][by]: show(whole[at]) for at in group.index}
        line += [found.get(value, Cell(NONE)) for value, _ in names]
    return [replace(base, heads=heads, rows=lines)]


def faster(row: TableRow) -> Cell:
    """A speedup, below it its interval and the accepted length."""
    value = row["speedup"]
    known = [bounds(row), number(row["accepted"], "{:.2f}")]
    return Cell(
        number(value, "{:.2f}×"),
        None if pd.isna(value) else value,
        detail=" · ".join(one for one in known if one != NONE),
    )


def longer(row: TableRow) -> Cell:
    """An accepted length, below it the number of steps."""
    return Cell(f"{row['accepted']:.2f}", row["accepted"], detail=f"{row['steps']:,}")
