"""Registry of target models: name -> how to load it, its chat template, its licence.

A target is a registered name, a folder of a transformers checkpoint or a model id of the hub.
"""

import difflib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.errors import UsageError, first_line
from bench.files import sha256_of_files
from bench.targets import smollm2, synthetic

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = smollm2.NAME
WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
)  # or, in shards, the same with `.index.json`
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Target:
    """A model that can be benchmarked, not yet loaded."""

    name: str
    licence: str
    chat_template: Literal["vicuna", "llama-2-chat"] | None  # None: the tokenizer's own
    source: str  # for people; holds no local path
    kind: Literal["wheel", "hub", "folder", "synthetic"]
    location: str | None = None  # the hub's id or the folder
    revision: str | None = None  # pinned; None: whatever `load` finds

    @property
    def synthetic(self) -> bool:
        """Whether its weights are generated, so that speedups on it mean nothing."""
        return self.kind == "synthetic"


@dataclass(frozen=True)
class Loaded:
    """A target in memory: in eval mode, without gradients, with torch's SDPA attention."""

    target: Target
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    revision: str  # the hub's commit, or a sha256 that identifies the weights
    eos_ids: frozenset[int]


def _vicuna(size: str, gigabytes: str, revision: str) -> Target:
    return Target(
        name=f"vicuna-{size}-v1.3",
        licence="LLaMA licence, non-commercial",
        chat_template="vicuna",
        source=f"lmsys/vicuna-{size}-v1.3 on the hub, {gigabytes} GB",
        kind="hub",
        location=f"lmsys/vicuna-{size}-v1.3",
        revision=revision,
    )


def _llama_2_chat(size: str, gigabytes: str, revision: str) -> Target:
    return Target(
        name=f"llama-2-{size}-chat",
        licence="Llama 2 Community License",
        chat_template="llama-2-chat",
        source=f"meta-llama/Llama-2-{size}-chat-hf on the hub, {gigabytes} GB, gated",
        kind="hub",
        location=f"meta-llama/Llama-2-{size}-chat-hf",
        revision=revision,
    )


def _synthetic(name: str) -> Target:
    source = (
        "generated, weights set by hand" if "predictable" in name else "generated, random weights"
    )
    return Target(name, "Apache-2.0", None, source, "synthetic")


SMOLLM2 = Target(
    name=smollm2.NAME,
    licence="Apache-2.0",
    chat_template=None,
    source=f"SmolLM2-135M-Instruct, GGUF Q4_1 of the wheel {smollm2.WHEEL}, dequantised",
    kind="wheel",
    revision=smollm2.GGUF_SHA256,
)
TARGETS = {
    target.name: target
    for target in (
        SMOLLM2,
        _vicuna("7b", "13.5", "236eeeab96f0dc2e463f2bebb7bb49809279c6d6"),
        _vicuna("13b", "26.0", "6566e9cb1787585d1147dcf4f9bc48f29e1328d2"),
        _vicuna("33b", "65.1", "ef8d6becf883fb3ce52e3706885f761819477ab4"),
        _llama_2_chat("7b", "13.5", "f5db02db724555f92da89c216ac04704f23d4590"),
        _llama_2_chat("13b", "26.0", "a2cb7a712bb6e5e736ca7f8cd98167f81a0b5bd8"),
        *map(_synthetic, synthetic.NAMES),
    )
}


