"""A recorded run, with its question sets, methods and models resolved again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from bench import cli as settings
from bench import environment
from bench.audit.auditor import Auditor
from bench.audit.config import AuditConfig
from bench.audit.results import AuditRow
from bench.errors import UsageError
from bench.questions import chat, history
from bench.questions import sets as question_sets
from bench.questions.history import HistoryEntry, Prompt
from bench.questions.parsing import Questions
from bench.records import tuned
from bench.records.runs import RUN_SETTINGS as RUN_SETTINGS
from bench.records.runs import RunFolder, latest, read
from bench.run import methods
from bench.run.config import RunConfig
from bench.run.engine_targets import EngineTargets
from bench.run.frozen import FrozenPrompts
from bench.run.grid import PACKAGE
from bench.run.prompting import renderer
from bench.targets import registry as targets
from bench.targets.registry import Loaded, Target


class RecordedRun:
    """A run's settings and records.

    Attributes:
        notes: what differs from the run, for audit.json; printed as warnings too.
        missing: how many prompts could not be found again.
    """

    def __init__(self, path: Path, wanted: AuditConfig) -> None:
        self.folder = RunFolder(path)  # never entered: an audit needs no lock and appends nothing
        self.depth = wanted.depth
        found, self.provenance = settings.read_file(path / RUN_SETTINGS, RunConfig)
        config = wanted.run_config(found)
        device, dtype = environment.settled(config.device, config.dtype)
        self.config = replace(config, device=device, dtype=dtype)
        self.notes: list[str] = []
        self.missing = 0
        try:
            self.device_name = environment.device_name(device)
        except UsageError as error:
            raise UsageError(f"{error}, by --device") from None
        self.records = [r for r in latest(read(path)) if r["status"] == "ok"]
        if not self.records:
            raise UsageError(f"{path} holds no good records; run the benchmark first")
        labels = self.provenance.get("methods") or config.methods  # the former have every parameter
        tree = None if config.tree == tuned.TREE else config.tree
        self.methods = methods.resolve(labels, config.checkpoint, tree)
        self.sets = list(self._sets())
        self._note_changes()

    def _sets(self) -> Iterator[Questions]:
        """The question sets that are available; prompts of the others are counted as missing."""
        data_dir = Path(self.config.data_dir) if self.config.data_dir else None
        expected = self.provenance.get("datasets", {})
        for name in self.config.datasets:
            own = data_dir / name if data_dir else None  # run.yaml keeps no folder of a user's file
            try:
                path_or_name = str(own) if own and own.is_file() else name
                found = question_sets.load(path_or_name, data_dir)
                questions = question_sets.spread(found, self.config.limit)
            except UsageError as error:
                self._note(f"question set {name}: {error}; give its folder as --data-dir")
                continue
            if questions.sha256 != expected.get(questions.name, questions.sha256):
                self._note(f"question set {questions.name} has changed since the run")
            yield questions

    def _note_changes(self) -> None:
        for name, what, now in (
            ("package_version", "package version", version(PACKAGE)),
            ("device", "device", self.device_name),
        ):
            others = sorted({record[name] for record in self.records} - {now})
            if others:
                self._note(f"records are of {what} {', '.join(others)}, audited with {now}")

    def _note(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)
        self.notes.append(text)

    def targets(self) -> list[Target]:
        """The models that have records. UsageError where one is not among the run's models."""
        own = self.folder.path / chat.FILE
        template = str(own) if own.is_file() else self.config.chat_template
        resolved = (targets.resolve(name, template) for name in self.config.models)
        known = {target.name: target for target in resolved}
        names = dict.fromkeys(record["model"] for record in self.records)
        for name in names:
            if name not in known:
                raise UsageError(
                    f"the records are of {name}, which is not among {', '.join(known)}; "
                    "name the run's models by --models"
                )
        return [known[name] for name in names]

    def audit(self, target: Target) -> list[AuditRow]:
        """The audit's rows of one model, which is loaded for this call only."""
        loaded, name = self._load(target), target.name
        prompts = self._prompts(loaded)
        asked = {r["prompt_sha256"] for r in self.records if r["model"] == name}
        missing = len(asked - prompts.keys())
        if missing:
            self.missing += missing
            self._note(f"{missing} of {len(asked)} prompts of {name} could not be found again")
        on_engine = EngineTargets(loaded.model, name, self._note).target
        return Auditor(loaded, self.methods, prompts, on_engine, self.depth).rows(self.records)

    def _load(self, target: Target) -> Loaded:
        """UsageError where it is not the model that was recorded."""
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        loaded = targets.load(target, self.config.device, dtype)
        for field, here in (("revision", loaded.revision), ("dtype", self.config.dtype)):
            known = {r[field] for r in self.records if r["model"] == target.name}
            then = ", ".join(sorted(known - {here, None}))
            if then:
                raise UsageError(
                    f"{target.name} has {field} {here} here, its records {then}; "
                    "audit where the run's model is, or name it by --models"
                )
        return loaded

    def _prompts(self, loaded: Loaded) -> dict[str, tuple[int, ...]]:
        """Ids by their sha256, from the question sets and the run's history."""
        turns, model, path = self.config.turns, loaded.target.name, self.folder.path
        plain = renderer(loaded, self.config.max_new_tokens)
        render = FrozenPrompts(path, model, loaded.revision, plain, keep=False)
        text = self.folder.read(history.FILE) or ""
        entries = history.read(text, str(self.folder.path / history.FILE))

        def unknown(prompt: Prompt) -> HistoryEntry:
            return {"status": "error", "error": f"{history.FILE} has no answer to {prompt.sha256}"}

        return {
            prompt.sha256: prompt.ids
            for questions in self.sets
            for prompt in history.prompts(questions, turns, model, render, entries, unknown)
            if not prompt.skip
        }
