"""The prompts of one target: the reference answers earlier turns, before any timed run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial

from tqdm import tqdm

from bench.decoding.decoder import Decoder
from bench.decoding.sampling import Sampling
from bench.errors import UsageError, one_line
from bench.questions import chat, history
from bench.questions.history import Entries, HistoryEntry, Prompt, Render
from bench.questions.parsing import Questions
from bench.records.runs import RunFolder
from bench.run.config import RunConfig
from bench.run.frozen import FrozenPrompts
from bench.run.progress import hidden
from bench.run.recording import text_of
from bench.run.runner import run_turn
from bench.targets.registry import Loaded


def renderer(loaded: Loaded) -> Render:
    """The target's chat template, as `history.prompts` takes it."""
    return partial(chat.render, loaded.tokenizer, template=loaded.target.chat_template)


class HistoryWriter:
    """Lists a run's prompts and keeps the answers of earlier turns in the run's history.jsonl.

    Args:
        config: of the run.
        loaded: the target.
        reference: answers what the history lacks.
        folder: holds the history.
    """

    def __init__(
        self, config: RunConfig, loaded: Loaded, reference: Decoder, folder: RunFolder
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.reference = reference
        self.name = loaded.target.name
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

    def prompts(self, sets: Sequence[Questions]) -> list[Prompt]:
        """Every turn of the question sets, in order."""
        turns, entries, found = self.config.turns, self._entries, []
        missing = history.missing(sets, turns, self.name, entries)
        with tqdm(total=missing, desc="history", unit="turn", disable=hidden(missing)) as bar:

            def answer(prompt: Prompt) -> HistoryEntry:
                entry = self._answer(prompt)
                bar.update()
                return entry

            folder, revision = self._path.parent, self.loaded.revision
            render = FrozenPrompts(folder, self.name, revision, renderer(self.loaded))
            for questions in sets:
                for prompt in history.prompts(questions, turns, self.name, render, entries, answer):
                    self._check_context(prompt)
                    found.append(prompt)
        return found

    def _check_context(self, prompt: Prompt) -> None:
        limit = self.reference.target.max_positions
        needed = len(prompt.ids) + self.config.max_new_tokens
        if needed > limit:
            raise UsageError(
                f"{prompt.dataset} question {prompt.prompt_id} turn {prompt.turn} needs a context "
                f"of {needed} tokens, {self.name} has {limit}; lower --max-new-tokens or --turns"
            )

    def _answer(self, prompt: Prompt) -> HistoryEntry:
        """The reference's greedy answer, appended to the file."""
        if self.config.history is not None:
            raise UsageError(
                f"--history has no answer of {self.name} to {prompt.dataset} question "
                f"{prompt.prompt_id} turn {prompt.turn}; use that run's --turns and --limit"
            )
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
