"""GGUF files: read by transformers, written as plain checkpoints of one float dtype.

The tokenizer of a byte-level vocabulary is built here where its pre-tokenizer is known, because
transformers (5.17 to 5.23) ignores "smollm", and which tokens are special and which one is EOS
depends on its version.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import UsageError, first_line
from bench.files import cache_root, sha256_of_file
from bench.targets import loading
from bench.targets.converted import Converted, check_space, note

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

MAGIC = b"GGUF"
ENDS = ("eos", "eot", "eom")  # fields that name a token that ends an answer
COMMON_END = "<|endoftext|>"  # ends an answer too, where it is a control token
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # role: field
Fields = Mapping[str, Any]  # the metadata of a file: values by key


class Tensor(NamedTuple):
    """How a file stores a tensor."""

    name: str
    kind: str  # of its numbers, such as F32 or Q4_K
    shape: Sequence[int]


class Version(NamedTuple):
    """A file as it is at a time; equal until it is changed."""

    path: Path
    size: int
    changed: int  # ns


def check(path: Path) -> None:
    """UsageError for a file that cannot be opened, or does not start as GGUF does."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read ({error.strerror})") from error
    if start != MAGIC:
        raise UsageError(f"{path.name} is no GGUF file; fetch it again")


def sha256(path: Path) -> str:
    """Of a local file; read once in a process, as long as it does not change."""
    return _sha256(_now(path))


def config(name: str, path: Path) -> PretrainedConfig:
    """The transformers config that the file's metadata gives, without its weights; read once in a
    process. UsageError for an architecture that transformers does not convert, and for a file that
    is cut short."""
    return _config(name, _now(path))


def cached(name: str, path: Path) -> Converted:
    """The converted checkpoint of a local file."""
    found = sha256(path)
    return Converted(name, cache_root() / "gguf" / found[:16], found)


def ensure(name: str, path: Path) -> Path:
    """The folder of a local file's converted checkpoint; converts when needed."""

    def make(scratch: Path) -> Path:
        convert(name, path, scratch / "checkpoint")
        return scratch / "checkpoint"

    return cached(name, path).ensure(make)


