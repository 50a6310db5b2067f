"""Whether a run has the records that its settings plan: `incomplete: 13 of 16 questions of mini`.

run.yaml says how many questions and turns of each set are asked (`provenance.prompts`, since schema
1.2). Of older runs it is derived from `limit` and from the turns that any of the records are of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.records.runs import STOCK, STOCK_ENGINE

FALLBACK = "eager"  # records of an engine that cannot run are of this one


class Place(NamedTuple):
    """A record's place in the grid; the turn is None for a method that cannot run."""

    model: str
    engine: str
    dataset: str
    temperature: float
    label: str
    prompt_id: object
    turn: int | None
    repeat: int | None


@dataclass(frozen=True)
class _Plan:
    """What the settings plan for each model and engine: repeats, with the phase clock included, and
    for each set its questions and turns."""

    temperatures: int
    repeats: int
    clocked: int
    sets: Mapping[str, tuple[int, int]]
    models: Sequence[str]
    engines: Sequence[str]
    methods: int


Turn = tuple[object, int | None]


def incomplete(settings: Mapping[str, Any], places: Iterable[Place]) -> list[str]:
    """One line for each model, engine and set with fewer records than planned, equal ones joined;
    nothing where the settings do not tell."""
    groups: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for place in places:
        groups[place.model, place.engine].append(place)
    plan = _plan(settings, [place for group in groups.values() for place in group])
    if plan is None:
        return []
    for model in plan.models:
        seen = {engine for name, engine in groups if name == model} - {STOCK_ENGINE}
        for engine in plan.engines if len(seen) < len(plan.engines) else ():
            if engine not in seen and (FALLBACK not in seen):
                groups[model, engine] = []
    lines: dict[str, list[str]] = defaultdict(list)
    for model, engine in sorted(groups, key=lambda name: name[1] == STOCK_ENGINE):
        for dataset in plan.sets:
            own = [place for place in groups[model, engine] if place.dataset == dataset]
            counts = _counts(plan, dataset, own, engine == STOCK_ENGINE)
            where = lines[f"{counts} of {dataset}"] if counts else None
            if where is not None and (engine != STOCK_ENGINE or not where):
                where.append(f"{model} on {engine}")
    return [f"incomplete: {counts} ({', '.join(where)})" for counts, where in lines.items()]


def _plan(settings: Mapping[str, Any], places: Sequence[Place]) -> _Plan | None:
    provenance = settings.get("provenance") or {}
    try:
        known = provenance.get("prompts")
        sets = {
            str(name): (int(size["questions"]), int(size["turns"]))
            for name, size in (known or {}).items()
        }
        return _Plan(
            temperatures=len(settings["temperature"]),
            repeats=int(settings["repeats"]),
            clocked=int(known is not None),
            sets=sets or _derived(settings, places),
            models=list(provenance.get("models", ())),
            engines=list(settings["engine"]) if known else [],
            methods=sum(name != STOCK for name in provenance.get("methods", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # older than these settings, or damaged: nothing is known


def _derived(settings: Mapping[str, Any], places: Sequence[Place]) -> dict[str, tuple[int, int]]:
    """Questions and turns of each set in an older run: those that any record is of, or `limit`."""
    found: dict[str, dict[object, set[int | None]]] = defaultdict(lambda: defaultdict(set))
    for place in places:
        if place.turn is not None:
            found[place.dataset][place.prompt_id].add(place.turn)
    sizes = {}
    for dataset, turns in found.items():
        counts = {len(own) for own in turns.values()}
        questions, total = len(turns), sum(len(own) for own in turns.values())
        if len(counts) == 1:
            questions = max(questions, settings.get("limit") or 0)
            total = questions * counts.pop()
        sizes[dataset] = (questions, total)
    return sizes


def _counts(plan: _Plan, dataset: str, places: Sequence[Place], stock: bool) -> str | None:
    """`13 of 16 questions`, or turns where questions differ in theirs; None where all are there."""
    questions, turns = plan.sets[dataset]
    done = _done(plan, places, stock)
    if len(done) >= turns:
        return None
    each, rest = divmod(turns, max(questions, 1))
    whole: dict[object, int] = defaultdict(int)
    for prompt_id, _ in done:
        whole[prompt_id] += 1
    if rest:
        return f"{len(done)} of {turns} turns"
    return f"{sum(count >= each for count in whole.values())} of {questions} questions"


def _done(plan: _Plan, places: Sequence[Place], stock: bool) -> set[Turn]:
    """Turns with a record of every method at every temperature and repeat."""
    rows: dict[tuple[str, float], set[tuple[Turn, int | None]]] = defaultdict(set)
    failed = set()  # methods that cannot run
    for place in places:
        row = (place.label, place.temperature)
        if place.turn is None:
            failed.add(row)
        else:
            rows[row].add(((place.prompt_id, place.turn), place.repeat))
    needed = plan.repeats + (0 if stock else plan.clocked)
    count: dict[Turn, int] = defaultdict(int)
    for records in rows.values():
        repeats: dict[Turn, int] = defaultdict(int)
        for turn, _ in records:
            repeats[turn] += 1
        for turn, found in repeats.items():
            count[turn] += found >= needed
    methods = max(1 if stock else plan.methods, len({label for label, _ in {*rows, *failed}}))
    expected = methods * plan.temperatures - len(failed - rows.keys())
    return {turn for turn, found in count.items() if found >= expected}
