"""python -m bench.run: command line -> plan -> runner -> records -> report."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli as settings
from bench.errors import UsageError
from bench.questions import registry
from bench.questions import sets as prompts
from bench.questions.parsing import Questions
from bench.records import runs as records
from bench.records import tuned
from bench.records.runs import RunFolder, digest
from bench.run.config import RunConfig, resolve

if TYPE_CHECKING:
    from bench.run.tuning import Shelf

REPORT = Path("reports/index.html")
RESULTS = Path("results")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where a turn failed, 2 on bad input, 130 when interrupted."""
    parser = settings.Parser(
        prog="python -m bench.run",
        description="Run decoding methods on question sets and leave records and a report.",
        allow_abbrev=False,
    )
    settings.add_arguments(parser, RunConfig)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; flags win")
    parser.add_argument("--list", action="store_true", help="what can be run here, and stop")
    parser.add_argument("--dry-run", action="store_true", help="resolve all but weights, and stop")
    try:
        flags = vars(parser.parse_args(argv))
        config_file, listing, dry = (flags.pop(name) for name in ("config", "list", "dry_run"))
        config, provenance = resolve(flags, config_file)
        if listing:
            print(_listing(config))
            return 0
        plan = Plan(config, provenance)
        if dry:
            print(plan.describe())
            return 0
        return plan.run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues this run", file=sys.stderr)
        return 130


