"""Texts for tasks about a text: paragraphs of answers that the target wrote earlier."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from bench.errors import UsageError
from bench.training.data import CARD

WORDS = range(60, 201)  # of a paragraph
PROSE = re.compile(r"[\"'A-Z].*[.!?][\"']?", re.DOTALL)
MARKUP = re.compile(r"```|\*\*|^\s*(#|[-*|]|\d+\.)\s", re.MULTILINE)


def read(folder: Path, tokenizer: Any, most: int) -> list[str]:
    """At most `most` distinct paragraphs of prose from a folder that `bench.training.distill`
    wrote; `tokenizer` is its target's. UsageError where there is no such folder."""
    found: dict[str, None] = {}
    for answer in _answers(folder, tokenizer):
        for paragraph in paragraphs(answer):
            found[paragraph] = None
            if len(found) == most:
                return list(found)
    return list(found)


def paragraphs(answer: str) -> Iterator[str]:
    """Paragraphs of prose with a length in WORDS; shorter neighbours are joined."""
    text: list[str] = []
    for part in (part.strip() for part in answer.split("\n\n")):
        prose = PROSE.fullmatch(part) and not MARKUP.search(part)
        text = [*text, part] if prose else []
        count = sum(len(one.split()) for one in text)
        if count in WORDS:
            yield "\n\n".join(text)
        if count >= WORDS.start:
            text = []


def _answers(folder: Path, tokenizer: Any) -> Iterator[str]:
    """Every answer of a folder as text."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"--passages {folder} holds no data card; give a folder that bench.training.distill "
            "wrote"
        ) from None
    for shard in card["shards"]:
        tensors = load_file(folder / shard["file"])
        for ids, roles in zip(tensors["ids"].tolist(), tensors["roles"].tolist(), strict=True):
            for role, run in groupby(zip(ids, roles, strict=True), key=lambda pair: pair[1]):
                if role:
                    yield tokenizer.decode([token for token, _ in run], skip_special_tokens=True)
