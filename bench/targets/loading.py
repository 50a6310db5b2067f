"""Strict loading of transformers checkpoints: every tensor that the model needs and no other."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.decoding.drafts.checkpoint import some
from bench.decoding.spread import layer_map
from bench.distributed import world
from bench.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Buffers that older checkpoints carry and that models now compute.
COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is.

    Attributes:
        name: the target's, for messages.
        location: a folder, or the hub's id.
        revision: the hub's commit; None for a folder.
        online: whether the hub may be asked.
    """

    name: str
    location: str
    revision: str | None = None
    online: bool = False

    def read(self, kind: Any, **settings: Any) -> Any:
        """`kind.from_pretrained`, without the code that a checkpoint may carry."""
        with silence(bars=self.online):
            return kind.from_pretrained(
                self.location,
                revision=self.revision,
                local_files_only=not self.online,
                trust_remote_code=False,
                **settings,
            )


def load(
    source: Source, device: str, dtype: torch.dtype, parallel: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """UsageError where one of them does not load."""
    tokenizer = load_tokenizer(source)
    return load_model(source, device, dtype, parallel), tokenizer


def load_config(source: Source) -> PretrainedConfig:
    """UsageError where it does not load."""
    from transformers import AutoConfig

    with refused(source.name):
        config: PretrainedConfig = source.read(AutoConfig)
    return config


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """UsageError where it does not load."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = source.read(AutoTokenizer)
    except Exception as error:  # a broken file raises almost anything
        raise UsageError(_tokenizer_problem(source, error)) from error
    return tokenizer


def load_model(
    source: Source, device: str, dtype: torch.dtype, parallel: str = "none"
) -> PreTrainedModel:
    """In eval mode, without gradients; `parallel` as in `placed`. UsageError, with the tensors'
    names, unless the files hold exactly what the model needs."""
    from transformers import AutoModelForCausalLM

    with refused(source.name):
        model, report = source.read(
            AutoModelForCausalLM,
            dtype=dtype,
            attn_implementation="sdpa",
            **placed(source, device, parallel),
            ignore_mismatched_sizes=True,  # reported, and refused here
            output_loading_info=True,
        )
    if found := faults(report):
        raise UsageError(f"{source.name} cannot be loaded: its weights {found}; fetch them again")
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded


def placed(source: Source, device: str, parallel: str) -> dict[str, Any]:
    """Where `from_pretrained` puts a model: on `device`, with no second copy in host memory; `tp`:
    a shard of each matrix on the card of each process; `layers`: its layers over all cards."""
    if parallel == "tp":
        _check_heads(source, world().size)
        return {"tp_plan": "auto"}
    if parallel == "none":
        return {"device_map": device}
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(load_config(source))
    return {"device_map": layer_map(empty, torch.cuda.device_count())}


def _check_heads(source: Source, processes: int) -> None:
    """UsageError where the key-value heads are not a multiple of the processes."""
    text = load_config(source).get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % processes:
        raise UsageError(
            f"{source.name} has {heads} key-value heads, which {processes} processes cannot share "
            "equally; launch a divisor of them, or use --parallel layers"
        )


def faults(report: dict[str, Any]) -> str:
    """What is wrong with a checkpoint's tensors, by transformers' loading report; or nothing."""
    found = []
    if missing := sorted(report["missing_keys"]):
        found.append(f"lack {some(missing)}")
    if unexpected := sorted(k for k in report["unexpected_keys"] if not COMPUTED.search(k)):
        found.append(f"have {some(unexpected)}, which the model does not")
    if mismatched := sorted(report["mismatched_keys"]):
        found.append(f"have other shapes than the config: {some(map(_mismatch, mismatched))}")
    if errors := report.get("error_msgs"):
        found.append(f"cannot be read: {some(map(str, errors))}")
    return " and ".join(found)


def _mismatch(entry: Any) -> str:
    key, found, expected = entry
    return f"{key} {list(found)}, not {list(expected)}"


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """What a broken file raises, as a UsageError of one line; out of memory stays what it is."""
    from torch import OutOfMemoryError

    try:
        yield
    except (UsageError, OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # libraries raise almost anything
        raise UsageError(f"{name} cannot be loaded: {first_line(error)}") from error


@contextlib.contextmanager
def silence(bars: bool = False) -> Iterator[None]:
    """Keeps what transformers logs and warns of off the terminal, and its bars unless `bars`, which
    show a download; its settings are put back."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        hidden = contextlib.nullcontext() if bars else contextlib.redirect_stderr(io.StringIO())
        with warnings.catch_warnings(), hidden:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def check_eos(name: str, eos_ids: Iterable[int], size: int) -> None:
    """UsageError for an end-of-sequence id that the model cannot emit."""
    outside = sorted(i for i in eos_ids if not 0 <= i < size)
    if outside:
        raise UsageError(
            f"{name} cannot be loaded: end-of-sequence id {outside[0]} lies outside its vocabulary "
            f"of {size}; correct generation_config.json or the tokenizer"
        )


def _tokenizer_problem(source: Source, error: BaseException) -> str:
    """Why the tokenizer does not load. Where the packages that read a tokenizer.model are missing,
    transformers names them or tiktoken whatever the reason, so a folder is looked at."""
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    folder = Path(source.location)
    bare = folder.is_dir() and not [*folder.glob("*.model"), *folder.glob("tokenizer.json")]
    if bare and re.search("tokenizer|sentencepiece|tiktoken", str(error), re.IGNORECASE):
        return f"{source.name} cannot be loaded: it has neither tokenizer.json nor tokenizer.model"
    readable = is_sentencepiece_available() and is_protobuf_available()
    if not readable and re.search("sentencepiece|protobuf|tiktoken", str(error), re.IGNORECASE):
        return (
            f"{source.name}: its tokenizer needs the packages sentencepiece and protobuf; "
            "run pip install 'chimera-bench[sentencepiece]'"
        )
    return f"{source.name} cannot be loaded: its tokenizer: {first_line(error)}"
