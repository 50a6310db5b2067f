"""python -m chimera.train: train one or several drafts on the target's own conversations.

Drafts named together see the same batches and share the frozen target's forward.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from bench import environment
from bench.decoding.decoder import TargetInfo
from bench.decoding.drafts import ranks
from bench.decoding.drafts.weights import read_draft, save_draft
from bench.errors import UsageError
from bench.targets import registry as targets
from bench.training import cli
from bench.training.curves import draw
from bench.training.data import Batch, Shards
from bench.training.losses import distillation_loss, next_token_loss
from chimera.variants import ARMS, Arm, DraftConfig

DEPTH_DECAY = 0.9  # weight of a level against the one before it
NODES = (8, 15, 26, 63)  # trees whose accepted length is followed
STANDARDISE_TOKENS = 200_000
LOG = "log.jsonl"


@dataclass(frozen=True)
class TrainConfig:
    """How to train; every field is a flag."""

    method: tuple[str, ...] = field(default=("chimera",), metadata={"help": ", ".join(ARMS)})
    data: tuple[str, ...] = field(default=("data/distilled",), metadata={"help": "shard folders"})
    out: str = field(default="trained", metadata={"help": "folder of states, logs and weights"})
    model: str = field(default=targets.DEFAULT, metadata={"help": "the frozen target"})
    steps: int = field(default=2000, metadata={"help": "optimiser steps"})
    tokens: int = field(default=57_344, metadata={"help": "tokens of a batch"})
    anchors: int = field(default=64, metadata={"help": "positions of a sequence to draft from"})
    vocabulary: int = field(default=16_384, metadata={"help": "frequent tokens trained on; 0: all"})
    hard: bool = field(default=False, metadata={"help": "true tokens for labels, not the target"})
    muon_lr: float = field(default=0.02, metadata={"help": "of the matrices"})
    adam_lr: float = field(default=1e-3, metadata={"help": "of norms and biases"})
    warm_up: int = field(default=100, metadata={"help": "steps to the full rate"})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"help": "each method once for each"})
    held_out: int = field(default=256, metadata={"help": "sequences of each length kept apart"})
    eval_every: int = field(default=250, metadata={"help": "steps between held-out statistics"})
    save_every: int = field(default=1000, metadata={"help": "steps between saved states"})
    stop_at: int = field(default=0, metadata={"help": "end this call early; resume by the same"})
    bits: int = field(default=8, metadata={"help": "of saved matrices: 8, or 16 for bfloat16"})
    device: str = field(default="auto", metadata={"help": "cpu or cuda"})
    dtype: str = field(default="auto", metadata={"help": "the target's; bfloat16 on a GPU"})


@dataclass
class Trainee:
    """A draft in training."""

    name: str
    arm: Arm
    seed: int
    draft: nn.Module  # as made
    wrapped: nn.Module  # as accelerate wants it called
    optimizers: list[Any]
    schedulers: list[Any]

    @property
    def label(self) -> str:
        return f"{self.name}-{self.seed}"

    @property
    def config(self) -> DraftConfig:
        config: DraftConfig = self.draft.config  # type: ignore[assignment]
        return config

    @property
    def taps(self) -> tuple[int, ...]:
        return getattr(self.config, "taps", ())


class Progress:
    """The number of steps done, in the form that accelerate saves."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 on bad input."""
    return cli.run(TrainConfig, lambda config: Trainer(config).run(), "chimera.train", argv)


