"""Registry of target models: name -> how to load it, its chat template, its licence.

A target is a registered name, a folder of a transformers checkpoint, a GGUF file or a model id of
the hub.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench import hub
from bench.cli import suggestion
from bench.decoding.engines import forms
from bench.decoding.engines.registry import EAGER
from bench.errors import UsageError, first_line
from bench.targets import files, gguf, loading, packaged, synthetic
from bench.targets.converted import Converted

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = packaged.SMOLLM2.name
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Target:
    """A model that can be benchmarked, not yet loaded."""

    name: str
    licence: str
    chat_template: str | None  # a name in `bench.questions.chat`, or a file; None: its tokenizer's
    source: str  # for people; holds no local path
    kind: Literal["package", "gguf", "hub", "folder", "synthetic"]
    size: str = ""  # of its weights on disk, for people
    location: str | None = None  # the hub's id, the folder or the GGUF file
    revision: str | None = None  # pinned; None: whatever `load` finds
    path: str | None = None  # as the user gave it; None for a registered name or a hub id

    @property
    def argument(self) -> str:
        """What `--model` takes for it on this machine."""
        return self.path or self.name

    @property
    def published_argument(self) -> str:
        """The same for a record, which holds no local path."""
        return self.name if self.path is None else f"PATH/TO/{self.name}"

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
    revision: str  # the hub's commit, or hashes that identify weights and settings
    eos_ids: frozenset[int]


def _vicuna(size: str, gigabytes: str, revision: str) -> Target:
    return Target(
        name=f"vicuna-{size}-v1.3",
        licence="LLaMA licence, non-commercial",
        chat_template="vicuna",
        source=f"lmsys/vicuna-{size}-v1.3 on the hub",
        kind="hub",
        size=f"{gigabytes} GB",
        location=f"lmsys/vicuna-{size}-v1.3",
        revision=revision,
    )


def _llama_2_chat(size: str, gigabytes: str, revision: str) -> Target:
    return Target(
        name=f"llama-2-{size}-chat",
        licence="Llama 2 Community License",
        chat_template="llama-2-chat",
        source=f"meta-llama/Llama-2-{size}-chat-hf on the hub, gated",
        kind="hub",
        size=f"{gigabytes} GB",
        location=f"meta-llama/Llama-2-{size}-chat-hf",
        revision=revision,
    )


LLAMA_3_1 = Target(
    name="llama-3.1-8b-instruct",
    licence="Llama 3.1 Community License",
    chat_template=None,
    source="meta-llama/Llama-3.1-8B-Instruct on the hub, gated",
    kind="hub",
    size="16.1 GB",
    location="meta-llama/Llama-3.1-8B-Instruct",
    revision="0e9e39f249a16976918f6564b8830bc894c89659",
)


def _synthetic(name: str) -> Target:
    source = (
        "generated, weights set by hand" if "predictable" in name else "generated, random weights"
    )
    return Target(name, "Apache-2.0", None, source, "synthetic")


def packaged_target(package: packaged.Package) -> Target:
    return Target(
        name=package.name,
        licence=package.licence,
        chat_template=None,
        source=f"{package.model}, GGUF {package.form} from packages of the index, dequantised",
        kind="package",
        size=f"{package.checkpoint_size / 1e9:.1f} GB",
        revision=package.sha256,
    )


TARGETS = {
    target.name: target
    for target in (
        *map(packaged_target, packaged.PACKAGES.values()),
        _vicuna("7b", "13.5", "236eeeab96f0dc2e463f2bebb7bb49809279c6d6"),
        _vicuna("13b", "26.0", "6566e9cb1787585d1147dcf4f9bc48f29e1328d2"),
        _vicuna("33b", "65.1", "ef8d6becf883fb3ce52e3706885f761819477ab4"),
        _llama_2_chat("7b", "13.5", "f5db02db724555f92da89c216ac04704f23d4590"),
        _llama_2_chat("13b", "26.0", "a2cb7a712bb6e5e736ca7f8cd98167f81a0b5bd8"),
        LLAMA_3_1,
        *map(_synthetic, synthetic.NAMES),
    )
}
SMOLLM2 = TARGETS[DEFAULT]

# A smaller target with the same tokenizer, which can draft for a larger one.
SMALLER = {
    "qwen2.5-coder-1.5b": "qwen2.5-coder-0.5b",
    "vicuna-13b-v1.3": "vicuna-7b-v1.3",
    "vicuna-33b-v1.3": "vicuna-7b-v1.3",
    "llama-2-13b-chat": "llama-2-7b-chat",
    "synthetic:llama-13b": "synthetic:llama-7b",
    "synthetic:llama-33b": "synthetic:llama-7b",
    "synthetic:qwen2.5-1.5b": "synthetic:qwen2.5-0.5b",
}


def resolve(name: str, chat_template: str | None = None) -> Target:
    """The target of that name: registered, a folder with a checkpoint, a GGUF file or a model id
    of the hub.

    `chat_template` replaces the target's. Raises UsageError for anything else, with the registered
    names and the closest of them.
    """
    target = _resolve(name)
    return target if chat_template is None else replace(target, chat_template=chat_template)


def _resolve(name: str) -> Target:
    if name in TARGETS:
        return TARGETS[name]
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{name} holds no config.json; give the folder of a transformers checkpoint"
            )
        path = path.resolve()
        source = "local folder"
        location = str(path)
        return Target(
            path.name, "see its files", None, source, "folder", location=location, path=name
        )
    if name and path.is_file():
        return replace(_file(path.resolve()), path=name)
    if HUB_ID.fullmatch(name):
        registered = (target for target in TARGETS.values() if target.location == name)
        new = Target(name, "see its page", None, f"{name} on the hub", "hub", location=name)
        return next(registered, new)
    raise UsageError(
        f"unknown model {name!r}; known are {', '.join(TARGETS)}, folders of transformers "
        f"checkpoints, .gguf files and hub ids (organisation/name){suggestion(name, TARGETS)}"
    )


def _file(path: Path) -> Target:
    if path.suffix != ".gguf":
        raise UsageError(
            f"{path.name} is a file; give the folder of a transformers checkpoint, or a .gguf file"
        )
    gguf.check(path)
    return Target(path.stem, "see its file", None, "local GGUF file", "gguf", location=str(path))


def check(target: Target) -> None:
    """UsageError for what can be refused without loading weights: files that are missing or broken,
    and a form of model that no engine takes."""
    if target.kind == "folder":
        files.check(target.name, Path(_location(target)))
    found = config(target)
    if found is not None and (reason := forms.unsupported(found, EAGER)):
        raise UsageError(f"{target.name} cannot run: {reason}")


def status(target: Target) -> str | None:
    """None if `load` needs no network, else what it has to fetch, or why it cannot load."""
    if target.kind == "package":
        return packaged.status(packaged.PACKAGES[target.name])
    if target.kind == "hub":
        find = partial(_in_hub_cache, target)
        ready = find("config.json") and files.weights(find)
        return None if ready else f"to be fetched on first use ({target.source})"
    if target.kind == "folder":
        try:
            files.check(target.name, Path(_location(target)))
        except UsageError as error:
            return str(error)
    return None


def config(target: Target) -> "PretrainedConfig | None":
    """The transformers config, without loading weights; None if that would need a network.

    UsageError where it is not that of a known model.
    """
    if target.synthetic:
        return synthetic.config(target.name)
    folder = _on_disk(target, "config.json")
    if folder is None and target.kind == "gguf":
        return gguf.config(target.name, Path(_location(target)))
    return None if folder is None else loading.load_config(loading.Source(target.name, folder))


def tokenizer(target: Target) -> "PreTrainedTokenizerBase | None":
    """The one that `load` gives, without loading weights; None if that would need a network."""
    if target.synthetic:
        shape = synthetic.config(target.name)
        return synthetic.tokenizer(shape.vocab_size, shape.max_position_embeddings)
    folder = _on_disk(target, "tokenizer_config.json")
    return None if folder is None else loading.load_tokenizer(loading.Source(target.name, folder))


def vocabulary(target: Target) -> Mapping[str, int] | None:
    """The ids of its tokenizer's tokens, without loading weights; None as in `tokenizer`."""
    found = tokenizer(target)
    return None if found is None else found.get_vocab()