def resolve(name: str) -> Target:
    """The target of that name: registered, a folder with a checkpoint, or a model id of the hub.

    Raises UsageError for anything else, with the registered names and the closest of them.
    """
    if name in TARGETS:
        return TARGETS[name]
    folder = Path(os.path.expanduser(name))
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"{name} holds no config.json; give the folder of a transformers checkpoint"
            )
        path = str(folder.resolve())
        return Target(folder.resolve().name, "see its files", None, "local folder", "folder", path)
    if HUB_ID.fullmatch(name):
        registered = (target for target in TARGETS.values() if target.location == name)
        new = Target(name, "see its page", None, f"{name} on the hub", "hub", name)
        return next(registered, new)
    close = difflib.get_close_matches(name, TARGETS, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise UsageError(
        f"unknown model '{name}'{hint} Known: {', '.join(TARGETS)}; "
        "or give a folder of a transformers checkpoint, or a hub id as organisation/name"
    )


def status(target: Target) -> str | None:
    """None if `load` needs no network, else what it has to fetch."""
    if target.kind == "wheel":
        return smollm2.status()
    if target.kind == "hub":
        ready = _in_hub_cache(target, "config.json") and _weights(partial(_in_hub_cache, target))
        return None if ready else f"to be fetched on first use ({target.source})"
    if target.kind == "folder":
        found = _weights(partial(_in_folder, target))
        return None if found else f"the folder holds none of {', '.join(WEIGHT_FILES)}"
    return None


def config(target: Target) -> "PretrainedConfig | None":
    """The transformers config, without loading weights; None if that would need a network."""
    from transformers import AutoConfig

    if target.synthetic:
        return synthetic.config(target.name)
    if target.kind == "wheel":
        return AutoConfig.from_pretrained(smollm2.folder()) if smollm2.ready() else None
    try:
        return AutoConfig.from_pretrained(
            _location(target), revision=target.revision, local_files_only=True
        )
    except (OSError, ValueError):
        return None


def revision(target: Target) -> str:
    """The revision that `load` would load, without loading it.

    Raises UsageError for a model of the hub that is neither reachable nor in the local cache.
    """
    if target.kind == "synthetic":
        return synthetic.recipe(target.name)
    if target.kind == "wheel":
        return smollm2.GGUF_SHA256
    if target.kind == "hub":
        return _commit(target)
    return sha256_of_files(_weights(partial(_in_folder, target)))


def load(target: Target, device: str, dtype: "torch.dtype") -> Loaded:
    """Loads model and tokenizer; fetches what is missing.

    Raises UsageError when it cannot: no network, no access, not a causal LM.
    """
    found = revision(target)
    if target.kind == "synthetic":
        model, tokenizer = synthetic.build(target.name, device, dtype)
    elif target.kind == "wheel":
        folder = smollm2.ensure()
        with smollm2.quiet():
            model, tokenizer = _pretrained(target.name, str(folder), None, device, dtype)
    else:
        commit = found if target.kind == "hub" else None
        model, tokenizer = _pretrained(target.name, _location(target), commit, device, dtype)
    return Loaded(target, model, tokenizer, found, _eos_ids(model, tokenizer))


def _pretrained(
    name: str, location: str, revision: str | None, device: str, dtype: "torch.dtype"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(_tokenizer_problem(name, error)) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(
            location,
            revision=revision,
            dtype=dtype,
            attn_implementation="sdpa",
            device_map=device,  # straight to the device, with no second copy in host memory
        )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{name} cannot be loaded: {first_line(error)}") from error
    return model.requires_grad_(False).eval(), tokenizer


def _tokenizer_problem(name: str, error: BaseException) -> str:
    """Why the tokenizer does not load; transformers names tiktoken where it finds neither of the
    packages that read a tokenizer.model."""
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    readable = is_sentencepiece_available() and is_protobuf_available()
    if not readable and re.search("sentencepiece|protobuf|tiktoken", str(error), re.IGNORECASE):
        return (
            f"{name}: its tokenizer needs the packages sentencepiece and protobuf; "
            "run pip install 'chimera-bench[sentencepiece]'"
        )
    return f"{name} cannot be loaded: {first_line(error)}"


def _eos_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    listed = model.generation_config.eos_token_id  # an id, a list of ids or None
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _commit(target: Target) -> str:
    """The commit that the hub, or its local cache, has for the target's revision."""
    from huggingface_hub import errors, hf_hub_download

    where = f"{target.name}: {_location(target)}"
    try:
        path = hf_hub_download(_location(target), "config.json", revision=target.revision)
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{where} is gated; ask for access on its page, "
            "then run `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UsageError(
            f"{where} is not in the local cache and the hub cannot be reached; connect to the "
            "network, or give a folder with the checkpoint"
        ) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise UsageError(
            f"{where} cannot be fetched ({first_line(error)}); check the id, and log in if it is "
            "private"
        ) from error
    return Path(path).parent.name  # .../snapshots/<commit>/config.json


def _location(target: Target) -> str:
    assert target.location is not None, target.kind
    return target.location


def _in_folder(target: Target, name: str) -> Path | None:
    path = Path(_location(target)) / name
    return path if path.is_file() else None


def _in_hub_cache(target: Target, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(_location(target), name, revision=target.revision)
    return Path(path) if isinstance(path, str) else None


def _weights(find: Callable[[str], Path | None]) -> list[Path]:
    """The files of the weights, one or several shards; empty unless `find` knows all of them."""
    for name in WEIGHT_FILES:
        if whole := find(name):
            return [whole]
        if index := find(f"{name}.index.json"):
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            shards = [find(shard) for shard in sorted(names)]
            return [shard for shard in shards if shard] if all(shards) else []
    return []
