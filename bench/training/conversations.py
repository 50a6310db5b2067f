"""The fixed parts of a chat template around the users' turns and the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import UsageError
from bench.questions import chat
from bench.training import markers

_USER, _ANSWER = "\N{SNOWMAN}user\N{SNOWMAN}", "\N{SNOWMAN}answer\N{SNOWMAN}"


@dataclass(frozen=True)
class Conversation:
    """Token ids of a template: `opening` user `turn` answer `next_turn` user `turn` answer ...

    Attributes:
        opening: before the first user's turn.
        turn: from the end of a user's turn to the start of the answer; its first token ends the
            user's slot.
        next_turn: from the end of an answer to the next user's turn; its first token ends the
            answer.
        control: tokens that no user's turn may hold, but the one that ends it.
        closing: tokens that end a sentence or a line.
    """

    opening: tuple[int, ...]
    turn: tuple[int, ...]
    next_turn: tuple[int, ...]
    control: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any, template: str | None) -> Conversation:
        """Derived from a rendered template. UsageError where a slot does not end in one token."""
        messages: list[chat.Message] = [
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _USER},
        ]
        ids = chat.render(tokenizer, messages, template)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        parts = text.replace(_ANSWER, _USER).split(_USER)
        if len(parts) != 4:
            raise UsageError(
                "the chat template changes the text of its messages; choose another --model"
            )
        opening, turn, next_turn, last = (_ids(tokenizer, part) for part in parts)
        if turn != last or not turn or not next_turn:
            raise UsageError("the chat template differs from turn to turn; choose another --model")
        control = markers.control_ids(tokenizer)
        if turn[0] not in control or next_turn[0] not in control:
            raise UsageError(
                "the chat template ends a slot without a token of its own; choose another --model"
            )
        own = tuple(sorted(control - {turn[0]}))
        return cls(opening, turn, next_turn, own, markers.closing_ids(tokenizer))


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    encoded: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(encoded)
