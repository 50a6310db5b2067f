"""Figures that papers and leaderboards state for the methods of this suite.

They stand in `published.yaml`, each with its source; an average stays an average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from reports.measures import Definitions

FILE = "published.yaml"
DEFINITIONS: Definitions = (
    (
        "Published",
        "as the source states it, measured by its authors on their machine, with their weights and "
        "their baseline. An average is not split by model, question set or temperature.",
    ),
    (
        "Measured here",
        "rows of the speedup table of the same method, models, question sets and temperature, on "
        "the machine and with the weights, parameters and number of questions of these records; "
        "“not run” where there are none.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """One published figure.

    Attributes:
        method: name of the method here.
        model, dataset, temperature: what it was measured on, in the source's words.
        speedup: over plain autoregressive decoding, as the source prints it.
        accepted: accepted length, the bonus token included.
        models, datasets: names here of what the figure covers; rows of these are shown with it.
        temperatures: of those rows; any if left out.
        title: paper or page, and the place in it.
        card, engine: where it was measured.
    """

    method: str
    model: str
    dataset: str
    temperature: str
    title: str
    speedup: str | None = None
    accepted: float | None = None
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    card: str | None = None
    engine: str | None = None

    def measured(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of `speedup` with this figure's method on one of its models and sets."""
        if rows.empty:
            return rows
        alike = (rows["method"] == self.method) & rows["speedup"].notna()
        alike &= rows["model"].isin(self.models) & rows["dataset"].isin(self.datasets)
        if self.temperatures:
            alike &= rows["temperature"].isin(self.temperatures)
        return rows[alike]


OF_SOURCES = ("title", "card", "engine")  # fields that a figure has from its source
KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("models", "datasets", "temperatures"), (list,)),
    "accepted": (int, float),
}  # all others are text


def read() -> tuple[PublishedFigure, ...]:
    """The figures that ship."""
    return parse((resources.files(__package__) / FILE).read_text(encoding="utf-8"))


def parse(text: str) -> tuple[PublishedFigure, ...]:
    """The figures of a YAML text: `sources` by name, and a list of `figures` that name them.
    ValueError, one line, for a field that is unknown, missing or of another kind, a source that is
    not there or not used, and a figure that states nothing or comes twice."""
    content = yaml.safe_load(text)
    if not isinstance(content, dict) or content.keys() != {"sources", "figures"}:
        raise ValueError(f"{FILE} needs sources and figures, and nothing else")
    sources, found = content["sources"], []
    for number, entry in enumerate(content["figures"], start=1):
        try:
            found.append(_figure(dict(entry), sources))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{FILE}, figure {number}: {error}") from error
    if idle := sources.keys() - {entry["source"] for entry in content["figures"]}:
        raise ValueError(f"{FILE}: no figure is of source {', '.join(sorted(idle))}")
    if len(set(found)) < len(found):
        raise ValueError(f"{FILE}: a figure comes twice")
    return tuple(found)


def _figure(entry: dict[str, Any], sources: Mapping[str, Any]) -> PublishedFigure:
    source = entry.pop("source", None)
    if source not in sources:
        raise ValueError(f"source {source!r} is not among {', '.join(sources)}")
    facts = sources[source]
    own = {field.name for field in fields(PublishedFigure)} - set(OF_SOURCES)
    for given, known in ((entry, own), (facts, set(OF_SOURCES))):
        if unknown := given.keys() - known:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    values = entry | facts
    needed = {field.name for field in fields(PublishedFigure) if field.default is MISSING}
    if missing := needed - values.keys():
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    for name, value in values.items():
        if not isinstance(value, KINDS.get(name, (str,))):
            raise ValueError(f"{name} is {value!r}")
    if not {"speedup", "accepted"} & entry.keys():
        raise ValueError("neither speedup nor accepted")
    listed = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return PublishedFigure(**values | listed)
