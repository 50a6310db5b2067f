"""The section that sums up: the fastest method of each setting, by how much and with which
significance, tokens/s by model, engine and method, and where the time goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from markupsafe import Markup

from bench.records.runs import PHASES
from reports.measures.throughput import SETTING, throughput
from reports.page.badges import badge
from reports.page.columns import INTERVAL, Column, Detailed, column, figure
from reports.page.figures.canvas import Key, legend
from reports.page.figures.style import PHASE_COLOURS
from reports.page.filters import SETTINGS
from reports.page.format import NONE, bounds, digits, number, parameters, percent, text
from reports.page.model import Page, Section, Table, TableRow, Tag
from reports.page.panels import panels
from reports.page.settings import ALWAYS, IF_SEVERAL, TITLES, setting
from reports.page.tables import plain, reference_tag, shared_tags, tags
from reports.read.preparation import NAME, ROW

OPEN = 2  # panels that are not folded
ORDER = tuple(sorted(PHASES, key=list(PHASE_COLOURS).index))  # of the phases in a bar
MATCHES = "#matches"  # where badges are explained
LISTED = 3  # methods that a sentence names
FASTEST = Tag("fastest lossless", "good")
PLAIN = "plain autoregressive decoding"
DOING = {"verify": "verifying", "draft": "drafting", "accept": "accepting", "other": "on the rest"}


def section(page: Page) -> Section:
    """One ranked table for each setting, and above them the fastest method of each."""
    rows = _rows(page)
    found = panels(rows) if len(rows) else []
    ranked = [(panel.title, _ranked(page, panel.rows)) for panel in found]
    shown = [*_leaders(page, [rows for _, rows in ranked]), *_throughput(page)]
    shown += [_panel(page, title, rows, at >= OPEN) for at, (title, rows) in enumerate(ranked)]
    return Section(
        "overview",
        "Overview",
        _lead(shown),
        tables=shown,
        empty="No good records: nothing to compare.",
        records=page.good,
    )


def _rows(page: Page) -> pd.DataFrame:
    """Speedup, accepted length and shares of every row."""
    by = list(ROW)
    rows = page.speedup
    if rows.empty:
        return rows
    for other, columns in ((page.accepted, ["accepted"]), (page.shares, PHASES)):
        rows = rows.merge(other[[*by, *columns]], how="left", on=by, validate="one_to_one")
    return rows


def _ranked(page: Page, rows: pd.DataFrame) -> pd.DataFrame:
    """A panel's rows, fastest first, with what words and drawings need: `short` names, the `hue`
    and the `kind` of each row, and `scale`, the speedup at the right end of the bars.

    Kinds: "best", "peer" (not distinguishable from it), "plain", and "aside" for what is never
    called the fastest: the reference, the stock row, lossy rows and those with defects.
    """
    rows = rows.reset_index(drop=True)
    rows["kind"] = ["plain" if _held(page, row) else "aside" for row in _each(rows)]
    rows.loc[rows["peer"] & (rows["kind"] == "plain"), "kind"] = "peer"
    rows.loc[rows["fastest"], "kind"] = "best"
    rows["short"] = [page.name(label) for label in rows["label"]]
    rows["hue"] = [page.style[label].colour for label in rows["label"]]
    rows["scale"] = 1.03 * float(max(1.0, rows[["speedup", "high"]].max().max()))
    return rows


def _held(page: Page, row: TableRow) -> bool:
    """Whether a row is of a method that kept the output equal."""
    wrong = tuple(row[name] for name in NAME) in page.defective
    return not (row["reference"] or row["stock"] or row["lossy"] or wrong)


def _best(rows: pd.DataFrame) -> int | None:
    found = rows.index[rows["kind"] == "best"]
    return int(found[0]) if len(found) else None


# ---------------------------------------------------------------------------------- tables


def _columns() -> list[Column]:
    return [
        Column("Speedup", "speedup", _times, draw=_bar),
        INTERVAL,
        column("Tokens/s", "tokens_per_s", digits),
        figure("Accepted length", "accepted", "{:.2f}"),
    ]


def _panel(page: Page, title: str, rows: pd.DataFrame, folded: bool) -> Table:
    """The methods of one setting, fastest first."""
    columns = [
        *_columns(),
        Column("Where the time goes", "verify", _verify, term="Verification share", draw=_stack),
        column("Draft parameters", "draft_parameters", parameters),
    ]
    shared = shared_tags([_marks(page, row) for row in _each(rows) if not row["reference"]])
    said = {tag.text for tag in shared}
    (table,) = plain(
        page,
        title,
        rows,
        (),
        columns,
        lambda row: [tag for tag in _ranks(page, row) if tag.text not in said],
    )
    first = rows.iloc[0]
    facts = {name: setting(name, first[name]) for name in SETTINGS if name in first}
    facts["engine"] = str(first["reference_engine"])
    return replace(table, lead=verdict(rows), facts=facts, folded=folded, tags=shared)


def _leaders(page: Page, ranked: Sequence[pd.DataFrame]) -> list[Table]:
    """The fastest of each panel, by tokens/s; none where there is one panel only."""
    found = []
    for panel in ranked:
        peers = panel.loc[panel["kind"] == "peer", "short"]
        best = panel[panel["kind"] == "best"]
        found.append(best.assign(peers="; ".join(peers) or NONE))
    rows = pd.concat(found, ignore_index=True) if len(found) > 1 else pd.DataFrame()
    if rows.empty:
        return []
    rows["scale"] = rows["scale"].max()
    rows = rows.sort_values("tokens_per_s", ascending=False, kind="stable")
    parted = rows.groupby("run", sort=False)  # a run's name stands for what all of it shares
    told = [name for name in IF_SEVERAL if (parted[name].nunique(dropna=False) > 1).any()]
    told += ["run"] * (len(parted) > 1)
    names = [name for name in TITLES if name in (*ALWAYS, *told)]
    columns = [*_columns(), column("Not distinguishable", "peers", text, numeric=False)]
    caption = "The fastest lossless method of each setting"
    return plain(page, caption, rows, names, columns, lambda row: _marks(page, row))


def _throughput(page: Page) -> list[Table]:
    """Tokens/s with a column for each engine; none where one model ran on one engine."""
    rows, engines = throughput(page.speedup)
    if rows.empty or len(engines) * rows["model"].nunique() < 2:
        return []
    columns: list[Column] = [
        Detailed(
            engine,
            engine,
            partial(_rate, engine),
            term="Tokens/s",
            below=partial(_ratio, engine),
        )
        for engine in engines
    ]
    told = [name for name in SETTING if name in ALWAYS or rows[name].nunique(dropna=False) > 1]
    caption = "Tokens/s by model, engine and method, with the speedup on the same engine"
    names = ["run"] * bool(rows.duplicated([*SETTING, "label"]).any()) + told
    return plain(page, caption, rows, names, columns, reference_tag)


def _ranks(page: Page, row: TableRow) -> list[Tag]:
    """The row's marks, and that it is the fastest."""
    return [FASTEST] * (row["kind"] == "best") + _marks(page, row)


