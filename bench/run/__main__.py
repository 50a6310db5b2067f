"""python -m bench.run: from the command line to records, their audit and the report."""

from __future__ import annotations

import functools
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli as settings
from bench import distributed
from bench.errors import UsageError
from bench.run.config import RunConfig, resolve

if TYPE_CHECKING:
    from bench.distributed import World
    from bench.records.runs import Record, RunFolder
    from bench.run.plan import Plan
    from bench.targets.registry import Target


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.run") -> int:
    """Exit code 0, 1 where a turn failed, 2 on invalid input, 130 when interrupted."""
    parser = settings.Parser(
        prog=prog,
        description="Run decoding methods on question sets and leave records and a report.",
        allow_abbrev=False,
    )
    settings.add_arguments(parser, RunConfig)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; flags win")
    parser.add_argument("--list", action="store_true", help="list what can be run here, and stop")
    parser.add_argument("--dry-run", action="store_true", help="resolve all but weights, and stop")
    stopped = "stopped; the same command continues this run"
    return settings.run_command(parser, command, argv, stopped)


# Modules that import torch are imported inside functions: it takes seconds, and invalid flags are
# refused without it.


def command(flags: dict[str, Any]) -> int:
    config_file, listing, dry_run = (flags.pop(name) for name in ("config", "list", "dry_run"))
    config, provenance = resolve(flags, config_file)
    if listing:
        show_listing(config)
        return 0
    with distributed.joined(cards=config.parallel == "tp") as world:
        from bench.run.plan import Plan

        with world.main_first():
            plan = Plan(config, provenance)
        if dry_run:
            if world.main:
                print(plan.describe())
            return 0
        return run(plan, world)


def show_listing(config: RunConfig) -> None:
    from bench.run.listing import listing

    print(listing(config))


def run(plan: Plan, world: World) -> int:
    """This process's part of the run; its exit code."""
    with world.main_first():
        plan.fetch()
    plan.settle(world)
    return lead(plan, world) if world.main else follow(plan, world)


def lead(plan: Plan, world: World) -> int:
    """The main process: runs what is not done yet, merges, audits and reports. 1 where any turn
    failed, else 0."""
    from bench.audit import results
    from bench.records import runs

    with ExitStack() as held:
        folder = runs.RunFolder(plan.folder)
        world.from_main(lambda: begin_folder(plan, held.enter_context(folder)))

        @functools.cache  # once for all models
        def begin() -> None:
            print(f"plan: {plan.headline()}", file=sys.stderr)
            print(f"dtype: {plan.chosen}", file=sys.stderr)

        rows = [
            row for target in plan.targets for row in run_target(plan, target, folder, world, begin)
        ]
        results.write_shallow(folder, rows)
        failed = [r for r in runs.latest(runs.read(folder.path)) if r["error"]]
    if plan.config.report:
        show_report(folder.path, local_reasons(plan, failed))
    else:
        show_records(folder.path, local_reasons(plan, failed))
    return int(any(r["status"] == "error" for r in failed))


def begin_folder(plan: Plan, folder: RunFolder) -> Path:
    """Merges what a killed launch left, and writes the settings. Returns the folder's path.

    UsageError where the folder cannot take this run.
    """
    from bench.records import runs
    from bench.run import parts

    parts.absorb(folder)
    if not plan.config.resume and runs.read(folder.path):
        raise UsageError(
            f"{folder.path} holds records and --no-resume does not overwrite them; "
            "choose another --out"
        )
    plan.stamp(folder)
    return folder.path


def follow(plan: Plan, world: World) -> int:
    """Every other process: records its share in its part of the run, for the main process."""
    from bench.run.parts import Part
    from bench.run.session import Session
    from bench.targets.registry import load

    path: Path = world.from_main(Path)  # the main process's `begin_folder`
    for target in plan.targets:
        with Part(path, world.rank) as part:
            loaded = load(target, plan.device, plan.dtype, plan.config.parallel)
            Session(plan, loaded, part, path.name, world, begin=lambda: None).run()
        world.wait()  # until every part is complete
        world.wait()  # until they are merged
    return 0


def local_reasons(plan: Plan, failed: Sequence[Record]) -> list[str]:
    """Why records have no figures, each once. Records hold no local path; here the commands in
    them do, so that they can be pasted."""
    reasons = dict.fromkeys(f"{r['method']}: {r['status']}: {r['error']}" for r in failed)
    found = list(reasons)
    for target in plan.targets:
        there, here = map(shlex.quote, (target.published_argument, target.argument))
        found = [reason.replace(there, here) for reason in found]
    return found


def show_records(folder: Path, reasons: Sequence[str]) -> None:
    """Where the records are, and why some have no figures."""
    print(f"records: {folder}", file=sys.stderr)
    for reason in reasons:
        print(f"  {reason}", file=sys.stderr)


def show_report(folder: Path, reasons: Sequence[str]) -> None:
    """The overview on stdout; then on stderr where the records and the page are."""
    from reports import build, terminal

    page = build.load([folder])
    build.tell(page)
    if table := terminal.overview(page, shutil.get_terminal_size().columns):
        print(table, flush=True)
    show_records(folder, reasons)
    paths = build.publish(page, build.places([folder]))
    print(f"report: {build.listed(paths)}", file=sys.stderr)


def run_target(
    plan: Plan, target: Target, folder: RunFolder, world: World, begin: Callable[[], None]
) -> list[Record]:
    """Runs one model, which is loaded for this call only, and merges what the other processes
    recorded of it. Returns its rows of the audit."""
    from bench.audit.auditor import Auditor
    from bench.records import runs
    from bench.run import parts
    from bench.run.session import Session
    from bench.targets.registry import load

    loaded = load(target, plan.device, plan.dtype, plan.config.parallel)
    session = Session(plan, loaded, folder, folder.path.name, world, begin)
    prompts = session.run()
    world.wait()  # until every part is complete
    parts.absorb(folder)
    world.wait()  # until they are merged
    if not world.alone:
        prompts = session.prompts(plan.sets)
    asked = {prompt.sha256: prompt.ids for prompt in prompts if not prompt.skip}
    auditor = Auditor(loaded, plan.methods, asked, session.targets.target)
    return auditor.rows(runs.latest(runs.read(folder.path)))


if __name__ == "__main__":
    sys.exit(main())