class Trainer:
    """Trains the drafts of one command."""

    def __init__(self, config: TrainConfig) -> None:
        for name in config.method:
            if name not in ARMS:
                raise UsageError(f"unknown method {name!r}; choose from {', '.join(ARMS)}")
        self.config = config
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_cpu = device == "cpu"
        precision = "no" if on_cpu else "bf16"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
        self.device = self.accelerator.device
        dtype = config.dtype
        if dtype == "auto":
            dtype = "float32" if on_cpu else "bfloat16"
        self.shards = Shards(config.data, config.held_out, self.device)
        target = targets.resolve(config.model)
        if self.shards.target != {target.name}:
            raise UsageError(
                f"the data was written by {min(self.shards.target)}, not {target.name}"
            )
        self.loaded = targets.load(target, str(self.device), getattr(torch, dtype))
        self.states = TargetStates(self.loaded.model)
        shape = self.loaded.model.config.get_text_config()
        self.info = TargetInfo(
            target.name, shape.hidden_size, shape.vocab_size, shape.num_hidden_layers
        )
        size = config.vocabulary or shape.vocab_size
        self.by_frequency = self.shards.frequent(shape.vocab_size, shape.vocab_size)
        self.vocabulary = self.by_frequency[:size]
        head = self.loaded.model.get_output_embeddings().weight.detach()
        self.head = head[self.vocabulary.to(head.device)]
        self.index = torch.full((shape.vocab_size,), -1, device=self.device)
        self.index[self.vocabulary.to(self.device)] = torch.arange(
            len(self.vocabulary), device=self.device
        )
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress)
        self.trainees = [
            self._trainee(name, seed) for seed in config.seeds for name in config.method
        ]
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)

    def _trainee(self, name: str, seed: int) -> Trainee:
        arm = ARMS[name]
        draft: Any = arm.make(self.info).to(self.device)
        draft.initialise(seed)
        taps = getattr(draft.config, "taps", ())
        self.states.tap(*taps)
        matrices = [p for p in draft.parameters() if p.dim() == 2]
        others = [p for p in draft.parameters() if p.dim() < 2]
        muon = torch.optim.Muon(
            matrices, lr=self.config.muon_lr, momentum=0.95, weight_decay=0.0, ns_steps=5
        )
        optimizers: list[Any] = [muon]
        if others:
            optimizers.append(torch.optim.AdamW(others, lr=self.config.adam_lr, weight_decay=0.0))
        wrapped, *optimizers = self.accelerator.prepare(draft, *optimizers)
        schedulers = [
            torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, self._rate)
            for optimizer in optimizers
        ]
        self.accelerator.register_for_checkpointing(*schedulers)
        return Trainee(name, arm, seed, draft, wrapped, optimizers, schedulers)

    def _rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warm, steps = self.config.warm_up, self.config.steps
        if step < warm:
            return (step + 1) / warm
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(steps - warm, 1))

    # The loop

    def run(self) -> None:
        """Train from wherever the folder stands to `stop_at` or the end; then save weights."""
        config, state = self.config, self.out / "state"
        if state.is_dir():
            self.accelerator.load_state(str(state))
        else:
            self._standardise()
        last = min(config.stop_at or config.steps, config.steps)
        bar = tqdm(total=last, initial=self.progress.step, desc="train", unit="step", disable=None)
        started = time.perf_counter()
        losses: dict[str, list[Tensor]] = {t.label: [] for t in self.trainees}
        for batch in self._batches(self.progress.step, last):
            for label, loss in self._step(batch).items():
                losses[label].append(loss)
            self.progress.step += 1
            bar.update()
            step = self.progress.step
            if step % config.eval_every == 0 or step == config.steps:
                seconds = time.perf_counter() - started
                self._log(step, losses, seconds)
                losses = {t.label: [] for t in self.trainees}
            if step % config.save_every == 0 or step == last:
                self.accelerator.save_state(str(state))
        bar.close()
        if self.progress.step == config.steps and self.accelerator.is_main_process:
            self._finish()

    def _batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches `first` to `last`, each process its share of the rows."""
        config, process = self.config, self.accelerator
        schedule: list[tuple[int, Tensor]] = []
        epoch = -1
        length = len(self.shards.schedule(config.tokens, config.seeds[0], 0))
        for step in range(first, last):
            if step // length != epoch:
                epoch = step // length
                schedule = self.shards.schedule(config.tokens, config.seeds[0], epoch)
            group, rows = schedule[step % length]
            share = rows[process.process_index :: process.num_processes]
            yield self.shards.batch(group, share)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        hidden, taps = self.states(batch.ids)
        embeddings = self.states.embed(batch.ids)
        place = self.progress.step * self.accelerator.num_processes
        seed = self.config.seeds[0] * 1_000_003 + place + self.accelerator.process_index
        generator = torch.Generator(self.device)
        found = {}
        for trainee in self.trainees:
            generator.manual_seed(seed)  # the same anchors for all of one depth
            depth = trainee.config.depth
            anchors, weights = sample_anchors(batch.roles, depth, self.config.anchors, generator)
            chosen = [taps[k] for k in trainee.taps]
            with self.accelerator.autocast():
                o, z = trainee.wrapped(embeddings, hidden, chosen, anchors)
                loss = self._loss(trainee.arm, o, z, hidden, batch.ids, anchors, weights)
            self.accelerator.backward(loss)
            for optimizer, scheduler in zip(trainee.optimizers, trainee.schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            found[trainee.label] = loss.detach()
        return found

    def _loss(
        self,
        arm: Arm,
        o: Tensor | None,
        z: Tensor,
        hidden: Tensor,
        ids: Tensor,
        anchors: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """sum over levels of 0.9^(j-1) [CE + distil * smooth-L1(o_j, h_{t+j})], per draft."""
        depth = z.shape[2]
        batch = torch.arange(len(ids), device=ids.device)[:, None, None]
        ahead = anchors[..., None] + torch.arange(1, depth + 1, device=ids.device)  # t + j
        labels = self.index[ids[batch, ahead + 1]]
        decay = DEPTH_DECAY ** torch.arange(depth, device=ids.device)
        weights = weights * decay
        if self.config.hard:
            weights = weights * (labels >= 0)
        rows = weights > 0
        weight = weights[rows]
        teacher = hidden[batch, ahead][rows]
        loss = next_token_loss(
            z[rows],
            self.head,
            weight,
            teacher=None if self.config.hard else teacher,
            labels=labels[rows] if self.config.hard else None,
        )
        if o is not None and arm.distil:
            loss = loss + arm.distil * distillation_loss(o[rows], teacher, weight)
        return loss / weight.sum().clamp(min=1.0)

    def _standardise(self) -> None:
        """Means and deviations over response positions of the first batches."""
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
            if count >= STANDARDISE_TOKENS:
                break
        embedded = torch.cat([e for e, _, _ in seen])
        states = torch.cat([h for _, h, _ in seen])
        for trainee in self.trainees:
            draft: Any = trainee.draft
            streams = [torch.cat([taps[k] for _, _, taps in seen]) for k in trainee.taps]
            draft.standardise(embedded, states, streams)

    # Held-out statistics

    @torch.no_grad()
    def held_out_ranks(self, trainee: Trainee) -> Tensor:
        """int64 [n, depth]: ranks of the true tokens behind fixed held-out anchors whose whole
        path lies in one answer."""
        generator = torch.Generator(self.device).manual_seed(0)
        depth, rows = trainee.config.depth, []
        for batch in self.shards.held(max(self.config.tokens // 512, 1)):
            hidden, taps = self.states(batch.ids)
            anchors, weights = sample_anchors(batch.roles, depth, self.config.anchors, generator)
            chosen = [taps[k] for k in trainee.taps]
            with self.accelerator.autocast():
                _, z = trainee.draft(self.states.embed(batch.ids), hidden, chosen, anchors)
            at = torch.arange(len(anchors), device=anchors.device)[:, None, None]
            ahead = anchors[..., None] + torch.arange(2, depth + 2, device=anchors.device)
            true = self.index[batch.ids[at, ahead]]
            whole = weights.all(dim=-1)
            for part in torch.split(torch.arange(int(whole.sum())), 512):
                logits = z[whole][part].to(self.head.dtype) @ self.head.T
                rows.append(ranks.ranks_of(logits, true[whole][part]))
        return torch.cat(rows).cpu()

    def _log(self, step: int, losses: dict[str, list[Tensor]], seconds: float) -> None:
        entry: dict[str, Any] = {"step": step, "seconds": round(seconds, 2), "methods": {}}
        for trainee in self.trainees:
            mean = (
                torch.stack(losses[trainee.label]).mean().item() if losses[trainee.label] else None
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
            tqdm.write(f"{step}: {seconds:.0f} s {summary}", file=sys.stderr)

    # The end

    def _finish(self) -> None:
        log = [json.loads(line) for line in (self.out / LOG).read_text().splitlines()]
        draw(log, self.out / "curve.svg")
        settings = {
            k: v for k, v in asdict(self.config).items() if k not in ("out", "data", "device")
        }
        for trainee in self.trainees:
            last = log[-1]["methods"][trainee.label]
            card = {
                "method": trainee.name,
                "note": trainee.arm.note,
                "seed": trainee.seed,
                "distil_weight": trainee.arm.distil,
                "licence": "Apache-2.0",
                "target": self.loaded.target.name,
                "target_revision": self.loaded.revision,
                "recipe": settings,
                "data": self.shards.card,
                "held_out": last,
                "seconds": log[-1]["seconds"],
                "device": environment.device_name(str(self.device)),
                "versions": {
                    name: environment.package_version(name)
                    for name in ("torch", "transformers", "accelerate")
                },
            }
            held = self.held_out_ranks(trainee)
            save_file({"ranks": held.to(torch.uint8)}, self.out / f"{trainee.label}.ranks")
            path = self.out / f"{trainee.label}.safetensors"
            save_draft(path, trainee.draft, self.by_frequency, card, bits=self.config.bits)
            # What the saved precision costs, on the same held-out anchors.
            trainee.draft.load_state_dict(read_draft(path).state)
            card["held_out_as_saved"] = statistics(self.held_out_ranks(trainee))
            card["tree"] = [list(rank_path) for rank_path in ranks.grow(held, max(NODES) + 1)]
            save_draft(path, trainee.draft, self.by_frequency, card, bits=self.config.bits)


class TargetStates:
    """The frozen target's states of whole sequences."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._taps: dict[int, Tensor] = {}

    def tap(self, *layers: int) -> None:
        """Keep the residual stream after k layers, for each k."""
        for k in layers:
            if k not in self._taps:
                self._taps[k] = torch.empty(0)
                self._model.base_model.layers[k - 1].register_forward_hook(
                    lambda _module, _args, output, k=k: self._taps.__setitem__(k, output)
                )

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """(h [B, T, d] after the last norm, residual streams [B, T, d] by tap) of ids [B, T]."""
        output = self._model.base_model(input_ids=ids, use_cache=False)
        return output.last_hidden_state, dict(self._taps)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self._model.get_input_embeddings()(ids)
        return embedded


