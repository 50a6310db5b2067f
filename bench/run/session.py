"""One target model of a run: its prompts, its methods on each engine, its turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from bench.decoding.decoder import Decoder
from bench.decoding.sampling import Sampling
from bench.errors import one_line
from bench.progress import Progress, counted, duration, note
from bench.questions.history import Prompt
from bench.records.runs import REFERENCE, RunFolder
from bench.run.engine_targets import EngineTargets
from bench.run.estimate import Estimate
from bench.run.grid import Cell, GridPoint, generator_seed, grid, size
from bench.run.plan import Plan
from bench.run.preflight import describe
from bench.run.prepared import PreparedMethod, prepare
from bench.run.prompting import HistoryWriter
from bench.run.recording import Recorder
from bench.targets.registry import Loaded


class Session:
    """Runs the grid of one target model into a run folder; `begin` is called before any work, when
    nothing is left to refuse."""

    def __init__(
        self, plan: Plan, loaded: Loaded, folder: RunFolder, begin: Callable[[], None]
    ) -> None:
        self.plan = plan
        self.begin = begin
        self.config = plan.config
        self.loaded = loaded
        self.folder = folder
        self.name = loaded.target.name
        self.targets = EngineTargets(loaded.model, self.name, note)
        self.recorder = Recorder(plan.config, loaded, plan.device_name, folder.path.name)

    def run(self) -> list[Prompt]:
        """Runs everything that is not done yet. Returns the prompts."""
        writer = HistoryWriter(self.config, self.loaded, self._reference(), self.folder)
        prompts = writer.prompts(self.plan.sets, self.begin)
        for engine in self.config.engine:
            self._run_engine(engine, prompts)
        return prompts

    def _reference(self) -> Decoder:
        """The reference on the first engine."""
        method = next(m for m in self.plan.methods if m.label == REFERENCE)
        if method.decoder is None:
            raise ValueError(f"{REFERENCE} is not a decoder")
        return method.decoder(self.targets.target(self.config.engine[0]), method.settings)

    def _run_engine(self, engine: str, prompts: Sequence[Prompt]) -> None:
        methods = self.plan.methods_on(engine)
        target = self.loaded.target
        info = replace(describe(target), argument=target.published_argument)
        prepared = {m.label: prepare(m, self.targets.get(engine), info) for m in methods}
        for method in prepared.values():
            if method.failure:
                self._record_failure(method, *method.failure)
        title = self.name if len(self.config.engine) == 1 else f"{self.name} {engine}"
        todo = self._todo(prompts, prepared)
        self._tell_done(title, len(todo), len(prompts), prepared)
        asked = [(point, cell) for point, cell in todo if not point.prompt.skip]
        if asked:
            prompt = next(prompt for prompt in prompts if not prompt.skip)
            chosen = dict.fromkeys(point.method.label for point, _ in todo)
            with Progress(f"{title}: warm-up", len(chosen), "method") as bar:
                for label in chosen:
                    prepared[label].warm_up(prompt.ids)
                    bar.update()
        estimate = Estimate(point.method.label for point, _ in asked)
        with Progress(title, len(todo), "turn") as bar:
            for point, cell in todo:
                started = time.monotonic()
                self._run_point(prepared[point.method.label], point, cell)
                bar.update()
                if not point.prompt.skip:
                    took = time.monotonic() - started
                    tell(title, estimate.took(point.method.label, took))

    def _tell_done(
        self, title: str, todo: int, prompts: int, prepared: Mapping[str, PreparedMethod]
    ) -> None:
        """How many turns an earlier session did."""
        able = [p.method for p in prepared.values() if p.failure is None]
        whole = size(prompts, self.config.repeats, len(self.config.temperature), able)
        if todo < whole:
            note(f"{title}: {whole - todo:,} of {counted(whole, 'turn')} done already")

    def _record_failure(self, prepared: PreparedMethod, status: str, reason: str) -> None:
        """One record for each question set and temperature of a method that cannot run."""
        for questions in self.plan.sets:
            for temperature in self.config.temperature:
                cell = self.recorder.cell(
                    prepared, questions.name, questions.sha256, temperature, None, None
                )
                self.folder.append(self.recorder.failed(cell, None, status, reason))

    def _todo(
        self, prompts: Sequence[Prompt], prepared: Mapping[str, PreparedMethod]
    ) -> list[tuple[GridPoint, Cell]]:
        """The grid's points that have no good record yet."""
        config, done = self.config, self.folder.done()
        methods = [p.method for p in prepared.values() if p.failure is None]
        points = grid(prompts, config.repeats, config.temperature, methods, config.seed)
        cells = ((point, self._cell(prepared[point.method.label], point)) for point in points)
        return [(point, cell) for point, cell in cells if cell.key(point.prompt) not in done]

    def _cell(self, prepared: PreparedMethod, point: GridPoint) -> Cell:
        dataset, sha256 = point.prompt.dataset, point.prompt.dataset_sha256
        return self.recorder.cell(
            prepared, dataset, sha256, point.temperature, point.repeat, point.clock
        )

    def _run_point(self, prepared: PreparedMethod, point: GridPoint, cell: Cell) -> None:
        """Runs one turn and appends its record."""
        prompt, config, recorder = point.prompt, self.config, self.recorder
        if prompt.skip:
            self.folder.append(recorder.failed(cell, prompt, "skipped", prompt.skip))
            return
        seed = generator_seed(config.seed, prompt, point.repeat)
        generator = torch.Generator(self.loaded.model.device).manual_seed(seed)
        sampling = Sampling(point.temperature, config.top_k, config.top_p, generator)
        budget, eos_ids = config.max_new_tokens, self.loaded.eos_ids
        try:
            clocked = bool(point.clock)
            turn = prepared.turn(prompt.ids, sampling, seed, budget, eos_ids, clocked)
            record = recorder.measured(cell, prompt, prepared, turn)
        except Exception as error:
            record = recorder.failed(cell, prompt, "error", one_line(error))
        self.folder.append(record)


def tell(title: str, left: tuple[int, float] | None) -> None:
    """The estimate of a session, where there is one."""
    if left is not None and left[0]:
        turns, seconds = left
        note(
            f"{title}: {counted(turns, 'turn')} left, about {duration(seconds)} on this machine "
            "(from the first turns of each method)"
        )
