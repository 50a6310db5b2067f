"""Builds the records of a run: its settings, and what was measured or went wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

from bench import environment
from bench.questions.history import Prompt
from bench.records.runs import SCHEMA, Record, blank_figures, violations
from bench.run.config import RunConfig
from bench.run.grid import PACKAGE, Cell
from bench.run.offsets import offsets
from bench.run.prepared import PreparedMethod
from bench.run.runner import Turn
from bench.targets.registry import Loaded


class Recorder:
    """Builds the records of one target.

    Args:
        config: of the run.
        loaded: the target.
        device_name: as records have it.
        run: name of the run folder.
        rank: of this process.
    """

    def __init__(
        self, config: RunConfig, loaded: Loaded, device_name: str, run: str, rank: int = 0
    ) -> None:
        self.config = config
        self.loaded = loaded
        self.device_name = device_name
        self.run = run
        self.rank = rank
        self.card = environment.card(str(loaded.model.device))

    def cell(
        self,
        prepared: PreparedMethod,
        dataset: str,
        dataset_sha256: str,
        temperature: float,
        repeat: int | None,
        clock: bool | None,
    ) -> Cell:
        """`repeat` and `clock` are None for a method that cannot run."""
        config, method, decoder = self.config, prepared.method, prepared.decoder
        return Cell(
            model=self.loaded.target.name,
            revision=self.loaded.revision,
            dtype=str(self.loaded.model.dtype).removeprefix("torch."),
            device=self.device_name,
            engine=prepared.engine,
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
            clock=clock,
            max_new_tokens=config.max_new_tokens,
            code_sha256=method.code_sha256,
        )

    def failed(self, cell: Cell, prompt: Prompt | None, status: str, reason: str) -> Record:
        """A record without figures; `prompt` is None where the method cannot run at all."""
        return self._blank(cell, prompt) | {"status": status, "error": reason}

    def measured(self, cell: Cell, prompt: Prompt, prepared: PreparedMethod, turn: Turn) -> Record:
        """The record of a turn. RuntimeError where it breaks a record's invariants."""
        text = text_of(self.loaded, turn.output_ids)
        record = self._blank(cell, prompt) | {
            "status": "ok",
            **turn.figures(),
            "warnings": prepared.warnings + turn.warnings,
            "text": text,
            **self._steps(turn, text),
            "draft_parameters": prepared.decoder.draft_parameters if prepared.decoder else None,
            "startup_s": prepared.startup_s,
        }
        broken = violations(record)
        if broken:
            raise RuntimeError("; ".join(broken))
        return record

    def _blank(self, cell: Cell, prompt: Prompt | None) -> Record:
        return {
            "schema": SCHEMA,
            "run": self.run,
            "cell": cell.id,
            "key": cell.key(prompt),
            "package_version": version(PACKAGE),
            **asdict(cell),
            "rank": self.rank,
            "card": self.card,
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

    def _steps(self, turn: Turn, text: str) -> dict[str, Any]:
        """The steps, each with where it ends in the text."""
        if turn.steps is None or turn.accept_lengths is None:
            return NO_STEPS
        counts = list(itertools.accumulate(turn.accept_lengths, initial=1))
        decode = partial(text_of, self.loaded)
        first, *ends = offsets(decode, turn.output_ids, counts, text)
        steps = [{**step, "end": end} for step, end in zip(turn.steps, ends, strict=True)]
        return {"steps": steps, "prefill_end": first}


NO_STEPS: dict[str, Any] = {"steps": None, "prefill_end": None}


def text_of(loaded: Loaded, ids: Sequence[int]) -> str:
    """An answer's text, without special tokens."""
    text: str = loaded.tokenizer.decode(ids, skip_special_tokens=True)
    return text
