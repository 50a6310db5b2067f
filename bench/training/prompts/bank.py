"""The bank of templates and words: YAML files in `bank/`, one a category, and lists by subject."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from bench.errors import UsageError
from bench.training.prompts.grammar import SLOT, Scope

FOLLOWED = 0.4  # share of conversations with a second turn
GIVEN, COMPOSED = 7, 3  # of ten texts, where passages are given
EMPTY_DRAWS = 2000  # draws in a row without a new first turn, after which a bank is exhausted


@dataclass(frozen=True)
class Category:
    """Templates of first turns, and of the turns that may follow any of them."""

    name: str
    first: Sequence[str]
    next: Sequence[str]


@dataclass(frozen=True)
class Bank:
    """Templates by category, and the lists that their slots name."""

    categories: Sequence[Category]
    lists: dict[str, Sequence[str]]

    @classmethod
    def read(cls, passages: Sequence[str] = ()) -> Bank:
        """The packaged bank; `passages` are texts that tasks are also about."""
        categories = [Category(name, **content) for name, content in _files("templates")]
        lists: dict[str, Sequence[str]] = {}
        for _, content in _files("words"):
            lists |= content
        usable = [text for text in passages if not SLOT.search(text)]
        if usable:
            lists |= {"given": usable, "composed": lists["passage"]}
            lists["passage"] = ["{given}"] * GIVEN + ["{composed}"] * COMPOSED
        return cls(categories, lists)

    def turns(self, category: Category, draw: random.Random) -> list[str]:
        """One or two users' turns."""
        scope = Scope(self.lists, draw)
        found = [scope.fill(draw.choice(category.first))]
        if draw.random() < FOLLOWED:
            found.append(scope.fill(draw.choice(category.next)))
        return found

    def conversations(self, count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
        """(category, turns) of `count` conversations with distinct first turns, evenly over the
        categories. UsageError where the bank holds fewer."""
        draw = random.Random(seed)
        seen: set[str] = set()
        while len(seen) < count:
            for category in draw.sample(self.categories, len(self.categories)):
                for _ in range(EMPTY_DRAWS):
                    turns = self.turns(category, draw)
                    if turns[0] not in seen:
                        break
                else:
                    raise UsageError(f"--count {count} is more than the templates give; give less")
                seen.add(turns[0])
                yield category.name, turns
                if len(seen) == count:
                    break


def _files(folder: str) -> Iterator[tuple[str, Any]]:
    """(name, content) of the YAML files of a folder, by name."""
    place = resources.files("bench.training.prompts") / "bank" / folder
    for path in sorted(place.iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            yield path.name.removesuffix(".yaml"), yaml.safe_load(path.read_text(encoding="utf-8"))
