"""Prompts rendered once for a run: a chat template that prints the date gives the same prompt when
the run is continued.

`prompts.jsonl` in the run folder has one line for each rendered conversation: the model and its
revision, the sha256 of the messages, the prompt's token ids and their sha256, as records have it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.files import canonical_sha256, write_text
from bench.questions.chat import Message
from bench.questions.history import Render

FILE = "prompts.jsonl"


@dataclass(frozen=True)
class _FrozenPrompt:
    """One line of the file."""

    model: str
    revision: str | None
    messages_sha256: str
    prompt_sha256: str
    ids: list[int]


class FrozenPrompts:
    """Renders conversations with one model (a `Render`), each as it was rendered first.

    Args:
        folder: of the run.
        model: the target's name.
        revision: the target's; UsageError where the folder's prompts are of another one.
        render: the target's tokenizer and chat template.
        keep: append what is rendered to the file.
    """

    def __init__(
        self, folder: Path, model: str, revision: str | None, render: Render, keep: bool = True
    ) -> None:
        self._path = folder / FILE
        self._model, self._revision = model, revision
        self._render = render
        self._keep = keep
        self._known = {p.messages_sha256: p.ids for p in self._read() if self._mine(p)}

    def __call__(self, messages: Sequence[Message]) -> list[int]:
        key = canonical_sha256(list(messages))
        if key not in self._known:
            self._known[key] = list(self._render(messages))
            if self._keep:
                self._append(key, self._known[key])
        return self._known[key]

    def _read(self) -> list[_FrozenPrompt]:
        """The file's prompts; a last line that a kill cut short is removed."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            why = "it is not UTF-8" if isinstance(error, ValueError) else error.strerror
            raise UsageError(f"cannot read {self._path} ({why}); restore the file") from None
        whole = text[: text.rfind("\n") + 1]
        if self._keep and whole != text:
            write_text(self._path, whole)
        found = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                prompt = _FrozenPrompt(**json.loads(line))
                if canonical_sha256(prompt.ids) != prompt.prompt_sha256:
                    raise ValueError
            except (ValueError, TypeError, RecursionError):
                raise UsageError(
                    f"{self._path} line {number} is not a prompt of a run; restore the file"
                ) from None
            found.append(prompt)
        return found

    def _mine(self, prompt: _FrozenPrompt) -> bool:
        """Whether it is of this model. UsageError where it is of another revision of it."""
        if prompt.model != self._model:
            return False
        if prompt.revision == self._revision:
            return True
        same = str(prompt.revision).partition("+")[0] == str(self._revision).partition("+")[0]
        what = "configuration, tokenizer or chat template" if same else "revision"
        raise UsageError(
            f"{self._path.parent} holds a run of other settings: {what} of {self._model} "
            f"({prompt.revision}, now {self._revision}); choose another --out"
        )

    def _append(self, key: str, ids: list[int]) -> None:
        prompt = _FrozenPrompt(self._model, self._revision, key, canonical_sha256(ids), ids)
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(asdict(prompt), separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
