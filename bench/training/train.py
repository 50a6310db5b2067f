"""python -m bench.training.train: train one or several drafts on the target's own conversations.

Drafts named together see the same batches and share the frozen target's forward.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import save_file
from torch import Tensor

from bench import cli, environment, files
from bench.cli import option
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts import trainable
from bench.decoding.drafts.trainable import TrainableDraft
from bench.decoding.drafts.weights import read_draft, save_draft
from bench.errors import UsageError
from bench.progress import Progress, note
from bench.targets import registry as targets
from bench.training import memory
from bench.training.anchors import START_TOKENS, answer_anchors, drafted_tokens, sample_anchors
from bench.training.curves import draw
from bench.training.data import HELD_MOST, HELD_SHARE, Shards
from bench.training.losses import LossSettings, distillation_loss, next_token_loss
from bench.training.pack import check_bits
from bench.training.resumable import Completed, ResumableState
from bench.training.states import DraftHead, KeptStates, TargetStates
from bench.training.statistics import statistics, tree
from bench.training.trainee import Rates, Trainee

STANDARDISE_TOKENS = 200_000
STANDARDISE_BATCHES = 16
LEAST_ANCHORS = 16  # held-out positions that statistics need
SAVE_SECONDS = 60
SCORED = 512  # anchors whose logits exist at a time in an evaluation
LOG = "log.jsonl"


@dataclass(frozen=True)
class TrainConfig:
    """How to train; every field is a flag."""

    method: list[str] = option(["chimera"], f"drafts by name; entry points {trainable.GROUP}")
    data: list[str] = option(["data/distilled"], "folders that bench.training.distill wrote")
    out: str = option("trained", "folder of weights, logs and resumable states")
    model: str = option(targets.DEFAULT, "the frozen target")
    steps: int = option(2000, "optimiser steps")
    tokens: int = option(57_344, "tokens of a batch")
    anchors: int = option(
        64, "positions of the longest sequences to draft from; of shorter ones in proportion"
    )
    vocabulary: int = option(16_384, "most frequent tokens to train on; 0 for all")
    hard: bool = option(False, "train on the true tokens, not on the target's distribution")
    depth_weights: str = option(
        "decay",
        "weight of a level: decay is 0.9^(j-1), dpace follows the draft's own accuracy",
        choices=("decay", "dpace"),
    )
    tv: float = option(0.0, "share of the total variation distance in the loss, 0 to 1")
    anchors_from_start: bool = option(
        False, f"draw positions of an answer's first {START_TOKENS} tokens more often"
    )
    keep_states: float = option(
        0.0, "GB of the target's states kept on the device, which later epochs read again"
    )
    muon_lr: float = option(0.02, "learning rate of matrices")
    adam_lr: float = option(1e-3, "learning rate of all other parameters")
    warm_up: int = option(100, "steps until the full learning rate")
    seeds: list[int] = option([0], "train each method once with each seed")
    held_out: int | None = option(
        None,
        f"sequences of each length kept for evaluation; 1 of {HELD_SHARE} and at most {HELD_MOST} "
        "if not given",
    )
    eval_every: int = option(250, "steps between held-out statistics")
    save_every: int = option(0, "steps between saved states; 0 saves once a minute")
    stop_at: int = option(0, "stop early at this step; the same command resumes; 0: do not")
    bits: int = option(8, "of saved matrices: 4, 8, or 16 for bfloat16")
    device: str = cli.device_option()
    dtype: str = cli.dtype_option()


LOCAL = ("out", "data", "device")  # settings that say nothing of how a draft was made
FREE = (
    *LOCAL,
    "keep_states",
    "eval_every",
    "save_every",
    "stop_at",
    "bits",
)  # that a resume may change


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench.training.train") -> int:
    """Exit code 0, 2 on invalid input, 130 when interrupted."""
    parser = cli.Parser(
        prog=prog,
        description="Train drafts on conversations that the target wrote.",
        allow_abbrev=False,
    )
    cli.add_arguments(parser, TrainConfig)
    return cli.run_command(parser, _command, argv, "stopped; the same command resumes")


def _command(flags: dict[str, Any]) -> int:
    config = TrainConfig(**flags)
    advice = f"give fewer --tokens than {config.tokens}, fewer --anchors, or another --device"
    with memory.refused(advice):
        Trainer(config).run()
    return 0


class Rate:
    """The time between laps, and tokens a second over all of them."""

    def __init__(self) -> None:
        self._started = self._lap = time.perf_counter()
        self._tokens = 0

    def lap(self, tokens: int) -> float:
        """Seconds since the last lap, in which `tokens` were trained on."""
        before, self._lap = self._lap, time.perf_counter()
        self._tokens += tokens
        return self._lap - before

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / max(self._lap - self._started, 1e-9)


class Trainer:
    """Trains the drafts of one command."""

    def __init__(self, config: TrainConfig) -> None:
        cli.check_choices(config)
        for name in ("method", "data", "seeds"):
            if not getattr(config, name):
                raise UsageError(f"{cli.flag(name)} needs at least one value")
        for name in ("steps", "tokens", "anchors", "eval_every"):
            if getattr(config, name) < 1:
                raise UsageError(f"{cli.flag(name)} must be at least 1")
        check_bits(config.bits)
        if not 0 <= config.tv <= 1:
            raise UsageError(f"--tv must lie in 0..1, not {config.tv}")
        kinds = {name: trainable.load(name) for name in config.method}
        self.config = config
        device, dtype = environment.settled(config.device, config.dtype)
        on_cpu = device == "cpu"
        self.accelerator = Accelerator(mixed_precision="no" if on_cpu else "bf16", cpu=on_cpu)
        self.device = self.accelerator.device
        self.shards = Shards(config.data, config.held_out, self.device)
        target = targets.resolve(config.model)
        if self.shards.target != {target.name}:
            raise UsageError(
                f"the data was written by {min(self.shards.target)}, not {target.name}"
            )
        self.out = Path(config.out)
        self.state = ResumableState(self.out, self._identity(target.name))
        self.loaded = targets.load(target, str(self.device), getattr(torch, dtype))
        self.states = TargetStates(self.loaded.model)
        self.kept = KeptStates(self.states, config.keep_states * 1e9)
        shape = self.loaded.model.config.get_text_config()
        self.by_frequency = self.shards.frequent(shape.vocab_size, shape.vocab_size)
        size = config.vocabulary or shape.vocab_size
        weight = self.loaded.model.get_output_embeddings().weight
        self.head = DraftHead.of(weight, self.by_frequency[:size])
        self.progress = Completed()
        self.accelerator.register_for_checkpointing(self.progress)
        info = TargetInfo(target.name, shape.hidden_size, shape.vocab_size, shape.num_hidden_layers)
        self.trainees = [
            self._trainee(name, kind, seed, info)
            for seed in config.seeds
            for name, kind in kinds.items()
        ]
        self._check_held_out()
        self._check_shares()
        self.out.mkdir(parents=True, exist_ok=True)

    def _identity(self, target: str) -> dict[str, Any]:
        """What a training that is resumed must have in common with this one."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in FREE}
        settings |= {"method": list(self.config.method), "seeds": list(self.config.seeds)}
        return settings | {"model": target, "data": self.shards.card["sha256"]}

    def _check_held_out(self) -> None:
        """UsageError where the held-out answers are too few or too short for statistics."""
        depth = max(trainee.depth for trainee in self.trainees)
        held = self.shards.held_roles()
        found = sum(len(answer_anchors(row, depth)) for roles in held for row in roles)
        if found < LEAST_ANCHORS:
            raise UsageError(
                f"{sum(map(len, held))} held-out sequences have {found} places with "
                f"{depth + 1} answer tokens ahead, and {LEAST_ANCHORS} are needed; write more "
                "data, longer sequences, or give more --held-out"
            )

    def _trainee(self, name: str, kind: TrainableDraft, seed: int, target: TargetInfo) -> Trainee:
        try:
            draft = kind.build(target)
            self.states.tap(*draft.taps)
        except ValueError as error:
            raise UsageError(f"{name} cannot be built for {target.name}: {error}") from error
        config = self.config
        rates = Rates(config.muon_lr, config.adam_lr, config.warm_up, config.steps)
        return Trainee.make(name, kind, seed, draft, rates, self.accelerator)

    # The loop

    def run(self) -> None:
        """Train from the last saved state to `stop_at` or the end; at the end, save weights."""
        config = self.config
        last = min(config.stop_at or config.steps, config.steps)
        if not self._resume():
            self._standardise()
        elif self._finished():
            if self.accelerator.is_main_process:
                note(f"{self.out} is trained: {config.steps} steps; nothing is left to do")
            return
        losses: dict[str, list[Tensor]] = {t.label: [] for t in self.trainees}
        done = self.progress
        rate = Rate()
        saved = time.perf_counter()
        with Progress("train", last, "step", shown=self.accelerator.is_main_process) as bar:
            bar.skip(done.step)
            for group, rows in self._batches(done.step, last):
                for label, loss in self._step(group, rows).items():
                    losses[label].append(loss)
                done.step += 1
                done.seconds += rate.lap(len(rows) * self.shards.length(group))
                bar.beside(f"{rate.tokens_per_second:,.0f} tokens/s")
                bar.update()
                if done.step % config.eval_every == 0 or done.step == config.steps:
                    self._log(losses)
                    losses = {t.label: [] for t in self.trainees}
                    done.seconds += rate.lap(0)
                if self._agreed(self._is_due(saved, last)):
                    self.state.save(self.accelerator, done.step)
                    saved = time.perf_counter()
        if done.step == config.steps and self.accelerator.is_main_process:
            self._finish()
        self.accelerator.end_training()

    def _is_due(self, saved: float, last: int) -> bool:
        """Whether the state is saved after this step; it was saved last at `saved`."""
        step, every = self.progress.step, self.config.save_every
        if step == last:
            return True
        return step % every == 0 if every else time.perf_counter() - saved > SAVE_SECONDS

    def _agreed(self, decision: bool) -> bool:
        """The main process's decision."""
        if self.accelerator.num_processes == 1:
            return decision
        return bool(broadcast(torch.tensor(decision, device=self.device, dtype=torch.int32)))

    def _check_shares(self) -> None:
        """UsageError where a batch has fewer sequences than there are processes."""
        processes = self.accelerator.num_processes
        schedule = self.shards.schedule(self.config.tokens, self.config.seeds[0], 0)
        least = min(len(rows) for _, rows in schedule)
        if least < processes:
            raise UsageError(
                f"a batch of --tokens {self.config.tokens} has {least} sequences for {processes} "
                "processes; give more --tokens or launch fewer processes"
            )

    def _resume(self) -> bool:
        """Load the saved state and leave out what the log has of later steps."""
        if not self.state.load(self.accelerator):
            (self.out / LOG).unlink(missing_ok=True)
            return False
        step = self.progress.step
        if self.accelerator.is_main_process:
            note(f"{self.out} holds {step} of {self.config.steps} steps; going on from there")
        known = [entry for entry in self._entries() if entry["step"] <= step]
        if self.accelerator.is_main_process:
            files.write_text(self.out / LOG, "".join(json.dumps(e) + "\n" for e in known))
        return True

    def _entries(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        path = self.out / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _finished(self) -> bool:
        written = all(self._weights(trainee).exists() for trainee in self.trainees)
        return written and self.progress.step >= self.config.steps

    def _weights(self, trainee: Trainee) -> Path:
        return self.out / f"{trainee.label}.safetensors"

    def _batches(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """(group, rows) of the batches `first` to `last`."""
        config = self.config
        schedule: list[tuple[int, Tensor]] = []
        epoch = -1
        length = len(self.shards.schedule(config.tokens, config.seeds[0], 0))
        for step in range(first, last):
            if step // length != epoch:
                epoch = step // length
                schedule = self.shards.schedule(config.tokens, config.seeds[0], epoch)
            yield schedule[step % length]

    def _step(self, group: int, rows: Tensor) -> dict[str, Tensor]:
        """Train every draft on sequences of a group, int64 [B], of which each process has its
        share; the loss of each, whose mean over the processes is that of the batch."""
        whole = self.shards.batch(group, rows)
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        rows, ids = rows[mine], whole.ids[mine]
        hidden, taps = self.kept(group, self.shards.count(group), rows, ids)
        embeddings = self.states.embed(ids)
        seed = self.config.seeds[0] * 1_000_003 + self.progress.step
        generator = torch.Generator(self.device)
        count = max(self.config.anchors * self.shards.length(group) // self.shards.longest, 1)
        found = {}
        for trainee in self.trainees:
            generator.manual_seed(seed)  # drafts of one depth get the same anchors
            anchors, weights = sample_anchors(
                whole.roles,
                trainee.depth,
                count,
                generator,
                self.config.anchors_from_start,
            )
            anchors, weights = anchors[mine], weights[mine]
            with self.accelerator.autocast():
                o, z = trainee.wrapped(embeddings, hidden, trainee.chosen(taps), anchors)
                loss = self._loss(trainee.kind.distil, o, z, hidden, ids, anchors, weights)
            self.accelerator.backward(loss)
            trainee.update()
            found[trainee.label] = loss.detach()
        return found

    def _loss(
        self,
        distil: float,
        o: Tensor | None,
        z: Tensor,
        hidden: Tensor,
        ids: Tensor,
        anchors: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """sum over levels of w_j [next-token loss + distil * smooth-L1(o_j, h_{t+j})], per draft;
        w as `--depth-weights` says."""
        config, depth = self.config, z.shape[2]
        ahead = anchors[..., None] + torch.arange(1, depth + 1, device=ids.device)  # t + j
        labels = self.head.index[drafted_tokens(ids, anchors, depth)]
        if config.hard:
            weights = weights * (labels >= 0)
        sequence, anchor = (weights > 0).any(dim=-1).nonzero(as_tuple=True)
        teacher = hidden[sequence[:, None], ahead[sequence, anchor]]  # [n, depth, d]
        loss, weight = next_token_loss(
            z[sequence, anchor],
            self.head.weight,
            weights[sequence, anchor],
            labels[sequence, anchor],
            teacher=None if config.hard else teacher,
            settings=LossSettings(config.depth_weights == "dpace", config.tv),
        )
        if o is not None and distil:
            loss = loss + distil * distillation_loss(o[sequence, anchor], teacher, weight)
        # The weight of the whole batch; gradients are averaged over the processes.
        total = self.accelerator.reduce(weight.sum().detach(), "sum").clamp(min=1.0)
        mean: Tensor = loss * self.accelerator.num_processes / total
        return mean

    def _standardise(self) -> None:
        """Let the drafts measure means and deviations over answers of the first batches."""
        seen: list[tuple[Tensor, Tensor, dict[int, Tensor]]] = []
        count = 0
        schedule = self.shards.schedule(self.config.tokens, self.config.seeds[0], 0)
        for group, rows in schedule:
            batch = self.shards.batch(group, rows)
            hidden, taps = self.states(batch.ids)
            embeddings = self.states.embed(batch.ids)
            at = batch.roles
            seen.append((embeddings[at], hidden[at], {k: v[at] for k, v in taps.items()}))
            count += int(at.sum())
            if count >= STANDARDISE_TOKENS or len(seen) >= STANDARDISE_BATCHES:
                break
        embedded = torch.cat([e for e, _, _ in seen])
        states = torch.cat([h for _, h, _ in seen])
        for trainee in self.trainees:
            streams = [torch.cat([taps[k] for _, _, taps in seen]) for k in trainee.draft.taps]
            trainee.draft.standardise(embedded, states, streams)

    # Held-out statistics

    @torch.no_grad()
    def held_out_ranks(self, trainee: Trainee) -> Tensor:
        """int64 [n, depth]: ranks of the true tokens from fixed held-out anchors whose whole path
        is in one answer."""
        generator = torch.Generator(self.device).manual_seed(0)
        depth, rows = trainee.depth, []
        for batch in self.shards.held(max(self.config.tokens // 512, 1)):
            hidden, taps = self.states(batch.ids)
            anchors, weights = sample_anchors(batch.roles, depth, self.config.anchors, generator)
            embeddings = self.states.embed(batch.ids)
            with self.accelerator.autocast():
                _, z = trainee.draft(embeddings, hidden, trainee.chosen(taps), anchors)
            true = drafted_tokens(batch.ids, anchors, depth)
            whole = weights.all(dim=-1)
            pairs = zip(*(torch.split(x[whole], SCORED) for x in (z, true)), strict=True)
            rows += [self.head.ranks(*pair) for pair in pairs]
        return torch.cat(rows).cpu()

    def _log(self, losses: dict[str, list[Tensor]]) -> None:
        step, seconds = self.progress.step, self.progress.seconds
        entry: dict[str, Any] = {"step": step, "seconds": round(seconds, 2), "methods": {}}
        for trainee in self.trainees:
            known = losses[trainee.label]
            mean = (
                self.accelerator.reduce(torch.stack(known).mean(), "mean").item() if known else None
            )
            entry["methods"][trainee.label] = {
                "loss": mean,
                **statistics(self.held_out_ranks(trainee)),
            }
        if self.accelerator.is_main_process:
            with open(self.out / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            summary = {
                label: [round(m["loss"], 3), [round(x, 2) for x in m["accepted"].values()]]
                for label, m in entry["methods"].items()
            }
            note(f"{step}: {seconds:.0f} s {summary}")

    # The end

    def _finish(self) -> None:
        """Draw the log; save each draft with its card, and the ranks that its tree comes from."""
        log = self._entries()
        draw(log, self.out / "curve.svg")
        for trainee in self.trainees:
            card = self._card(trainee, log[-1])
            held = self.held_out_ranks(trainee)
            save_file({"ranks": held.to(torch.uint8)}, self.out / f"{trainee.label}.ranks")
            path = self._weights(trainee)
            save_draft(path, trainee.draft, self.by_frequency, card, bits=self.config.bits)
            # The effect of the saved precision, on the same held-out anchors.
            trainee.draft.load_state_dict(read_draft(path).state)
            card["held_out_as_saved"] = statistics(self.held_out_ranks(trainee))
            card["tree"] = tree(held)
            save_draft(path, trainee.draft, self.by_frequency, card, bits=self.config.bits)

    def _card(self, trainee: Trainee, last: dict[str, Any]) -> dict[str, Any]:
        """How `trainee` was made; `last` is the log's last entry."""
        packages = ("torch", "transformers", "accelerate")
        return {
            "method": trainee.name,
            "note": trainee.kind.note,
            "seed": trainee.seed,
            "distil_weight": trainee.kind.distil,
            "licence": "Apache-2.0",
            "target": self.loaded.target.name,
            "target_revision": self.loaded.revision,
            "recipe": {k: v for k, v in asdict(self.config).items() if k not in LOCAL},
            "data": self.shards.card,
            "held_out": last["methods"][trainee.label],
            "seconds": last["seconds"],
            "device": environment.device_name(str(self.device)),
            "versions": {name: environment.package_version(name) for name in packages},
        }


if __name__ == "__main__":
    sys.exit(main())
