"""python -m bench.cost: times forwards and decoding steps, with the memory bandwidth they need."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import cli as settings
from bench import distributed
from bench.cost.config import CostConfig
from bench.distributed import World
from bench.errors import UsageError
from bench.progress import Progress
from bench.records.costs import SETTINGS, CostFolder, latest, read
from bench.records.runs import PARTS
from bench.run.paths import RESULTS, folder_name


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.cost") -> int:
    """Exit code 0, 1 where a measurement failed, 2 on invalid input, 130 when interrupted."""
    parser = settings.Parser(
        prog=prog,
        description="Measure forwards and steps of methods and leave records and a report.",
        allow_abbrev=False,
    )
    settings.add_arguments(parser, CostConfig)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; flags win")

    def study(flags: dict[str, Any]) -> int:
        file = flags.pop("config")
        from_file = settings.read_file(file, CostConfig)[0] if file else {}
        config = CostConfig(**{**from_file, **flags})
        with distributed.measuring(config.split) as world:
            if world is None:
                return 0
            with world.main_first():
                found = Study(config, world)
            return found.lead(world) if world.main else found.follow(world)

    return settings.run_command(
        parser, study, argv, stopped="stopped; the same command continues this study"
    )


class Study:
    """A cost study with every name resolved, and this process's share of it."""

    def __init__(self, config: CostConfig, world: World) -> None:
        from bench import environment
        from bench.run import methods, preflight
        from bench.targets import registry as targets

        device, dtype = environment.settled(config.device, config.dtype)
        self.device_name = environment.device_name(device)  # raises where there is none
        self.cards = distributed.world().cards(config.parallel, device)
        if self.cards > 1:
            self.device_name = f"{self.cards} x {self.device_name}, {config.parallel}"
        self.config = replace(config, device=device, dtype=dtype)
        self.targets = [targets.resolve(name) for name in config.models]
        self.methods = methods.resolve(config.methods, config.checkpoint, config.tree)
        preflight.check_files(self.methods, self.targets, config.tree)
        for target in self.targets:
            targets.check(target)
        if any(method.decoder is None for method in self.methods):
            raise UsageError(f"--methods: {methods.STOCK} has no steps to measure; leave it out")
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise UsageError(f"two models are named {max(names, key=names.count)!r}")
        every = [(target, engine) for target in self.targets for engine in self.config.engine]
        self.share = world.share(every, "model on an engine", "models on engines")
        self.provenance: Mapping[str, Any] = {
            "package_version": version("chimera-bench"),
            "methods": [method.label for method in self.methods],
        }

    @property
    def folder(self) -> Path:
        """`--out`, or a name from the settings: the same command continues the same study."""
        if self.config.out:
            return Path(self.config.out)
        facts = [settings.portable(self.config), self.provenance]
        return RESULTS / f"cost-{folder_name([t.name for t in self.targets], facts)}"

    def lead(self, world: World) -> int:
        """The main process: make the missing measurements, its share of them, merge those of the
        others, and make the report. 1 where a measurement failed, else 0."""
        from bench.run import parts
        from reports import build

        with ExitStack() as held:
            folder = CostFolder(self.folder)
            world.from_main(lambda: self._begin(held.enter_context(folder)))
            self._measure(folder, world)
            world.wait()  # until every part is complete
            parts.absorb(folder, CostFolder)
            failed = [record for record in latest(read(folder.path)) if record["error"]]
        print(f"costs: {folder.path}", file=sys.stderr)
        for reason in dict.fromkeys(map(_reason, failed)):
            print(f"  {reason}", file=sys.stderr)
        if self.config.report:
            print(f"report: {build.listed(build.build([folder.path]))}", file=sys.stderr)
        return int(any(record["status"] == "error" for record in failed))

    def follow(self, world: World) -> int:
        """Every other process: makes its share of the measurements, in its part of the study."""
        path: Path = world.from_main(Path)  # the main process's `_begin`
        with CostFolder(path / PARTS / str(world.rank)) as part:
            part.know(read(path))
            self._measure(part, world)
        world.wait()
        return 0

    def _begin(self, folder: CostFolder) -> Path:
        """Merges what a killed launch left, and writes the settings. Returns the folder's path."""
        from bench import environment
        from bench.run import parts

        parts.absorb(folder, CostFolder)
        text = settings.dump(self.config, self.provenance)
        now = environment.collect(self.config.device, {"dtype": self.config.dtype})
        folder.stamp(SETTINGS, text, now)
        return folder.path

    def _measure(self, folder: CostFolder, world: World) -> None:
        """Models and engines one after another: each is loaded anew and freed before the next. A
        model on an engine is measured on one card, so that its figures compare."""
        import torch

        from bench.cost.device import bandwidth, free
        from bench.cost.session import CostSession

        config = replace(self.config, device=world.own_device(self.config.device))
        sessions = [
            CostSession(config, target, engine, self.methods, self.device_name, folder, self.cards)
            for target, engine in self.share
        ]
        jobs = {session: todo for session in sessions if (todo := session.todo())}
        if not jobs:
            return
        speed = bandwidth(torch.device(config.device))
        figures = sum(map(len, jobs.values()))
        with Progress("costs", figures, "figure", shown=world.main) as bar:
            for session, todo in jobs.items():
                bar.title(session.title)
                before = bar.done
                session.run(todo, speed, bar.update)
                bar.skip(before + len(todo) - bar.done)  # where the engine cannot run
                free(config.device)


def _reason(record: Mapping[str, Any]) -> str:
    place = [record["model"], record["engine"]]
    if "method" in record:
        place.append(record["method"])
    if "width" in record and "context" in record and "method" not in record:
        place.append(f"width {record['width']}, context {record['context']}")
    return f"{' '.join(place)}: {record['status']}: {record['error']}"


if __name__ == "__main__":
    sys.exit(main())
