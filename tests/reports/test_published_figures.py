"""Published figures: their file's form, and rows of ours beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from bench.questions.registry import REGISTRY
from bench.run import methods
from bench.targets.registry import TARGETS
from reports.measures import published
from reports.sections import published as published_section
from tests.reports.fabricate import Record, duel
from tests.reports.test_sections import page_of

EXAMPLE: dict[str, Any] = {
    "sources": {"paper": {"title": "arXiv 1, table 2", "card": "A100"}},
    "figures": [
        {
            "method": "fast",
            "source": "paper",
            "model": "Tiny 1B",
            "models": ["tiny"],
            "dataset": "Mini",
            "datasets": ["mini"],
            "temperature": "greedy",
            "temperatures": [0],
            "speedup": "3.00×",
            "accepted": 4.5,
        }
    ],
}


def test_what_ships_names_what_is_registered() -> None:
    figures = published.read()
    known = {*methods.discover(), "dflash", "eagle3"}
    for figure in figures:
        assert figure.method in known
        assert set(figure.models) <= TARGETS.keys()
        assert set(figure.datasets) <= REGISTRY.keys()
        assert figure.title
    stated = {figure.method for figure in figures}
    assert {"eagle3", "dflash", "hydra", "medusa", "lookahead", "prompt_lookup"} <= stated
    assert {"token_recycling", "suffix", "draft_model", "chimera"} <= stated


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    content = copy.deepcopy(EXAMPLE)
    change(content)
    return yaml.safe_dump(content, allow_unicode=True)


def figure_of(content: dict[str, Any]) -> dict[str, Any]:
    (figure,) = content["figures"]
    found: dict[str, Any] = figure
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: figure_of(c).pop("model"), "figure 1: model missing"),
        (lambda c: figure_of(c).update(sped=1), "figure 1: unknown sped"),
        (lambda c: figure_of(c).update(title="mine"), "figure 1: unknown title"),
        (lambda c: figure_of(c).pop("source"), "figure 1: source None is not among paper"),
        (lambda c: figure_of(c).update(accepted="4.5"), "figure 1: accepted is '4.5'"),
        (lambda c: figure_of(c).update(speedup=3.0), "figure 1: speedup is 3.0"),
        (lambda c: figure_of(c).update(models="tiny"), "figure 1: models is 'tiny'"),
        (
            lambda c: [figure_of(c).pop(name) for name in ("speedup", "accepted")],
            "figure 1: neither speedup nor accepted",
        ),
        (lambda c: c["sources"]["paper"].pop("title"), "figure 1: title missing"),
        (lambda c: c["sources"]["paper"].update(url="x"), "figure 1: unknown url"),
        (lambda c: c["sources"].update(other={"title": "x"}), "no figure is of source other"),
        (lambda c: c["figures"].append(dict(figure_of(c))), "a figure comes twice"),
        (lambda c: c.update(more=1), "needs sources and figures"),
    ],
)
def test_the_form_is_checked(change: Callable[[dict[str, Any]], object], said: str) -> None:
    assert len(published.parse(changed(lambda _: None))) == 1
    with pytest.raises(ValueError, match=said) as caught:
        published.parse(changed(change))
    assert "\n" not in str(caught.value)


def shown(monkeypatch: pytest.MonkeyPatch, lines: list[Record], **changes: Any) -> list[list[str]]:
    """The section's rows for the example, from its sixth column on."""
    (figure,) = published.parse(changed(lambda _: None))
    monkeypatch.setattr(published, "read", lambda: (replace(figure, **changes),))
    return [
        [cell.text for cell in row][5:]
        for table in published_section.section(page_of(lines)).tables
        for row in table.rows
    ]


STATED = ["4.50", "A100", "–", "arXiv 1, table 2"]
NOT_RUN = [*STATED, "not run", "–", "–", "–", "–"]


def test_ours_stand_beside_it_where_model_set_and_temperature_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (row,) = shown(monkeypatch, duel())
    assert row[:4] == STATED
    assert row[4].startswith("fast")
    assert row[5:7] == ["tiny, mini, float32, eager, T = 0", "2.00×"]
    assert float(row[8]) > 1
    for changes in ({"models": ("small",)}, {"datasets": ()}, {"temperatures": (1.0,)}):
        assert shown(monkeypatch, duel(), **changes) == [NOT_RUN]
    assert len(shown(monkeypatch, [*duel(), *duel(temperature=0.7)])) == 1
    assert len(shown(monkeypatch, [*duel(), *duel(temperature=0.7)], temperatures=())) == 2


def test_methods_that_the_page_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, duel(), method="hydra") == []