def convert(
    name: str,
    path: Path,
    out: Path,
    dtype: str | None = None,
    ends: Sequence[str] | None = None,
) -> None:
    """Writes the file's model and tokenizer to `out` as a plain transformers checkpoint.

    Args:
        name: the target's, for messages.
        dtype: of the weights; by default bfloat16 for quantised ones, else the file's own.
        ends: tokens that end an answer; by default those that the file names, and `<|endoftext|>`
            where it has that one.

    Raises UsageError for a file that cannot be read, for one whose weights are not exactly the
    model's, and where the disk has no room.
    """
    note(name, "converting to a transformers checkpoint (once)")
    with _refused(name, path):
        from gguf import GGUFReader

        reader = GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        tensors = [Tensor(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors]
        del reader  # it holds several objects for each token and merge
        dtype = dtype or _dtype(tensors)
        check_space(name, sum(math.prod(t.shape) for t in tensors) * BYTES[dtype])
        tokenizer = _tokenizer(path, fields)
        eos = tokenizer.convert_tokens_to_ids(list(ends or _ends(fields)))
        model = _model(name, path, dtype)
    if _scales_positions(fields, tensors) and not _scaled(model.config):
        raise UsageError(
            f"{name} cannot be converted: transformers drops the RoPE scaling of its GGUF file; "
            "give the original checkpoint"
        )
    model.generation_config.eos_token_id = eos[0] if len(eos) == 1 else eos or None
    with loading.silence(bars=sys.stderr.isatty()):
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    if "quantization_config" in json.loads((out / "config.json").read_text("utf-8")):
        raise RuntimeError(f"transformers kept a quantization_config in the dequantised {name}")


def _model(name: str, path: Path, dtype: str) -> PreTrainedModel:
    """Dequantised, on the CPU. UsageError where the file lacks a tensor of the model."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with loading.silence(bars=sys.stderr.isatty()):
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    if faults := loading.faults(report):
        raise UsageError(f"{name} cannot be converted: the weights in {path.name} {faults}")
    loaded: PreTrainedModel = model
    return loaded


def _dtype(tensors: Sequence[Tensor]) -> str:
    """Of the matrices, where none is quantised; bfloat16 otherwise."""
    kinds = {tensor.kind for tensor in tensors if len(tensor.shape) > 1}
    if not kinds <= PLAIN.keys():
        return "bfloat16"
    return PLAIN[kinds.pop()] if len(kinds) == 1 else "float32"


def _scales_positions(fields: Fields, tensors: Sequence[Tensor]) -> bool:
    """Whether the file asks for RoPE scaling, by a setting or by factors."""
    setting = fields.get(f"{fields['general.architecture']}.rope.scaling.type")
    return setting not in (None, "none") or any(t.name.startswith("rope_") for t in tensors)


def _scaled(config: PretrainedConfig) -> bool:
    return bool(config.rope_parameters["rope_type"] != "default")


def _tokenizer(path: Path, fields: Fields) -> PreTrainedTokenizerFast:
    """With the file's control tokens as special ones, its BOS, EOS and chat template."""
    from gguf import TokenType
    from tokenizers import AddedToken
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    core = _byte_level(fields)
    if core is None:
        with loading.silence():
            core = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    core.add_special_tokens(_marked(fields, TokenType.CONTROL))
    plain = _marked(fields, TokenType.USER_DEFINED)
    core.add_tokens([AddedToken(token, normalized=False) for token in plain])
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {role: fields.get(f"tokenizer.ggml.{key}_token_id") for role, key in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=fields.get("tokenizer.chat_template"),
        model_max_length=fields[f"{fields['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": tokens[i] for role, i in ids.items() if i is not None},
    )
    if len(tokenizer) > len(tokens):
        raise ValueError("its tokenizer has special tokens that transformers does not read")
    return tokenizer


def _byte_level(fields: Fields) -> Tokenizer | None:
    """Byte-level BPE with the pre-tokenizer that the file names; None if that one is not known."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    if fields["tokenizer.ggml.model"] != "gpt2":
        return None
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE(vocab=ids, merges=merges))
    core.decoder = decoders.ByteLevel()
    split: pre_tokenizers.PreTokenizer
    match fields.get("tokenizer.ggml.pre"):
        case "smollm":
            steps: list[PreTokenizer] = [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        case "qwen2":
            core.normalizer = normalizers.NFC()
            steps = [
                pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        case _:
            return None
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return core


def _ends(fields: Fields) -> list[str]:
    """The tokens that end an answer, as far as the file tells."""
    from gguf import TokenType

    ids = (fields.get(f"tokenizer.ggml.{end}_token_id") for end in ENDS)
    ends = [fields["tokenizer.ggml.tokens"][i] for i in ids if i is not None]
    ends += [token for token in _marked(fields, TokenType.CONTROL) if token == COMMON_END]
    return list(dict.fromkeys(ends))


def _marked(fields: Fields, kind: int) -> list[str]:
    """The tokens that the file marks as of that kind."""
    kinds = fields.get("tokenizer.ggml.token_type", [])
    return [t for t, k in zip(fields["tokenizer.ggml.tokens"], kinds, strict=False) if k == kind]


@contextlib.contextmanager
def _refused(name: str, path: Path) -> Iterator[None]:
    """What a broken file raises, as a UsageError of one line; no memory and a failing disk stay
    what they are."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # libraries raise almost anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UsageError(
            f"{name} cannot be converted: {first_line(error)}; {path.name} must be an intact GGUF "
            "file of an architecture that transformers converts"
        ) from error


def _now(path: Path) -> Version:
    found = path.stat()
    return Version(path, found.st_size, found.st_mtime_ns)


@functools.cache
def _sha256(version: Version) -> str:
    return sha256_of_file(version.path)


@functools.cache
def _config(name: str, version: Version) -> PretrainedConfig:
    from transformers import AutoConfig

    path = version.path
    with _refused(name, path), loading.silence():
        found: PretrainedConfig = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    return found
