"""Are lossless methods lossless? Reads a run's records, decodes again what is in doubt, draws from
its samplers, and keeps what it found in `audit.json`.

python -m bench.audit results/<run> [...]

The file names the sha256 of the records it is of. Its rows are those of the report: model, engine,
dtype, dataset, label and temperature. Each has compared, equal, ties and defects of its greedy
answers, with an example for each that differs (`audit_outputs.Divergence`), and where it applies

- reruns: diverging prompts of a half-precision row decoded again in float32 (at most `limit` of
  `prompts`): how many are equal, ties that float64 decided, defects, or failed;
- sampling: the test of what it draws (`audit_sampling`), with p_holm, level and passed;
- answers, agreement, equal_answers, reference_agreement, perplexity and reference_perplexity of a
  lossy method (`audit_quality.quality`);
- left_out: records whose prompts could not be found again, in none of the figures.

A run leaves such a file at its end with neither reruns nor sampling.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import cli as settings
from bench import environment
from bench.audit.auditor import Auditor, Depth, settle
from bench.audit.sampling import LEAST
from bench.cli import option
from bench.decoding.engines import trial as engines
from bench.decoding.target import TargetModel
from bench.errors import UsageError
from bench.questions import history
from bench.questions import sets as prompts
from bench.questions.parsing import Questions
from bench.records import journal, tuned
from bench.records.runs import AUDIT, RECORDS, RunFolder, latest, read
from bench.run import methods
from bench.run.config import RunConfig
from bench.run.grid import PACKAGE
from bench.targets import registry as targets
from bench.targets.registry import Loaded, Target

RUN_SETTINGS = "run.yaml"


@dataclass(frozen=True)
class AuditConfig:
    """What `python -m bench.audit` is asked to do; every field is a flag. Those named as a run's
    settings stand in for what run.yaml says, where a path or a device is another one here."""

    reruns: int = option(
        8, "diverging prompts of each half-precision row to decode again in float32"
    )
    draws: int = option(2048, "tokens to draw with each sampler; 0 is off")
    seed: int = option(0, "seed of the draws")
    device: str | None = option(None, "instead of the run's")
    models: list[str] = option(
        [], "the run's models where they lie: run.yaml keeps no folder", metavar="MODEL"
    )
    checkpoint: list[str] = option(
        [], "the run's draft weights, likewise", metavar="METHOD=WEIGHTS"
    )
    tree: str | None = option(None, "the run's tree, likewise")
    data_dir: str | None = option(None, "folder with the question sets' files", metavar="DIR")

    def __post_init__(self) -> None:
        """UsageError for a value that no audit can have."""
        if self.reruns < 0 or self.seed < 0:
            raise UsageError("--reruns and --seed must be at least 0")
        if self.draws != 0 and self.draws < LEAST:
            raise UsageError(f"--draws must be 0 (off) or at least {LEAST}")

    @property
    def depth(self) -> Depth:
        return Depth(self.reruns, self.draws, self.seed)

    def run_config(self, found: Mapping[str, Any]) -> RunConfig:
        """The run's settings with what is another here."""
        config = replace(RunConfig(), **found)
        for name in ("device", "models", "checkpoint", "tree", "data_dir"):
            value = getattr(self, name)
            if value:
                config = replace(config, **{name: value})
        return config


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 where no defect was found, 1 where one was, 2 on bad input, 130 when stopped."""
    parser = settings.Parser(
        prog="python -m bench.audit",
        description="Hold a run's outputs against the reference's and explain what differs; draw "
        "from the samplers and test what they draw; leave audit.json in the run's folder.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="results/<run>")
    settings.add_arguments(parser, AuditConfig)
    try:
        flags = vars(parser.parse_args(argv))
        folders = flags.pop("folders")
        wanted = AuditConfig(**flags)
        sound = [audit(folder, wanted) for folder in folders]  # all of them, whatever is found
        return 0 if all(sound) else 1
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; audit.json is as it was", file=sys.stderr)
        return 130


def audit(path: Path, wanted: AuditConfig) -> bool:
    """Audits the run in `path`; whether it is without a defect. Prints what was found.

    UsageError where the run cannot be read, its models or methods are not to be had here, or its
    records change meanwhile; its audit.json stays as it was.
    """
    before = journal.sha256(path, RECORDS)
    if not (path / RUN_SETTINGS).is_file():
        raise UsageError(f"{path} holds no {RUN_SETTINGS}, which says what was run; restore it")
    run = Run(path, wanted)
    entries = [entry for target in run.targets() for entry in run.rows(target)]
    settle(entries)
    if journal.sha256(path, RECORDS) != before:
        raise UsageError(f"the records in {path} changed during the audit; run it again")
    facts = {
        "package_version": version(PACKAGE),
        "device": run.device_name,
        "reruns": wanted.reruns,
        "draws": wanted.draws,
        "seed": wanted.seed,
        "prompts_missing": run.missing,
        "notes": run.notes,
    }
    _write(run.folder, facts, entries)
    for line in _summary(entries, run.missing):
        print(f"{path}: {line}")
    print(f"wrote {path / AUDIT}")
    return not any(map(faults, entries))


class Run:
    """A run's settings and records, with every name resolved anew."""

    def __init__(self, path: Path, wanted: AuditConfig) -> None:
        self.folder = RunFolder(path)  # never entered: an audit holds no lock and appends nothing
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
        """The question sets that can be had; what of the others is missing is counted later."""
        data_dir = Path(self.config.data_dir) if self.config.data_dir else None
        expected = self.provenance.get("datasets", {})
        for name in self.config.datasets:
            own = data_dir / name if data_dir else None  # run.yaml keeps no folder of one's own
            try:
                found = prompts.load(str(own) if own and own.is_file() else name, data_dir)
                questions = prompts.spread(found, self.config.limit)
            except UsageError as error:
                self._note(f"question set {name}: {error}; --data-dir names its folder")
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
        """Those that have records. UsageError where one is not among the run's models."""
        known = {target.name: target for target in map(targets.resolve, self.config.models)}
        names = dict.fromkeys(record["model"] for record in self.records)
        for name in names:
            if name not in known:
                raise UsageError(
                    f"the records are of {name}, which is not among {', '.join(known)}; "
                    "name the run's models by --models"
                )
        return [known[name] for name in names]

    def _load(self, target: Target) -> Loaded:
        """UsageError where it is not what the records are of."""
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

    def rows(self, target: Target) -> list[dict[str, Any]]:
        """The audit's rows of one model, which is loaded for it alone."""
        loaded, name = self._load(target), target.name
        found: dict[str, TargetModel] = {}

        def on(engine: str) -> TargetModel:
            if engine not in found:
                found[engine], reason = engines.make(loaded.model, name, engine)
                if reason is not None:
                    self._note(f"{name}: {reason}; eager instead")
            return found[engine]

        known = self._prompts(loaded)
        asked = {r["prompt_sha256"] for r in self.records if r["model"] == name}
        missing = len(asked - known.keys())
        if missing:
            self.missing += missing
            self._note(f"{missing} of {len(asked)} prompts of {name} could not be found again")
        return Auditor(loaded, self.methods, known, on, self.depth).rows(self.records)

    def _prompts(self, loaded: Loaded) -> dict[str, tuple[int, ...]]:
        """Ids by their sha256, from the question sets and the run's history."""
        text = self.folder.read(history.FILE) or ""
        answers = history.read(text, str(self.folder.path / history.FILE))

        def unknown(prompt: history.Prompt) -> dict[str, Any]:
            return {"status": "error", "error": f"{history.FILE} has no answer to {prompt.sha256}"}

        return {
            prompt.sha256: prompt.ids
            for questions in self.sets
            for prompt in history.prompts(questions, self.config.turns, loaded, answers, unknown)
            if not prompt.skip
        }


