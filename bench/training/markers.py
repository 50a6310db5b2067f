"""Control tokens of a tokenizer, such as `<|im_start|>`: no user's turn may hold one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

SHAPE = re.compile(r"[<\[].+[>\]]")  # of a control token that is not declared as a special one
ANY = r"<\|\w+\|>"  # of any model: small ones have read them on the web
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "\n")


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Special tokens, and added ones that look like them."""
    added = {
        i
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or SHAPE.fullmatch(token.content)
    }
    return frozenset(added | set(tokenizer.all_special_ids))


def closing_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a sentence or a line."""
    control = control_ids(tokenizer)
    ids = [i for i in range(len(tokenizer)) if i not in control]
    texts = tokenizer.batch_decode([[i] for i in ids])
    return tuple(
        i for i, text in zip(ids, texts, strict=True) if text.rstrip(" ").endswith(SENTENCE_ENDS)
    )


@dataclass(frozen=True)
class MarkerGuard:
    """Finds conversations in which a user's turn spells a control token in ordinary tokens."""

    tokenizer: Any

    def marked(self, ids: Tensor, roles: Tensor) -> Sequence[bool]:
        """Of each row, ids and roles [n, T]: whether text without a role holds a marker."""
        control = control_ids(self.tokenizer)
        spelled = {self.tokenizer.convert_ids_to_tokens(i) for i in control}
        pattern = re.compile("|".join([ANY, *map(re.escape, sorted(spelled))]))
        words = [
            [i for i, role in zip(row, marks, strict=True) if not role and i not in control]
            for row, marks in zip(ids.tolist(), roles.tolist(), strict=True)
        ]
        return [bool(pattern.search(text)) for text in self.tokenizer.batch_decode(words)]
