"""python -m bench.cost: times forwards and decoding steps, with the memory bandwidth they need."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import cli as settings
from bench.cost.config import CostConfig
from bench.errors import UsageError
from bench.progress import Progress
from bench.records.costs import SETTINGS, CostFolder, latest, read
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
        return Study(CostConfig(**{**from_file, **flags})).run()

    return settings.run_command(
        parser, study, argv, stopped="stopped; the same command continues this study"
    )


class Study:
    """A cost study with every name resolved."""

    def __init__(self, config: CostConfig) -> None:
        from bench import distributed, environment
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

    def run(self) -> int:
        """Make the missing measurements and the report. 1 where a measurement failed, else 0."""
        from bench import environment
        from reports import build

        with CostFolder(self.folder) as folder:
            text = settings.dump(self.config, self.provenance)
            now = environment.collect(self.config.device, {"dtype": self.config.dtype})
            folder.stamp(SETTINGS, text, now)
            self._measure(folder)
            failed = [record for record in latest(read(folder.path)) if record["error"]]
        print(f"costs: {folder.path}", file=sys.stderr)
        for reason in dict.fromkeys(map(_reason, failed)):
            print(f"  {reason}", file=sys.stderr)
        if self.config.report:
            print(f"report: {build.listed(build.build([folder.path]))}", file=sys.stderr)
        return int(any(record["status"] == "error" for record in failed))

    def _measure(self, folder: CostFolder) -> None:
        """Models and engines one after another: each is loaded anew and freed before the next."""
        import torch

        from bench.cost.device import bandwidth, free
        from bench.cost.session import CostSession

        sessions = [
            CostSession(
                self.config, target, engine, self.methods, self.device_name, folder, self.cards
            )
            for target in self.targets
            for engine in self.config.engine
        ]
        jobs = {session: todo for session in sessions if (todo := session.todo())}
        if not jobs:
            return
        speed = bandwidth(torch.device(self.config.device))
        with Progress("costs", sum(map(len, jobs.values())), "figure") as bar:
            for session, todo in jobs.items():
                bar.title(session.title)
                before = bar.done
                session.run(todo, speed, bar.update)
                bar.skip(before + len(todo) - bar.done)  # where the engine cannot run
                free(self.config.device)


def _reason(record: Mapping[str, Any]) -> str:
    place = [record["model"], record["engine"]]
    if "method" in record:
        place.append(record["method"])
    if "width" in record and "context" in record and "method" not in record:
        place.append(f"width {record['width']}, context {record['context']}")
    return f"{' '.join(place)}: {record['status']}: {record['error']}"


if __name__ == "__main__":
    sys.exit(main())
