"""Small drafts, trained once a session by the package's own writer and trainer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from bench.decoding.target import TargetModel
from bench.targets.synthetic import predictable, tokenizer
from bench.training.conversations import Conversation
from bench.training.train import TrainConfig, Trainer
from bench.training.writer import Writer, WriterSettings
from tests.decoding.known import tiny_model

PREDICTABLE = "synthetic:predictable"
METHODS = (
    *("chimera", "chimera_plus", "chimera_block", "dflash_markov", "eagle3", "hydra"),
    "medusa",
)
# Fast rates: Hydra and Chimeras get far in few but costly steps, Medusa's steps are cheap.
RUNS: tuple[dict[str, Any], ...] = (
    {
        "method": ("hydra", "chimera", "chimera_plus", "chimera_block"),
        "steps": 24,
        "muon_lr": 0.05,
        "adam_lr": 0.01,
    },
    {"method": ("dflash_markov",), "steps": 9, "muon_lr": 0.05, "adam_lr": 0.01},
    {"method": ("eagle3",), "steps": 24, "muon_lr": 0.1, "adam_lr": 0.02},
    {"method": ("medusa",), "steps": 150, "muon_lr": 0.1, "adam_lr": 0.02},
)
SEQUENCES = 288
LENGTH = 48
MODELS: dict[str, Callable[[], LlamaForCausalLM]] = {
    PREDICTABLE: lambda: predictable()[0],
    PREDICTABLE + "-mha": lambda: predictable(kv_heads=4)[0],
    "favours_zero": lambda: predictable(favourite=0)[0],
    "tiny": lambda: tiny_model(6, seed=2),
}


# A chat template whose slots end in one token.
TEMPLATE = (
    "go{% for m in messages %}{{ '+' if m['role'] == 'user' else '=' }}{{ m['content'] }}"
    "<eos>{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


def chat_target(folder: Path, vocab: int = 320) -> str:
    """Save a model that often says the token that ends a slot, with TEMPLATE."""
    eos = 256
    model = predictable(vocab=vocab, favourite=eos)[0]
    model.config.eos_token_id = model.config.pad_token_id = eos
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    words = tokenizer(vocab, 2048)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    return str(folder)


def answers(model: LlamaForCausalLM, temperature: float) -> tuple[Tensor, Tensor]:
    """(ids int64 [n, T], roles [n, T]): what `model` says after a few random tokens."""
    vocab = model.config.vocab_size
    # An id that the model does not have ends its answers: they run to the end of the sequence.
    conversation = Conversation(opening=(0,), turn=(1,), next_turn=(vocab,))
    settings = WriterSettings(SEQUENCES, LENGTH, answer_temperature=temperature)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocab, (SEQUENCES, 1, 6), generator=generator)
    return Writer(model, conversation, settings, generator).write(prompts)


def write_data(folder: Path, target: str, ids: Tensor, roles: Tensor) -> None:
    """One shard and its data card."""
    folder.mkdir(parents=True)
    save_file({"ids": ids.to(torch.int32), "roles": roles}, folder / "00000.safetensors")
    card = {
        "target": target,
        "sequences": len(ids),
        "answer_tokens": int(roles.sum()),
        "settings": {"length": ids.shape[1]},
        "shards": [{"file": "00000.safetensors"}],
    }
    (folder / "data.json").write_text(json.dumps(card))


def settings(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """Of a small training run."""
    base: dict[str, Any] = {
        "data": (str(data),),
        "out": str(out),
        "model": PREDICTABLE,
        "tokens": 8 * LENGTH,
        "anchors": 12,
        "vocabulary": 0,
        "warm_up": 5,
        "held_out": 32,
        "eval_every": 12,
        "device": "cpu",
    }
    return TrainConfig(**(base | changes))


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


_FOLDERS = cache(tempfile.TemporaryDirectory)  # one, removed at exit


@cache
def data(name: str) -> Path:
    """A folder with data of one of MODELS, and a checkpoint of the model where it has no name."""
    model = MODELS[name]()
    root = Path(_FOLDERS().name) / name.replace(":", "-")
    folder = root / "data"
    write_data(folder, name, *answers(model, temperature=float(name == "tiny")))
    if not name.startswith(PREDICTABLE):
        model.save_pretrained(root / name)
        tokenizer(model.config.vocab_size, 256).save_pretrained(root / name)
    return folder


@cache
def trained(name: str, run: int) -> Path:
    """The folder of one of RUNS on one of MODELS."""
    folder = data(name)
    model = name if name.startswith(PREDICTABLE) else str(folder.parent / name)
    settings_of = RUNS[run]
    out: Path = folder.parent / "trained" / settings_of["method"][-1]
    last = {"eval_every": settings_of["steps"] // 3, "save_every": settings_of["steps"]}
    Trainer(settings(folder, out, model=model, **settings_of, **last)).run()
    return out


def weights(name: str, method: str) -> Path:
    """The checkpoint of `method` trained on one of MODELS."""
    (run,) = (number for number, run in enumerate(RUNS) if method in run["method"])
    return trained(name, run) / f"{method}-0.safetensors"


def checkpoint(method: str, target: TargetModel) -> str:
    """Weights of `method` for a target that is one of MODELS."""
    own = target.model.state_dict()
    for name, model in MODELS.items():
        state = model().state_dict()
        if all(
            torch.equal(state[key], tensor.cpu()) for key, tensor in own.items() if key in state
        ):
            return str(weights(name, method))
    raise AssertionError("no drafts for this target")
