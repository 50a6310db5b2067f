"""Chat templates: from a conversation to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Literal, TypedDict

from bench.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES: Final = ("vicuna", "llama-2-chat")


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str | None
) -> list[int]:
    """The prompt's token ids, generation prompt included; `messages` end with the user's turn.

    `template` is None for the tokenizer's own, or one of `TEMPLATES`. "vicuna" is v1.1 and starts
    with its fixed system sentence unless the conversation has a system message. "llama-2-chat" has
    no system prompt unless the conversation has one, as Meta now advises. Special tokens come from
    the template only, so that there is no second BOS.

    Raises UsageError for an unknown template and for a tokenizer that lacks what it needs.
    """
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("a prompt ends with a user message")
    ids: list[int] = tokenizer.apply_chat_template(
        list(messages),
        chat_template=_source(tokenizer, template),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    return ids


def _source(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str | None:
    """The registered template's Jinja text; None for the tokenizer's own."""
    choices = " or ".join(TEMPLATES)
    if template is None:
        if tokenizer.chat_template is None:
            raise UsageError(f"this tokenizer has no chat template; choose {choices}")
        return None
    if template not in TEMPLATES:
        raise UsageError(f"unknown chat template {template!r}; choose {choices}")
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise UsageError(
            f"the chat template {template!r} needs a tokenizer with a BOS and an EOS token;"
            " use the tokenizer's own template"
        )
    return (files("bench.questions") / f"{template}.jinja").read_text(encoding="utf-8")
