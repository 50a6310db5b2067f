"""Templates with slots, filled at random from lists of words.

    {topic}      an item of the list `topic`; the same item wherever it stands in a conversation
    {topic.2}    another item of that list
    {^topic}     the same with a capital
    {how?}       an item with a space before it, or, half of the time, nothing
    {3-40}       a number in that range, drawn anew each time

Items may hold slots in turn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

SLOT = re.compile(
    r"\{(?P<least>\d+)-(?P<most>\d+)\}"
    r"|\{(?P<capital>\^?)(?P<name>[a-z_]+)(?P<other>(\.\d+)*)(?P<optional>\??)\}"
)
ARTICLE = re.compile(r"\b[Aa] $")
VOWEL = re.compile(r"[aeioAEIO]|u(?!ni|se|sa)")
TRIES = 8  # draws of an item that differs from those of the same list


class Scope:
    """The items that one conversation has drawn so far."""

    def __init__(self, lists: Mapping[str, Sequence[str]], draw: random.Random) -> None:
        self._lists = lists
        self._draw = draw
        self._bound: dict[tuple[str, str], str] = {}

    def fill(self, text: str, outer: str = "") -> str:
        """`text` with every slot filled. KeyError names a list that does not exist. `outer` is the
        number of the item that `text` is, as in `.2`: its own slots are drawn apart."""

        def value(slot: re.Match[str]) -> str:
            if slot["least"]:
                return str(self._draw.randint(int(slot["least"]), int(slot["most"])))
            if slot["optional"] and self._draw.random() < 0.5:
                return ""
            word = self._word(slot["name"], f"{slot['other']}{outer and '/' + outer}")
            word = word[:1].upper() + word[1:] if slot["capital"] else word
            before = slot.string[: slot.start()]
            if ARTICLE.search(before) and VOWEL.match(word):
                word = f"\N{BACKSPACE}n {word}"
            return f" {word}" if slot["optional"] else word

        if "{" not in text:
            return text
        return SLOT.sub(value, text).replace(" \N{BACKSPACE}n ", "n ")

    def _word(self, name: str, number: str) -> str:
        """The item of the list `name` with that number, drawn at its first use."""
        if (name, number) not in self._bound:
            taken = {word for (list_, _), word in self._bound.items() if list_ == name}
            for _ in range(TRIES):
                word = self.fill(self._draw.choice(self._lists[name]), number)
                if word not in taken:
                    break
            self._bound[name, number] = word
        return self._bound[name, number]