class Plan:
    """A run with every name resolved: all that can be refused is refused before weights load."""

    def __init__(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        import torch

        from bench import environment
        from bench.run import methods
        from bench.targets import registry as targets

        device, dtype = environment.settled(config.device, config.dtype)
        self.device_name = environment.device_name(device)  # refuses what is not there
        self.config = replace(config, device=device, dtype=dtype)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.targets = [targets.resolve(name) for name in config.models]
        self.shelf = self._shelf() if config.tree == tuned.TREE else None
        tree = None if self.shelf else config.tree
        self.methods = methods.resolve(config.methods, config.checkpoint, tree, self.shelf)
        if self.shelf:  # from here on the run does not depend on what it took
            self.shelf.check()
            self.config = replace(self.config, methods=[m.label for m in self.methods])
        data_dir = Path(config.data_dir) if config.data_dir else None
        self.sets: list[Questions] = [
            prompts.spread(prompts.load(name, data_dir), config.limit) for name in config.datasets
        ]
        for kind, names in (
            ("models", [target.name for target in self.targets]),
            ("question sets", [questions.name for questions in self.sets]),
        ):
            if len(set(names)) < len(names):
                raise UsageError(f"two {kind} are named {max(names, key=names.count)!r}")
        self.provenance = self._provenance(provenance)
        self._compare(provenance)

    def _shelf(self) -> Shelf:
        from bench.run import tuning as shelf

        config = self.config
        if len(self.targets) > 1 or len(config.engine) > 1:
            raise UsageError(
                "--tree tuned takes one model and one engine: parameters are tuned for each"
            )
        (engine,), (model,) = config.engine, config.models
        place = shelf.place(self.targets[0], engine, config.dtype, config.device)
        return shelf.Shelf(place, model, config.device)

    def _provenance(self, expected: Mapping[str, Any]) -> dict[str, Any]:
        from bench.questions import history

        path = self.config.history
        found = {
            "package_version": version("chimera-bench"),
            "methods": [method.label for method in self.methods],
            "datasets": {questions.name: questions.sha256 for questions in self.sets},
            "history_sha256": history.sha256(Path(path)) if path else None,
        }
        if self.shelf is None:
            return found
        taken = self.shelf.text
        if taken is not None:
            return found | {"tuned_sha256": hashlib.sha256(taken.encode()).hexdigest()}
        # Fed back: every parameter is spelled out, and where they came from stays known.
        same = found["methods"] == expected.get("methods")
        return found | {"tuned_sha256": expected.get("tuned_sha256") if same else None}

    def _compare(self, expected: Mapping[str, Any]) -> None:
        """A fed-back run.yaml must resolve to what it resolved to before."""
        for name, sha256 in expected.get("datasets", {}).items():
            found = self.provenance["datasets"].get(name)
            if found not in (None, sha256):
                raise UsageError(
                    f"question set {name!r} has sha256 {found}, the configuration wants {sha256}"
                )
        wanted = expected.get("history_sha256")
        if wanted not in (None, self.provenance["history_sha256"]):
            raise UsageError(
                f"the configuration used a history of sha256 {wanted}; pass that run's "
                "history.jsonl as --history"
            )

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
        turns = self.config.turns
        lines = [f"run folder  {self.folder}", f"device      {self.device_name}"]
        lines += [f"model       {t.name}: {t.source}, {t.licence}" for t in self.targets]
        lines += [f"method      {method.label}" for method in self.methods]
        lines += self.shelf.describe() if self.shelf else []
        for questions in self.sets:
            count = sum(len(row["turns"][:turns]) for row in questions.dataset)
            lines.append(
                f"set         {questions.name}: {len(questions.dataset)} questions, {count} turns"
            )
        return "\n".join([*lines, "", settings.dump(self.config, self.provenance)])

    def run(self) -> int:
        """Run what is not done, audit, report. 1 where any turn failed, else 0."""
        from bench.audit import __main__ as audit
        from bench.run.session import Session
        from bench.targets.registry import load
        from reports import build

        with RunFolder(self.folder) as folder:
            if not self.config.resume and records.read(folder.path):
                raise UsageError(
                    f"{folder.path} holds records and --no-resume writes none over; "
                    "choose another --out"
                )
            self._stamp(folder)
            entries: list[Any] = []
            for target in self.targets:
                loaded = load(target, self.config.device, self.dtype)
                session = Session(
                    self.config, loaded, self.methods, self.sets, folder, self.device_name
                )
                entries += session.run()
                del session, loaded
            audit.write(folder, entries)
            failed = [r for r in records.latest(records.read(folder.path)) if r["error"]]
        print(f"records: {folder.path}", file=sys.stderr)
        for reason in dict.fromkeys(f"{r['method']}: {r['status']}: {r['error']}" for r in failed):
            print(f"  {reason}", file=sys.stderr)
        if self.config.report:
            build.build([folder.path], REPORT)
            print(f"report: {REPORT}", file=sys.stderr)
        return int(any(r["status"] == "error" for r in failed))

    def _stamp(self, folder: RunFolder) -> None:
        """run.yaml, environment.json, what was tuned and a given history, refusing another run's
        folder."""
        from bench import environment
        from bench.questions import history

        text = settings.dump(self.config, self.provenance)
        now = environment.collect(
            self.config.device, {"datasets": self.provenance["datasets"], "dtype": str(self.dtype)}
        )
        environment.stamp(folder, "run.yaml", text, now)
        if self.shelf and self.shelf.text:
            folder.write_once(tuned.FILE, self.shelf.text)
        if self.config.history and folder.read(history.FILE) is None:
            given = Path(self.config.history).read_text(encoding="utf-8")
            history.read(given, self.config.history)
            folder.write_once(history.FILE, given)


def folder_name(models: Sequence[str], facts: object) -> str:
    """The first model, how many there are besides, and a hash of all that makes the run."""
    first = models[0].replace(":", "-").replace("/", "-")
    more = f"-and-{len(models) - 1}-more" if len(models) > 1 else ""
    return f"{first}{more}-{digest(facts)[:8]}"


def _listing(config: RunConfig) -> str:
    """Models, methods and question sets, each with whether it can run here and why not."""
    from bench.decoding.decoder import TargetInfo
    from bench.run import methods
    from bench.targets import registry as targets

    lines = ["models"]
    lines += [_line(t.name, t.licence, targets.status(t)) for t in targets.TARGETS.values()]
    chosen = targets.resolve(config.models[0])
    shape = targets.config(chosen)
    info = TargetInfo(chosen.name)
    if shape is not None:
        info = TargetInfo(chosen.name, shape.hidden_size, shape.vocab_size, shape.num_hidden_layers)
    lines += ["", f"methods, on {chosen.name}"]
    known = methods.discover()
    for name in [methods.STOCK, *known]:
        try:
            tree = None if config.tree == tuned.TREE else config.tree
            method = methods.method(name, known, {}, tree)
        except UsageError as error:
            lines.append(_line(name, "", str(error)))
            continue
        reason = method.decoder.unavailable(info, method.settings) if method.decoder else None
        kind = "lossless" if method.lossless else "lossy"
        lines.append(_line(method.label, kind, reason))
    lines += ["", "question sets"]
    data_dir = Path(config.data_dir) if config.data_dir else None
    for name, entry in registry.REGISTRY.items():
        detail = f"{entry.questions} questions, {entry.licence}"
        lines.append(_line(name, detail, prompts.status(name, data_dir)))
    return "\n".join(lines)


def _line(name: str, detail: str, reason: str | None) -> str:
    return f"  {name:<36} {detail:<34} {'ready' if reason is None else reason}"


if __name__ == "__main__":
    sys.exit(main())