def _marks(page: Page, row: TableRow) -> list[Tag]:
    """The row's badge, and its other tags."""
    found = badge(page, row)
    others = [tag for tag in tags(page, row) if tag.href != MATCHES and tag.text != found.text]
    return [Tag(found.text.partition(" (")[0], found.kind, MATCHES, found.why), *others]


def _times(row: TableRow) -> str:
    return number(row["speedup"], "{:.2f}×")


def _verify(row: TableRow) -> str:
    return number(100 * row["verify"], "{:.0f} % verify")


def _lead(shown: Sequence[Table]) -> Markup | str:
    """How to read the drawings."""
    if not shown:
        return "Which method is fastest, and where the time goes."
    words = (
        "Fastest first. A bar is the speedup over plain decoding on the same engine (dotted line: "
        "the same speed), its whisker the 95 % interval."
    )
    phases = [Key(phase, PHASE_COLOURS[phase]) for phase in ORDER]
    return Markup("{}{}").format(words, legend(phases, "Where the time goes"))


# ---------------------------------------------------------------------------------- words


def verdict(rows: pd.DataFrame) -> Markup:
    """A ranked panel in a sentence or two."""
    best = _best(rows)
    if best is None:
        return _no_verdict(rows)
    row: TableRow = rows.loc[best].to_dict()
    return Markup(" ").join([_fastest(rows, row), *_time(row), *_lossy(rows, row)])


def _no_verdict(rows: pd.DataFrame) -> Markup:
    if rows["synthetic"].all():
        return Markup("Random weights: no speedup is reported, only where the time goes.")
    return Markup("No lossless method was compared with the reference.")


def _fastest(rows: pd.DataFrame, row: TableRow) -> Markup:
    """The best compared with the reference, then with the next."""
    if row["speedup"] <= 1:
        words = "No lossless method is faster than {2}; the nearest, {0}, has {1} its speed{3}."
    elif pd.isna(row["low"]):
        words = "{0} is fastest at {1} the speed of {2}{3}. One question gives no interval."
    elif not row["distinct"]:
        words = "{0} leads at {1}, not distinguishable from {2}{3}."
    elif (rows["kind"] == "peer").any():
        words = "{0} leads at {1} the speed of {2}{3}."
    else:
        words = "{0} is fastest at {1} the speed of {2}{3}."
    return Markup(words).format(_name(row), _speed(row), PLAIN, _ahead(rows, row))


