"""A run with every name resolved: everything that can be refused is refused before weights load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import cli as settings
from bench import environment
from bench.distributed import World
from bench.errors import UsageError
from bench.files import sha256_of_bytes
from bench.progress import counted
from bench.questions import chat, history
from bench.questions import sets as question_sets
from bench.questions.parsing import Questions
from bench.records import tuned
from bench.records.runs import RUN_SETTINGS, RunFolder
from bench.run import grid, methods, preflight, tuning
from bench.run.config import RunConfig
from bench.run.grid import PACKAGE
from bench.run.methods import Method
from bench.run.paths import RESULTS, folder_name
from bench.run.tuning import TunedParameters
from bench.targets import registry as targets


class Plan:
    """A run's settings and what they resolve to.

    Args:
        config: the settings.
        provenance: of a run.yaml that is fed back: what it resolved to before; empty otherwise.
    """

    def __init__(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        device, dtype = environment.settled(config.device, config.dtype)
        self.device_name = environment.device_name(device)  # UsageError for a missing device
        self.device = device  # of this process
        self.cards = [environment.card(device)]  # of every process of the launch
        self.chosen = environment.dtype_reason(device) if config.dtype == "auto" else dtype
        self.config = replace(config, device=device, dtype=dtype)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.targets = [targets.resolve(name, config.chat_template) for name in config.models]
        _refuse_duplicates("models", [target.name for target in self.targets])
        self.tuned = self._tuned() if config.tree == tuned.TREE else None
        tree = None if self.tuned else config.tree
        self.methods = methods.resolve(config.methods, config.checkpoint, tree, self.tuned)
        if self.tuned:  # spell the parameters out: the run no longer depends on the tuned files
            self.tuned.check()
            self.config = replace(self.config, methods=[m.label for m in self.methods])
        data_dir = Path(config.data_dir) if config.data_dir else None
        self.sets: list[Questions] = [
            question_sets.spread(question_sets.load(name, data_dir), config.limit)
            for name in config.datasets
        ]
        _refuse_duplicates("question sets", [questions.name for questions in self.sets])
        preflight.check_files(self.methods, self.targets, config.tree)
        path = self.config.history
        self.history = history.given(Path(path)) if path else None
        answers = None if self.history is None else history.read(self.history, str(path))
        self.notes = [
            note
            for target in self.targets
            for note in preflight.notes(target, self.config, self.methods, self.sets, answers)
        ]
        self.provenance = self._provenance(provenance)
        self._compare(provenance)

    def _tuned(self) -> TunedParameters:
        config = self.config
        if len(self.targets) > 1 or len(config.engine) > 1:
            raise UsageError(
                "--tree tuned takes one model and one engine: parameters are tuned for each"
            )
        (engine,), (model,) = config.engine, config.models
        tuned_for = tuning.tuned_for(self.targets[0], engine, config.dtype, config.device)
        return TunedParameters(tuned_for, model, config.device)

    def _provenance(self, expected: Mapping[str, Any]) -> dict[str, Any]:
        given = self.history
        found = {
            "package_version": version(PACKAGE),
            "code": self._code(),
            "models": [target.name for target in self.targets],
            "methods": [method.label for method in self.methods],
            "datasets": {questions.name: questions.sha256 for questions in self.sets},
            "prompts": {questions.name: self._size(questions) for questions in self.sets},
            "history_sha256": sha256_of_bytes(given.encode()) if given is not None else None,
        }
        if (template := chat.source(self.config.chat_template)) is not None:
            found["chat_template_sha256"] = sha256_of_bytes(template.encode())
        if self.tuned is None:
            return found
        text = self.tuned.text
        if text is not None:
            return found | {"tuned_sha256": sha256_of_bytes(text.encode())}
        # Fed back: every parameter is spelled out, so nothing was looked up; keep the old hash.
        same = found["methods"] == expected.get("methods")
        return found | {"tuned_sha256": expected.get("tuned_sha256") if same else None}

    def _code(self) -> dict[str, str]:
        decoders = [method.decoder for method in self.methods if method.decoder]
        return environment.code(decoder.__module__ for decoder in decoders)

    def methods_on(self, engine: str) -> list[Method]:
        """Those that run on an engine; the stock row has none, and runs once, with the first."""
        first = engine == self.config.engine[0]
        return [m for m in self.methods if first or m.name != methods.STOCK]

    def turns(self) -> int:
        """How many turns the whole run measures, without methods that cannot run."""
        config = self.config
        prompts = sum(self._size(questions)["turns"] for questions in self.sets)
        return sum(
            grid.size(prompts, config.repeats, len(config.temperature), able)
            for info in map(preflight.describe, self.targets)
            for engine in config.engine
            for able in [[m for m in self.methods_on(engine) if m.unavailable(info) is None]]
        )

    def headline(self) -> str:
        """`960 turns on 1 model`, or `on 2 models and 3 engines`."""
        places = [counted(len(self.targets), "model")]
        if len(self.config.engine) > 1:
            places.append(counted(len(self.config.engine), "engine"))
        return f"{counted(self.turns(), 'turn')} on {' and '.join(places)}"

    def _size(self, questions: Questions) -> dict[str, int]:
        """How many questions and turns of a set the run asks."""
        turns = [len(row["turns"][: self.config.turns]) for row in questions.dataset]
        return {"questions": len(turns), "turns": sum(turns)}

    def _compare(self, expected: Mapping[str, Any]) -> None:
        """A fed-back run.yaml must resolve to what it resolved to before."""
        for name, sha256 in expected.get("datasets", {}).items():
            found = self.provenance["datasets"].get(name)
            if found not in (None, sha256):
                raise UsageError(
                    f"question set {name!r} has sha256 {found}, the configuration needs {sha256}; "
                    "restore the set's file"
                )
        wanted = expected.get("history_sha256")
        if wanted not in (None, self.provenance["history_sha256"]):
            raise UsageError(
                f"the configuration used a history of sha256 {wanted}; pass that run's "
                "history.jsonl as --history"
            )

    def settle(self, world: World) -> None:
        """Takes this process's device. UsageError where there is none for it, or the processes have
        devices of different kinds."""
        cards = world.cards(self.config.parallel, self.config.device)
        self.device = world.own_device(self.config.device)
        self.cards = world.gather(environment.card(self.device))
        if cards > 1:
            self.device_name = f"{cards} x {self.device_name}, {self.config.parallel}"

    def fetch(self) -> None:
        """Fetches the draft weights that are on the hub, so that a run is refused before the
        target's weights load. UsageError where that fails."""
        preflight.fetch(self.methods, self.targets)

    @property
    def folder(self) -> Path:
        """`--out`, or a name from the models and the settings, so that the same command continues
        the same run; with --no-resume the first such name that is free."""
        if self.config.out:
            return Path(self.config.out)
        facts = [settings.portable(self.config), self.provenance]
        path = RESULTS / folder_name([target.name for target in self.targets], facts)
        if self.config.resume:
            return path
        others = (path.with_name(f"{path.name}-{n}") for n in range(2, 1000))
        return next(p for p in (path, *others) if not p.exists())

    def describe(self) -> str:
        """The resolved run, without loading a model."""
        lines = [f"run folder  {self.folder}", f"device      {self.device_name}"]
        lines += [f"dtype       {self.chosen}", f"turns       {self.headline()}"]
        lines += [f"model       {t.name}: {t.source}, {t.licence}" for t in self.targets]
        lines += [f"method      {method.label}" for method in self.methods]
        lines += self.tuned.describe() if self.tuned else []
        for questions in self.sets:
            size = self._size(questions)
            counts = f"{size['questions']} questions, {size['turns']} turns"
            lines.append(f"set         {questions.name}: {counts}")
        lines += [f"note        {note}" for note in self.notes]
        return "\n".join([*lines, "", settings.dump(self.config, self.provenance)])

    def stamp(self, folder: RunFolder) -> None:
        """Writes run.yaml, environment.json, the tuned parameters and a given history.

        UsageError where the folder holds another run.
        """
        text = settings.dump(self.config, self.provenance)
        now = environment.collect(
            self.config.device,
            {
                "datasets": self.provenance["datasets"],
                "dtype": str(self.dtype),
                "code": self.provenance["code"],
                "cards": self.cards,
            },
        )
        folder.stamp(RUN_SETTINGS, text, now)
        template = self.config.chat_template
        if template is not None and template not in chat.TEMPLATES:  # run.yaml keeps no folder
            folder.write_once(chat.FILE, chat.source(template) or "")
        if self.tuned and self.tuned.text:
            folder.write_once(tuned.FILE, self.tuned.text)
        if self.history is not None and folder.read(history.FILE) is None:
            folder.write_once(history.FILE, self.history)


def _refuse_duplicates(kind: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise UsageError(f"two {kind} are named {max(names, key=names.count)!r}; leave one out")