def revision(target: Target) -> str:
    """The revision that `load` would load, without loading it.

    Raises UsageError for a model of the hub that is neither reachable nor in the local cache.
    """
    if target.kind == "synthetic":
        return synthetic.recipe(target.name)
    if converted := _converted(target):
        return converted.gguf_sha256
    if target.kind == "hub":
        return _commit(target, hub.reachable())  # of every file
    return files.revision(Path(_location(target)))


def load(target: Target, device: str, dtype: "torch.dtype", parallel: str = "none") -> Loaded:
    """Loads model and tokenizer; fetches what is missing. `parallel` as in `loading.placed`.

    Raises UsageError when it cannot: no network, no access, not a causal LM, weights that are not
    exactly the model's.
    """
    check(target)
    if target.kind == "synthetic":
        found = revision(target)
        model, own = synthetic.build(target.name, device, dtype, parallel)
    elif target.kind == "hub":
        online = hub.reachable()
        found = _commit(target, online)
        check(target)  # again: its config may have been fetched just now
        source = loading.Source(target.name, _location(target), found, online)
        model, own = loading.load(source, device, dtype, parallel)
    else:
        folder = str(_folder(target))
        found = revision(target)
        model, own = loading.load(loading.Source(target.name, folder), device, dtype, parallel)
    eos_ids = _eos_ids(model, own)
    loading.check_eos(target.name, eos_ids, model.config.get_text_config().vocab_size)
    return Loaded(target, model, own, found, eos_ids)


def _eos_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    listed = model.generation_config.eos_token_id  # an id, a list of ids or None
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _commit(target: Target, online: bool) -> str:
    """The commit that the hub, or its local cache, has for the target's revision."""
    from huggingface_hub import errors, hf_hub_download

    where = f"{target.name}: {_location(target)}"
    try:
        path = hf_hub_download(
            _location(target),
            "config.json",
            revision=target.revision,
            local_files_only=not online,
        )
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


def _converted(target: Target) -> Converted | None:
    """The cached checkpoint of a target that comes as GGUF; None for any other."""
    if target.kind == "package":
        return packaged.PACKAGES[target.name].cached
    if target.kind == "gguf":
        return gguf.cached(target.name, Path(_location(target)))
    return None


def _folder(target: Target) -> Path:
    """The folder of the checkpoint; fetches and converts what comes as GGUF."""
    if target.kind == "package":
        return packaged.ensure(packaged.PACKAGES[target.name])
    location = Path(_location(target))
    return gguf.ensure(target.name, location) if target.kind == "gguf" else location


def _on_disk(target: Target, name: str) -> str | None:
    """The folder on this machine with that file of the target; None where it is not fetched."""
    if target.kind == "folder":
        return _location(target)
    if converted := _converted(target):
        return str(converted.folder) if converted.ready() else None
    path = _in_hub_cache(target, name)
    return None if path is None else str(path.parent)


def _in_hub_cache(target: Target, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(_location(target), name, revision=target.revision)
    return Path(path) if isinstance(path, str) else None