def _ahead(rows: pd.DataFrame, row: TableRow) -> Markup:
    """The best compared with those next to it."""
    peers, behind = (rows[rows["kind"] == kind] for kind in ("peer", "plain"))
    if len(peers):
        words = Markup("; {} {} not distinguishable from it")
        return words.format(_named(peers), "is" if len(peers) == 1 else "are")
    if behind.empty or row["speedup"] <= 1:
        return Markup("")
    ahead = row["speedup"] / float(behind["speedup"].iloc[0]) - 1
    return Markup(", {} ahead of {}").format(percent(ahead), _named(behind.head(1)))


def _time(row: TableRow) -> Iterator[Markup]:
    """The tokens per step of the best, and where its time goes, largest first."""
    if not pd.isna(row["verify"]):
        shares = sorted(((float(row[phase]), phase) for phase in PHASES), reverse=True)
        words = [f"{100 * share:.0f} % {DOING[phase]}" for share, phase in shares if share >= 0.005]
        accepted = number(row["accepted"], "{:.2f}")
        yield Markup("It gets {} tokens a step and spends {}.").format(accepted, _joined(words))


def _lossy(rows: pd.DataFrame, row: TableRow) -> Iterator[Markup]:
    """Faster rows that change the output."""
    faster = rows[rows["lossy"] & (rows["speedup"] > row["speedup"])]
    if len(faster):
        yield Markup("Faster, but lossy: {}.").format(_named(faster))


def _name(row: TableRow) -> Markup:
    return Markup("<b>{}</b>").format(Markup(",<wbr>").join(row["short"].split(",")))


def _speed(row: TableRow) -> Markup:
    span: Markup | str = "" if pd.isna(row["low"]) else f" {bounds(row)}"
    return Markup("<b>{}</b>{}").format(_times(row), span)


def _named(rows: pd.DataFrame) -> Markup:
    """Rows with their speedups, at most LISTED of them."""
    names = [Markup("{} ({})").format(_name(row), _times(row)) for row in _each(rows.head(LISTED))]
    more = len(rows) - len(names)
    return _joined([*names, Markup(f"{more} more")] if more else names)


def _joined(words: Sequence[str]) -> Markup:
    """One, two and three."""
    *rest, last = words
    return Markup(" and ").join([Markup(", ").join(rest), last] if rest else [last])


def _each(rows: pd.DataFrame) -> list[TableRow]:
    return list(rows.to_dict("records"))


# ---------------------------------------------------------------------------------- drawings


def _bar(row: TableRow) -> Markup:
    """The speedup from 0 to the panel's scale, its interval, and a line at 1."""
    if pd.isna(row["speedup"]):
        return Markup("")
    fill = Markup('<rect fill="{}" width="{}" height="100%"/>')
    one = Markup('<line class="one" x1="{0}" x2="{0}" y1="-30%" y2="130%"/>')
    line = Markup('<line class="span" x1="{}" x2="{}" y1="{}%" y2="{}%"/>')
    parts = [fill.format(row["hue"], _at(row, row["speedup"])), one.format(_at(row, 1.0))]
    if not pd.isna(row["low"]):
        low, high = _at(row, row["low"]), _at(row, row["high"])
        parts.append(line.format(low, high, 50, 50))
        parts += [line.format(end, end, 22, 78) for end in (low, high)]
    return Markup('<svg class="bar" aria-hidden="true">{}</svg>').format(Markup("").join(parts))


def _at(row: TableRow, speedup: float) -> str:
    return f"{100 * speedup / row['scale']:.2f}%"


def _stack(row: TableRow) -> Markup:
    """The phases' shares of the decode loop, side by side."""
    if pd.isna(row["verify"]):
        return Markup("")
    rect = Markup('<rect x="{:.2f}%" width="{:.2f}%" height="100%" fill="{}"/>')
    left, parts = 0.0, []
    for phase in ORDER:
        share = 100 * float(row[phase])
        parts.append(rect.format(left, share, PHASE_COLOURS[phase]))
        left += share
    drawn = Markup('<svg class="stack" role="img" aria-label="{0}"><title>{0}</title>{1}</svg>')
    words = ", ".join(f"{phase} {percent(row[phase])}" for phase in ORDER)
    return drawn.format(words, Markup("").join(parts))


def _rate(engine: str, row: TableRow) -> str:
    return digits(row[engine])


def _ratio(engine: str, row: TableRow) -> str:
    return number(row[f"{engine}_speedup"], "{:.2f}×")
