"""One target model of a run: its prompts, its decoders, its slots, its records."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from tqdm import tqdm

from bench.audit.auditor import Auditor
from bench.decoding.decoder import Decoder, TargetInfo
from bench.decoding.engines import trial as engines
from bench.decoding.sampling import Sampling
from bench.decoding.target import TargetModel
from bench.errors import UsageError
from bench.questions import history
from bench.questions.history import Prompt
from bench.questions.parsing import Questions
from bench.records.runs import (
    REFERENCE,
    SCHEMA,
    STOCK_ENGINE,
    Record,
    RunFolder,
    blank_figures,
    latest,
    read,
    violations,
)
from bench.run.config import RunConfig
from bench.run.grid import PACKAGE, Cell, Slot, generator_seed, slots
from bench.run.methods import STOCK, Method
from bench.run.offsets import offsets
from bench.run.runner import Turn, run_stock, run_turn
from bench.targets.registry import Loaded

WARM_UP_TOKENS = 24  # enough steps to run, capture and replay


@dataclass
class Row:
    """A method on one engine, ready to run.

    Attributes:
        decoder: None for the stock row and for one that cannot run.
        failure: (status, reason) where it cannot run.
        startup_s: loading, compiling, capturing and warming up; the reference's with the engine's
            trial.
        warnings: what every record of the row says.
    """

    method: Method
    engine: str
    decoder: Decoder | None = None
    failure: tuple[str, str] | None = None
    startup_s: float = 0.0
    warnings: list[str] = field(default_factory=list)


class Session:
    """Runs the slots of one target model into a run folder."""

    def __init__(
        self,
        config: RunConfig,
        loaded: Loaded,
        methods: Sequence[Method],
        sets: Sequence[Questions],
        folder: RunFolder,
        device_name: str,
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.methods = methods
        self.sets = sets
        self.folder = folder
        self.device_name = device_name
        self.name = loaded.target.name
        # By engine, with why it is another and the seconds it took to make.
        self._targets: dict[str, tuple[TargetModel, str | None, float]] = {}
        self.target = self._on(config.engine[0])
        self.reference = self._build(REFERENCE, self.target)
        self._failed_before: list[dict[str, Any]] = []

    def _on(self, engine: str) -> TargetModel:
        """The target on `engine`, or on eager where that cannot run here, which is said once."""
        if engine not in self._targets:
            started = time.perf_counter()
            target, reason = engines.make(self.loaded.model, self.name, engine)
            self._targets[engine] = target, reason, time.perf_counter() - started
            if reason is not None:
                print(f"{self.name}: {reason}; eager instead", file=sys.stderr)
        return self._targets[engine][0]

    def _build(self, name: str, target: TargetModel) -> Decoder:
        """The decoder of the row `name` on `target`."""
        method = next(m for m in self.methods if m.label == name)
        if method.decoder is None:
            raise ValueError(f"{name} is no decoder")
        return method.decoder(target, method.settings)

    def run(self) -> list[dict[str, Any]]:
        """All that is not done yet. Returns the audit's rows for this model."""
        prompts = self.prompts()
        for prompt in prompts:
            self._check_context(prompt)
        for engine in self.config.engine:
            self._run_engine(engine, prompts, stock=engine == self.config.engine[0])
        return self._audit(prompts)

    # Prompts and their history

    def prompts(self) -> list[Prompt]:
        """Every turn, after the reference has answered what the history lacks."""
        answers = self._known_answers()
        missing = history.missing(self.sets, self.config.turns, self.name, answers)
        with tqdm(total=missing, desc="history", unit="turn", disable=_no_bar(missing)) as bar:

            def answer(prompt: Prompt) -> dict[str, Any]:
                entry = self._answer(prompt)
                bar.update()
                return entry

            return [
                prompt
                for questions in self.sets
                for prompt in history.prompts(
                    questions, self.config.turns, self.loaded, answers, answer
                )
            ]

    def _known_answers(self) -> history.Answers:
        text = self.folder.read(history.FILE)
        if text is None:
            text = ""
        whole = text[: text.rfind("\n") + 1]  # what follows was torn by a kill
        self.folder.write_once(history.FILE, whole)
        answers = history.read(whole, str(self.folder.path / history.FILE))
        if self.config.history is not None:
            return answers  # a failure is a part of a given history
        self._failed_before = [entry for entry in answers.values() if entry["status"] != "ok"]
        return {place: entry for place, entry in answers.items() if entry["status"] == "ok"}

    def _answer(self, prompt: Prompt) -> dict[str, Any]:
        """The reference's greedy answer as a line of the history."""
        self._check_context(prompt)
        if self.config.history is not None:
            raise UsageError(
                f"--history has no answer of {self.name} to {prompt.dataset} question "
                f"{prompt.prompt_id} turn {prompt.turn}; take that run's --turns and --limit"
            )
        entry = {
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
        try:
            turn = self._turn(self.reference, prompt, Sampling())
            entry["text"] = self._text(turn.output_ids)
        except Exception as error:
            entry |= {"status": "error", "error": _reason(error)}
        if entry in self._failed_before:
            return entry
        with open(self.folder.path / history.FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return entry

    def _check_context(self, prompt: Prompt) -> None:
        needed, limit = len(prompt.ids) + self.config.max_new_tokens, self.target.max_positions
        if needed > limit:
            raise UsageError(
                f"{prompt.dataset} question {prompt.prompt_id} turn {prompt.turn} needs a context "
                f"of {needed} tokens, {self.name} has {limit}; lower --max-new-tokens or --turns"
            )

    # Running

    def _run_engine(self, engine: str, prompts: Sequence[Prompt], stock: bool) -> None:
        self.target = self._on(engine)
        methods = [m for m in self.methods if stock or m.name != STOCK]
        rows = {m.label: self._row(m, engine) for m in methods}
        for row in rows.values():
            if row.failure:
                self._record_failure(row)
        methods = [m for m in methods if rows[m.label].failure is None]
        done = self.folder.done()
        config = self.config
        todo = [
            (slot, cell)
            for slot in slots(prompts, config.repeats, config.temperature, methods, config.seed)
            for cell in [self._cell(rows[slot.method.label], slot)]
            if cell.key(slot.prompt) not in done
        ]
        self._warm_up({slot.method.label: rows[slot.method.label] for slot, _ in todo}, prompts)
        title = self.name if len(config.engine) == 1 else f"{self.name} {engine}"
        for slot, cell in tqdm(todo, desc=title, unit="turn", disable=_no_bar(len(todo))):
            self._run_slot(rows[slot.method.label], slot, cell)

    def _row(self, method: Method, engine: str) -> Row:
        if method.decoder is None:
            return Row(method, STOCK_ENGINE)
        target, (_, warning, made_s) = self.target, self._targets[engine]
        row = Row(method, target.engine, warnings=[warning] if warning else [])
        info = TargetInfo(self.name, target.hidden_size, target.vocab_size, target.layers)
        reason = method.decoder.unavailable(info, method.settings)
        if reason is not None:
            row.failure = ("skipped", reason)
            return row
        started = time.perf_counter()
        try:
            row.decoder = method.decoder(target, method.settings)
        except Exception as error:
            row.failure = ("error", _reason(error))
        row.startup_s = time.perf_counter() - started
        if method.label == REFERENCE:
            row.startup_s += made_s
        return row

    def _warm_up(self, rows: dict[str, Row], prompts: Sequence[Prompt]) -> None:
        """Kernels, allocator and lazy initialisation, outside any figure but start-up's."""
        prompt = next((p for p in prompts if not p.skip), None)
        for row in rows.values():
            if prompt is None:
                return
            started = time.perf_counter()
            try:
                if row.decoder is None:
                    run_stock(self.loaded.model, prompt.ids, Sampling(), 0, WARM_UP_TOKENS, ())
                else:
                    run_turn(row.decoder, prompt.ids, Sampling(), WARM_UP_TOKENS, ())
            except Exception:  # the turns themselves will fail and say so
                continue
            finally:
                row.startup_s += time.perf_counter() - started

    def _run_slot(self, row: Row, slot: Slot, cell: Cell) -> None:
        prompt = slot.prompt
        record = self._blank(cell, prompt)
        if prompt.skip:
            self.folder.append(record | {"status": "skipped", "error": prompt.skip})
            return
        seed = generator_seed(self.config.seed, prompt, slot.repeat)
        sampling = self._sampling(slot.temperature, seed)
        try:
            if row.decoder is None:
                turn = run_stock(
                    self.loaded.model,
                    prompt.ids,
                    sampling,
                    seed,
                    self.config.max_new_tokens,
                    self.loaded.eos_ids,
                )
            else:
                turn = self._turn(row.decoder, prompt, sampling)
            whole = record | self._figures(row, turn, detailed=slot.repeat == 0)
            broken = violations(whole)
            if broken:
                raise RuntimeError("; ".join(broken))
        except Exception as error:
            self.folder.append(record | {"status": "error", "error": _reason(error)})
            return
        self.folder.append(whole)

    def _turn(self, decoder: Decoder, prompt: Prompt, sampling: Sampling) -> Turn:
        return run_turn(
            decoder, prompt.ids, sampling, self.config.max_new_tokens, self.loaded.eos_ids
        )

    def _sampling(self, temperature: float, seed: int) -> Sampling:
        generator = torch.Generator(self.target.device).manual_seed(seed)
        return Sampling(temperature, self.config.top_k, self.config.top_p, generator)

    # Records

    def _cell(self, row: Row, slot: Slot) -> Cell:
        prompt = slot.prompt
        return self._cell_of(
            row, prompt.dataset, prompt.dataset_sha256, slot.temperature, slot.repeat
        )

    def _cell_of(
        self, row: Row, dataset: str, dataset_sha256: str, temperature: float, repeat: int | None
    ) -> Cell:
        config, method, decoder = self.config, row.method, row.decoder
        return Cell(
            model=self.name,
            revision=self.loaded.revision,
            dtype=str(self.target.dtype).removeprefix("torch."),
            device=self.device_name,
            engine=row.engine,
            method=method.name,
            params=method.params,
            lossless=method.lossless,
            checkpoint_sha256=decoder.checkpoint_sha256 if decoder else None,
            tree_sha256=decoder.tree_sha256 if decoder else None,
            dataset=dataset,
            dataset_sha256=dataset_sha256,
            temperature=temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=config.seed,
            repeat=repeat,
            max_new_tokens=config.max_new_tokens,
        )

    def _record_failure(self, row: Row) -> None:
        """One record for each question set and temperature of a method that cannot run."""
        status, reason = row.failure or ("", "")
        for questions in self.sets:
            for temperature in self.config.temperature:
                cell = self._cell_of(row, questions.name, questions.sha256, temperature, None)
                self.folder.append(self._blank(cell, None) | {"status": status, "error": reason})

    def _blank(self, cell: Cell, prompt: Prompt | None) -> Record:
        """A record without figures."""
        return {
            "schema": SCHEMA,
            "run": self.folder.path.name,
            "cell": cell.id,
            "key": cell.key(prompt),
            "package_version": version(PACKAGE),
            **asdict(cell),
            "prompt_id": prompt and prompt.prompt_id,
            "category": prompt and prompt.category,
            "turn": prompt and prompt.turn,
            "prompt_sha256": prompt and prompt.sha256,
            "history": prompt and prompt.history,
            "prompt_tokens": len(prompt.ids) or None if prompt else None,
            **blank_figures(),
            "warnings": [],
            "error": None,
        }

    def _figures(self, row: Row, turn: Turn, detailed: bool) -> dict[str, Any]:
        """What a record says of `turn`, with its steps where `detailed`."""
        text = self._text(turn.output_ids)
        return {
            "status": "ok",
            **turn.figures(),
            "warnings": row.warnings + turn.warnings,
            "text": text,
            **self._steps(turn, text, detailed),
            "draft_parameters": row.decoder.draft_parameters if row.decoder else None,
            "startup_s": row.startup_s,
        }

    def _steps(self, turn: Turn, text: str, detailed: bool) -> dict[str, Any]:
        if not detailed or turn.steps is None or turn.accept_lengths is None:
            return {"steps": None, "prefill_end": None}
        counts = list(itertools.accumulate(turn.accept_lengths, initial=1))
        first, *ends = offsets(self._text, turn.output_ids, counts, text)
        steps = [{**step, "end": end} for step, end in zip(turn.steps, ends, strict=True)]
        return {"steps": steps, "prefill_end": first}

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    # Audit

    def _audit(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        ids = {prompt.sha256: prompt.ids for prompt in prompts if not prompt.skip}
        auditor = Auditor(self.loaded, self.methods, ids, self._on)
        return auditor.rows(latest(read(self.folder.path)))


def _reason(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


def _no_bar(count: int) -> bool | None:
    """tqdm's `disable`: True hides it; None shows it on a terminal only."""
    return True if count == 0 else None