def sample_anchors(
    roles: Tensor, depth: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random anchors t with x_{t+1} and x_{t+2} in an answer.

    Args:
        roles: bool [B, T].
        depth: levels behind an anchor.
        count: anchors of a sequence, A.
        generator: on the roles' device.

    Returns:
        (anchors int64 [B, A], weights float [B, A, depth]: 1 where x_{t+1} .. x_{t+1+j} are all
        of one answer, else 0).
    """
    batch, length = roles.shape
    span = torch.arange(length, device=roles.device)
    fits = (span >= 1) & (span < length - depth - 1)
    allowed = fits & roles.roll(-1, 1) & roles.roll(-2, 1)
    score = torch.rand(batch, length, generator=generator, device=roles.device) + allowed
    count = min(count, length)
    anchors = score.topk(count, dim=1).indices.clamp(min=1, max=max(length - depth - 2, 1))
    ahead = anchors[..., None] + torch.arange(1, depth + 2, device=roles.device)
    inside = roles[torch.arange(batch, device=roles.device)[:, None, None], ahead]
    weights = inside.cumprod(dim=-1)[..., 1:].float()
    return anchors, weights * allowed.gather(1, anchors)[..., None]


def statistics(held: Tensor) -> dict[str, Any]:
    """Accepted lengths by nodes, from trees grown on one half and read on the other, and the
    accuracy by depth, of ranks int64 [n, depth]."""
    fit, read = held[::2], held[1::2]
    accepted = {str(nodes): ranks.accepted_length(read, ranks.grow(fit, nodes)) for nodes in NODES}
    return {
        "accepted": accepted,
        "top1": ranks.top_accuracy(held),
        "top3": ranks.top_accuracy(held, 3),
        "anchors": len(held),
    }


if __name__ == "__main__":
    sys.exit(main())
