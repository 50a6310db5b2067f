"""The prompts of one target: the reference answers earlier turns, before any timed run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.decoding.decoder import Decoder
from bench.decoding.sampling import Sampling
from bench.errors import UsageError, one_line
from bench.progress import Progress
from bench.questions import chat, history
from bench.questions.history import Entries, HistoryEntry, Prompt, TooLongError
from bench.questions.parsing import Questions
from bench.records.runs import RunFolder
from bench.run.config import RunConfig
from bench.run.frozen import FrozenPrompts
from bench.run.recording import text_of
from bench.run.runner import run_turn
from bench.targets.registry import Loaded, Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Renderer:
    """A target's chat template and tokenizer, as a `history.Render` that checks each prompt.

    Attributes:
        template: as `chat.render` takes it.
        vocabulary: ids that the model has embeddings for.
        positions: the model's context.
        max_new_tokens: of the answer.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    vocabulary: int
    positions: int
    max_new_tokens: int

    @classmethod
    def of(
        cls, target: Target, tokenizer: PreTrainedTokenizerBase, config: Any, max_new_tokens: int
    ) -> Renderer:
        """For a model with this transformers config."""
        text = config.get_text_config()
        return cls(
            tokenizer,
            target.chat_template,
            text.vocab_size,
            text.max_position_embeddings,
            max_new_tokens,
        )

    def __call__(self, messages: Sequence[chat.Message]) -> list[int]:
        ids = chat.render(self.tokenizer, messages, self.template)
        if not ids or max(ids) >= self.vocabulary:
            raise UsageError(
                f"the tokenizer gives id {max(ids, default=None)}, the model has embeddings for "
                f"{self.vocabulary}; give the tokenizer that belongs to the model"
            )
        needed = len(ids) + self.max_new_tokens
        if needed > self.positions:
            raise TooLongError(
                f"needs a context of {needed} tokens with its answer, the model has "
                f"{self.positions}"
            )
        return ids


def renderer(loaded: Loaded, max_new_tokens: int) -> Renderer:
    return Renderer.of(loaded.target, loaded.tokenizer, loaded.model.config, max_new_tokens)


def check_room(name: str, sets: Sequence[Sequence[Prompt]]) -> None:
    """UsageError where the target's context has no room for any prompt of the sets."""
    prompts = [prompt for questions in sets for prompt in questions]
    if all(prompt.skip for prompt in prompts):
        raise UsageError(
            f"{name} can answer no question: {prompts[0].skip}; lower --max-new-tokens or ask "
            "shorter questions"
        )


class HistoryWriter:
    """Lists a run's prompts and keeps the answers of earlier turns in the run's history.jsonl.

    Args:
        config: of the run.
        loaded: the target.
        reference: answers what the history lacks.
        folder: holds the history.
        shown: whether progress is shown.
    """

    def __init__(
        self,
        config: RunConfig,
        loaded: Loaded,
        reference: Decoder,
        folder: RunFolder,
        shown: bool = True,
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.reference = reference
        self.name = loaded.target.name
        self._shown = shown
        self._path = folder.path / history.FILE
        self._entries, self._failed = self._read(folder)

    def _read(self, folder: RunFolder) -> tuple[Entries, list[HistoryEntry]]:
        """The answers that are there, and the failures, which are asked for again. A failure in a
        history given by --history counts as an answer."""
        text = folder.read(history.FILE) or ""
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line short
        folder.write_once(history.FILE, whole)
        entries = history.read(whole, str(self._path))
        if self.config.history is not None:
            return entries, []
        good = {key: entry for key, entry in entries.items() if entry["status"] == "ok"}
        return good, [entry for entry in entries.values() if entry["status"] != "ok"]

    def prompts(self, sets: Sequence[Questions], begin: Callable[[], None]) -> list[Prompt]:
        """Every turn of the question sets, in order. UsageError, before any answer, where one
        cannot be rendered. `begin` is called when nothing is left to refuse."""
        plain = renderer(self.loaded, self.config.max_new_tokens)
        check_room(self.name, [history.rehearse(s, self.config.turns, plain) for s in sets])
        turns, entries = self.config.turns, self._entries
        found: list[Prompt] = []
        missing = history.missing(sets, turns, self.name, entries)
        folder, revision = self._path.parent, self.loaded.revision
        render = FrozenPrompts(folder, self.name, revision, plain)
        if not (missing and self.config.history):  # an answer that is not given is refused below
            begin()
        with Progress(f"{self.name}: history", missing, "turn", self._shown) as bar:

            def answer(prompt: Prompt) -> HistoryEntry:
                entry = self._answer(prompt)
                bar.update()
                return entry

            for questions in sets:
                found += history.prompts(questions, turns, self.name, render, entries, answer)
        return found

    def _answer(self, prompt: Prompt) -> HistoryEntry:
        """The reference's greedy answer, appended to the file."""
        if self.config.history is not None:
            raise history.lacks(self.name, prompt)
        entry: HistoryEntry = {
            "model": self.name,
            "dataset": prompt.dataset,
            "dataset_sha256": prompt.dataset_sha256,
            "prompt_id": prompt.prompt_id,
            "turn": prompt.turn,
            "prompt_sha256": prompt.sha256,
            "max_new_tokens": self.config.max_new_tokens,
            "status": "ok",
            "error": None,
            "text": None,
        }
        budget, eos_ids = self.config.max_new_tokens, self.loaded.eos_ids
        try:
            turn = run_turn(self.reference, prompt.ids, Sampling(), budget, eos_ids)
            entry["text"] = text_of(self.loaded, turn.output_ids)
        except Exception as error:
            entry |= {"status": "error", "error": one_line(error)}
        if entry not in self._failed:  # it failed in the same way before: written already
            self._append(entry)
        return entry

    def _append(self, entry: HistoryEntry) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
