"""Where the page defines its terms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reports.page.model import Head, Section


def slug(text: str) -> str:
    """A term as part of an anchor: 95-interval."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "term"


def anchor(section: Section, term: str) -> str:
    return f"def-{section.id}-{slug(term)}"


@dataclass(frozen=True)
class Glossary:
    """Where each term is defined: in a head's own section first, then in the page's first that
    has it. A term such as "Draft, accept, other" defines each of its parts too.
    """

    sections: Sequence[Section]

    def of(self, section: Section, head: Head) -> str | None:
        """The anchor of a head's definition; None where nothing defines it."""
        wanted = (head.term or head.text).lower()
        return next((found[wanted] for found in self._terms(section) if wanted in found), None)

    def _terms(self, first: Section) -> list[dict[str, str]]:
        ordered = [first, *(other for other in self.sections if other is not first)]
        return [_anchors(section) for section in ordered if _defines(section)]


def _defines(section: Section) -> bool:
    """Definitions are printed where there is something to define."""
    return bool(section.definitions and (section.tables or section.body))


def _anchors(section: Section) -> dict[str, str]:
    whole: dict[str, str] = {}
    parts: dict[str, str] = {}
    for term, _ in section.definitions:
        place = anchor(section, term)
        whole.setdefault(term.lower(), place)
        for part in re.split(r", | and ", term.lower()):
            parts.setdefault(part, place)
    return parts | whole