def write(folder: RunFolder, entries: Iterable[Mapping[str, Any]]) -> None:
    """`audit.json` as a run leaves it. One of the same records by the command stays: it goes
    further."""
    facts = {"package_version": version(PACKAGE), "reruns": 0, "draws": 0}
    try:
        known = json.loads(folder.read(AUDIT) or "{}")
        deeper = known.get("reruns", 0) or known.get("draws", 0)
        same = known.get("records_sha256") == journal.sha256(folder.path, RECORDS)
    except (ValueError, AttributeError):  # damaged: written anew
        deeper = same = False
    if not (deeper and same and known.get("package_version") == facts["package_version"]):
        _write(folder, facts, entries)


def _write(
    folder: RunFolder, facts: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]
) -> None:
    """The file names the records that it is of."""
    content = {
        "records_sha256": journal.sha256(folder.path, RECORDS),
        **facts,
        "rows": list(entries),
    }
    folder.write_once(AUDIT, json.dumps(content, indent=1, allow_nan=False) + "\n")


def faults(entry: Mapping[str, Any]) -> bool:
    """Whether a row has a defect: in its outputs, in their reruns, or in what it draws."""
    reruns, sampling = entry.get("reruns", {}), entry.get("sampling", {})
    refused = sampling.get("passed") is False
    return bool(entry["defects"] or reruns.get("defects") or refused)


def _summary(entries: Sequence[Mapping[str, Any]], missing: int) -> Iterator[str]:
    compared, equal, ties, defects = (
        sum(entry[name] for entry in entries) for name in ("compared", "equal", "ties", "defects")
    )
    yield f"{compared} outputs compared: {equal} equal, {ties} ties, {defects} defects"
    reruns = [entry["reruns"] for entry in entries if "reruns" in entry]
    if reruns:
        done, prompts, same = (
            sum(r[name] for r in reruns) for name in ("rerun", "prompts", "equal")
        )
        yield f"{done} of {prompts} diverging prompts decoded again in float32, {same} equal"
    tests = list({id(e["sampling"]): e["sampling"] for e in entries if "sampling" in e}.values())
    if tests:
        passed = sum(test.get("passed") is True for test in tests)
        yield f"{len(tests)} samplers tested, {passed} follow the target"
    for entry in entries:
        if "perplexity" in entry:
            yield (
                f"{_name(entry)}: lossy, agreement {entry['agreement']:.2f}, perplexity "
                f"{entry['perplexity']:.3g} (reference {entry['reference_perplexity']:.3g})"
            )
    for entry in filter(faults, entries):
        yield f"{_name(entry)}: DEFECTS"
    if missing:
        yield f"{missing} prompts not found: their records are not audited"


def _name(entry: Mapping[str, Any]) -> str:
    where = (entry[name] for name in ("model", "engine", "dataset"))
    return f"{entry['label']} on {', '.join(where)}, T = {entry['temperature']:g}"


if __name__ == "__main__":
    sys.exit(main())
