"""Chat templates: from a conversation to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from bench.errors import UsageError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE: Final = "chat_template.jinja"  # in a run folder: the template that was given as a file
TEMPLATES: Final = ("vicuna", "llama-2-chat")
ADVICE: Final = f"choose one by --chat-template: {', '.join(TEMPLATES)} or a file"


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str | None
) -> list[int]:
    """The prompt's token ids, generation prompt included; `messages` end with the user's turn.

    `template` is None for the tokenizer's own, one of `TEMPLATES`, or a file with Jinja text.
    "vicuna" is v1.1 and starts with its fixed system sentence unless the conversation has a system
    message. "llama-2-chat" has no system prompt unless the conversation has one, as Meta now
    advises. Special tokens come from the template only, so that there is no second BOS. A template
    that wants contents as lists of parts gets them.

    Raises UsageError, one line, for a template that is unknown, fails or drops the question, and
    for a tokenizer that lacks what it needs.
    """
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("a prompt ends with a user message")
    text, problem = source(template), None
    _check_tokens(tokenizer, template)
    for conversation in (list(messages), _in_parts(messages)):
        apply = partial(
            tokenizer.apply_chat_template,
            conversation,
            chat_template=text,
            add_generation_prompt=True,
        )
        try:
            rendered = apply(tokenize=False)
            if _contains(rendered, messages[-1]["content"]):
                # quiet: whoever asks compares the length with the model's context
                ids: list[int] = apply(
                    tokenize=True, return_dict=False, tokenizer_kwargs={"verbose": False}
                )
                return ids
            problem = problem or "leaves the question out of the prompt, or changes it"
        except Exception as error:  # whatever a template's own code raises
            problem = problem or f"fails ({one_line(error)})"
    raise UsageError(f"the chat template {problem}; {ADVICE}")


def source(template: str | None) -> str | None:
    """The template's Jinja text; None for the tokenizer's own. UsageError where it cannot be
    read."""
    if template is None:
        return None
    if template in TEMPLATES:
        return (files("bench.questions") / f"{template}.jinja").read_text(encoding="utf-8")
    path = Path(template).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8" if isinstance(error, ValueError) else error.strerror
        raise UsageError(
            f"unknown chat template {template!r} (as a file: {why}); {ADVICE}"
        ) from error


def _check_tokens(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """UsageError for a tokenizer without what the template needs."""
    if template is None and tokenizer.chat_template is None:
        raise UsageError(f"this tokenizer has no chat template; {ADVICE}")
    if template in TEMPLATES and None in (tokenizer.bos_token, tokenizer.eos_token):
        raise UsageError(
            f"the chat template {template!r} needs a tokenizer with a BOS and an EOS token;"
            " use the tokenizer's own template, or give a file"
        )


def _in_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As multimodal templates want them."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _contains(rendered: str, question: str) -> bool:
    """Whatever the template does to white space."""
    return " ".join(question.split()) in " ".join(rendered.split())
