"""The sections on where speedups come from: by factor, question, depth, position and so on."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from reports.measures import breakdown as parts
from reports.page import figures
from reports.page.columns import (
    PANELS,
    Detailed,
    defined,
    faster,
    longer,
    non_repeating,
    pivot,
    ratio,
    span,
)
from reports.page.figures import Chart, Curve
from reports.page.tables import (
    NONE,
    Cell,
    Page,
    Row,
    Section,
    Table,
    column,
    figure,
    number,
    panels,
    percent,
    tables,
)

SCATTERED = 6  # methods in a panel of a figure with a dot or a line for each
DOTS = 100  # questions of a method in such a figure
BOTH = "Accepted, repeating or not"


def factors(page: Page) -> Section:
    rows = parts.factors(page.records)
    columns = [
        figure("Speedup", "speedup", "{:.2f}×"),
        Detailed(
            "Accepted length",
            "accepted",
            lambda row: number(row["accepted"], "{:.2f}"),
            below=lambda row: span(row, "accepted"),
        ),
        ratio("t_ref / t_step", "cheaper", pattern="{:.3f}"),
        figure("Product", "product", "{:.2f}×"),
        column("Remainder", "remainder", lambda value: number(100 * value, "{:+.1f} %")),
        defined(figure("t_ref, ms", "ref_ms", "{:.2f}"), "t_ref"),
        defined(figure("t_step, ms", "step_ms", "{:.2f}"), "t_step"),
        figure("Pairs", "pairs", "{:,.0f}"),
    ]
    return Section(
        "factors",
        "What makes the speedup",
        "Speedup = accepted length × t_ref / t_step: what a step gives, and what it costs.",
        tables=tables(page, "Speedup by its factors", rows, columns),
        definitions=parts.FACTORS,
        records=2 * int(rows["pairs"].sum()) if len(rows) else 0,
    )


def questions(page: Page) -> Section:
    single = parts.questions(page.records)
    rows = parts.spread(single)
    columns = [
        ratio("Slowest", "slowest", lambda row: f"question {row['slowest_id']}"),
        figure("Median", "median", "{:.2f}×"),
        ratio("Fastest", "fastest", lambda row: f"question {row['fastest_id']}"),
        figure("Slower than the reference", "slower", "{:,.0f}"),
        figure("Correlation", "correlation", "{:.2f}"),
        figure("Questions", "count", "{:,.0f}"),
    ]
    drawn, said = _scattered(single)
    return Section(
        "questions",
        "Question by question",
        "How the speedup spreads over questions, and how far accepted length explains it." + said,
        figures.scatter(panels(drawn), page.style) if len(drawn) else None,
        tables(page, "Speedup of single questions", rows, columns),
        parts.QUESTIONS,
        records=int(page.records["ok"].sum()),
    )


def _scattered(single: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What the figure shows, and what it leaves out in words."""
    known = single.dropna(subset=["speedup", "accepted"]) if len(single) else single
    if known.empty:
        return known, ""
    median = known.groupby("row")["speedup"].median()
    order = known.drop_duplicates("row").assign(median=lambda rows: rows["row"].map(median))
    order = order.sort_values("median", ascending=False, kind="stable")
    best = order.groupby("panel", sort=False).head(SCATTERED)
    shown = best[best["panel"].isin(known["panel"].unique()[:PANELS])]
    drawn = known[known["row"].isin(shown["row"])]
    count = drawn.groupby("row")["question"].transform("size")
    drawn = drawn[drawn.groupby("row").cumcount() % (-(-count // DOTS)) == 0]
    words = (
        f" The figure shows the first {PANELS} settings, in each the {SCATTERED} methods of the "
        f"highest median, and of each at most {DOTS} questions, evenly spaced."
    )
    return drawn, words if len(drawn) < len(known) else ""


def depths(page: Page) -> Section:
    deep, wide = parts.by_depth(page.accepted), parts.by_tokens(page.accepted)
    levels = [(depth, f"≥ {depth}") for depth in _values(deep, "depth")]
    tokens = [(count, f"{count}") for count in _values(wide, "tokens")]
    if tokens and tokens[-1][0] == parts.MOST:
        tokens[-1] = (parts.MOST, f"{parts.MOST} and more")
    caption, lead = "Share of steps that accept as many drafted tokens", "How deep into the draft"
    shown, cut = _deepest(deep)
    return Section(
        "depth",
        "Acceptance by depth",
        f"{lead} a step accepts, and how many tokens a step gives.{cut}",
        _curves(page, shown) if len(shown) else None,
        [
            *pivot(page, caption, deep, "depth", levels, _reached, "Depth"),
            *pivot(
                page, "Steps by tokens emitted", wide, "tokens", tokens, _share, "Tokens per step"
            ),
        ],
        parts.DEPTHS,
        records=int((page.records["verify_steps"] > 0).sum()),
    )


def _deepest(deep: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What the figure shows, and what it leaves out in words."""
    if deep.empty:
        return deep, ""
    order = deep.drop_duplicates("row").sort_values("accepted", ascending=False, kind="stable")
    best = order.groupby("panel", sort=False).head(SCATTERED)
    best = best[best["panel"].isin(deep["panel"].unique()[:PANELS])]
    words = (
        f" The figure shows the first {PANELS} settings, in each the {SCATTERED} methods that "
        "accept most."
    )
    return deep[deep["row"].isin(best["row"])], words if len(best) < len(order) else ""


def _values(rows: pd.DataFrame, by: str) -> list[int]:
    return sorted(rows[by].unique().tolist()) if len(rows) else []


def _reached(row: Row) -> Cell:
    onward = number(100 * row["onward"], "{:.0f} % onward")
    return Cell(percent(row["reached"]), row["reached"], detail="" if onward == NONE else onward)


def _share(row: Row) -> Cell:
    return Cell(percent(row["share"]), row["share"])


def _curves(page: Page, deep: pd.DataFrame) -> Markup:
    """A line for each method."""
    charts = [
        Chart(
            panel.title,
            [
                Curve(str(name), list(line["depth"]), list(line["reached"]), page.style[str(name)])
                for (_, name), line in panel.rows.groupby(["row", "label"], sort=False)
            ],
        )
        for panel in panels(deep)
    ]
    alt = "Share of verify steps that accept at least so many drafted tokens, by method"
    x, y = "drafted tokens", "steps that accept them"
    return figures.curves("depth", alt, charts, x, y, share=True, linear=True)


def positions(page: Page) -> Section:
    rows = parts.by_position(page.records)
    names = _bins(rows, parts.POSITIONS)
    caption = "Accepted length by position in the answer"
    return Section(
        "positions",
        "By position in the answer",
        "Whether acceptance changes as an answer grows.",
        tables=pivot(page, caption, rows, "bin", names, longer, "Position"),
        definitions=parts.POSITION,
        records=int((page.records["verify_steps"] > 0).sum()),
    )


def contexts(page: Page) -> Section:
    rows, prompts = parts.by_context(page.records), parts.by_prompt(page.records)
    names, lengths = _bins(rows, parts.CONTEXTS), _bins(prompts, parts.CONTEXTS)
    captions = ("Speedup by tokens of the prompt", "Accepted length by tokens known")
    return Section(
        "contexts",
        "By context length",
        "Speedup by the length of the prompt, accepted length by all that was known to a step.",
        tables=[
            *pivot(page, captions[0], prompts, "bin", lengths, faster, "Prompt length"),
            *pivot(page, captions[1], rows, "bin", names, longer, "Context"),
        ],
        definitions=parts.CONTEXT,
        records=int(page.records["ok"].sum()),
    )


def _bins(rows: pd.DataFrame, edges: Sequence[int]) -> list[tuple[object, str]]:
    return [(at, parts.name_of(edges, at)) for at in _values(rows, "bin")]


def temperatures(page: Page) -> Section:
    """Nothing to show where one temperature was run."""
    rows = page.speedup
    known = rows[~rows["synthetic"]] if len(rows) else rows
    values = sorted(known["temperature"].unique()) if len(known) else []
    found: list[Table] = []
    if len(values) > 1:
        lengths = page.accepted[["row", "accepted"]]
        known = known.merge(lengths, how="left", on="row", validate="one_to_one")
        names = [(value, f"T = {value:g}") for value in values]
        caption = "Speedup by temperature"
        found = pivot(page, caption, known, "temperature", names, faster, "Temperature")
    return Section(
        "temperatures",
        "By temperature",
        "Speedup of the same method at each temperature.",
        tables=found,
        definitions=parts.TEMPERATURES,
        records=int(page.records["ok"].sum()),
    )


def loops(page: Page) -> Section:
    rows = parts.loops(page.records, page.speedup)
    columns = [
        column("Repetition", "repetition", percent),
        column("Repeating answers", "repeating", percent),
        figure("Good answers", "answers", "{:,.0f}"),
        figure("Speedup", "speedup", "{:.2f}×"),
        defined(non_repeating("Speedup on non-repeating answers"), "Non-repeating"),
        column("Loops' part", "loops", lambda value: number(100 * value, "{:+.1f} %")),
        defined(figure("Accepted, repeating", "accepted_repeating", "{:.2f}"), BOTH),
        defined(figure("Accepted, other", "accepted_other", "{:.2f}"), BOTH),
    ]
    return Section(
        "loops",
        "Answers that repeat themselves",
        "Small models loop, and loops are easy to draft: what is left of a speedup without them.",
        tables=tables(page, "Repetition and speedup without it", rows, columns),
        definitions=parts.LOOPS,
        records=int(page.records["ok"].sum()),
    )
