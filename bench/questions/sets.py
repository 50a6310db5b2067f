"""Loading question sets: by registered name or by path, from disk or downloaded."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

from bench.cli import suggestion
from bench.errors import UsageError, one_line
from bench.files import sha256_of_bytes
from bench.questions import registry
from bench.questions.parsing import Questions, parse
from bench.questions.registry import QuestionSet

DATA_DIR_VARIABLE: Final = "CHIMERA_BENCH_DATA"


def load(name_or_path: str, data_dir: Path | None) -> Questions:
    """A registered set by name, or the user's own JSONL by path.

    A registered set that does not ship with the package is taken from `<data_dir>/<name>.jsonl`
    (the environment variable CHIMERA_BENCH_DATA is the default of `data_dir`), else from the
    download cache, else from its repository. Its bytes must have the registered checksum.

    Raises UsageError for an unknown name, a file that cannot be read or fetched, a wrong checksum
    and, with its line number, anything in the file that is not a question in FastChat's form.
    """
    entry = registry.REGISTRY.get(name_or_path)
    if entry is None:
        return _load_path(name_or_path)
    path = _local(entry, data_dir)
    if path is None:
        return parse(entry.name, _download(entry), origin=entry.name)
    raw = _read(path)
    if sha256_of_bytes(raw) != entry.sha256:
        raise UsageError(
            f"{path} is not the registered set {entry.name!r}: expected sha256 {entry.sha256},"
            f" found {sha256_of_bytes(raw)}; replace the file"
        )
    return parse(entry.name, raw, origin=str(path))


def _load_path(name_or_path: str) -> Questions:
    path = Path(name_or_path)
    if path.name == name_or_path and path.suffix != ".jsonl" and not path.exists():
        raise _unknown(name_or_path)
    raw = _read(path)
    registered = registry.REGISTRY.get(path.stem)
    if registered is not None and sha256_of_bytes(raw) != registered.sha256:
        # Records name a set, so another file must not take the name of the published one.
        raise UsageError(
            f"{path} has the name of the registered set {path.stem!r} but other content; rename it"
        )
    return parse(path.stem, raw, origin=str(path))


def status(name: str, data_dir: Path | None) -> str | None:
    """None if the registered set can be loaded without a network, else a short reason."""
    if name not in registry.REGISTRY:
        raise _unknown(name)
    entry = registry.REGISTRY[name]
    path = _local(entry, data_dir)
    if path is not None:
        return (
            None if sha256_of_bytes(_read(path)) == entry.sha256 else f"{path} has a wrong checksum"
        )
    cached = _cached(entry)
    if cached.is_file() and sha256_of_bytes(_read(cached)) == entry.sha256:
        return None
    return "to be fetched on first use"


def spread(questions: Questions, limit: int | None) -> Questions:
    """At most `limit` questions, spread evenly over the categories; all of them for None.

    Questions are taken in rounds, one from each category, in file order; the selection keeps the
    file's order. Raises UsageError for a limit below 1.
    """
    if limit is None:
        return questions
    if limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    by_category: dict[str, list[int]] = {}
    for index, category in enumerate(questions.dataset["category"]):
        by_category.setdefault(category, []).append(index)
    rounds = zip_longest(*by_category.values())
    order = [index for one_round in rounds for index in one_round if index is not None]
    return replace(questions, dataset=questions.dataset.select(sorted(order[:limit])))


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"unknown question set {name!r}; known are {', '.join(registry.REGISTRY)} and paths of "
        f"JSONL files{suggestion(name, registry.REGISTRY)}"
    )


# Files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise UsageError(f"the question set {path} is a folder; give a JSONL file") from None
    except OSError as error:
        raise UsageError(f"cannot read the question set {path}: {error.strerror}") from error


def _local(entry: QuestionSet, data_dir: Path | None) -> Path | None:
    """The file of a packaged set, or of another in the user's folder; None if it is not there."""
    if entry.source is None:
        return Path(__file__).with_name(f"{entry.name}.jsonl")
    from_environment = os.environ.get(DATA_DIR_VARIABLE)
    if data_dir is None and from_environment:
        data_dir = Path(from_environment)
    if data_dir is None:
        return None
    if not data_dir.is_dir():
        raise UsageError(f"the data folder {data_dir} does not exist; give another as --data-dir")
    path = data_dir / f"{entry.name}.jsonl"
    return path if path.exists() else None


# Downloads, by way of the `datasets` library and its cache


def _url(entry: QuestionSet) -> str:
    if entry.source is None:
        raise ValueError(f"the set {entry.name!r} ships with the package")
    return entry.source.url


def _cached(entry: QuestionSet) -> Path:
    """Where the library keeps the downloaded file: by its URL. It has no public look-up."""
    import datasets  # here, since it is slow to import

    name = datasets.utils.file_utils.hash_url_to_filename(_url(entry))
    return Path(datasets.config.DOWNLOADED_DATASETS_PATH, name)


def _download(entry: QuestionSet) -> bytes:
    """The set's bytes through the download cache; a corrupt cached file is fetched once more."""
    raw = _fetch(entry, force=False)
    if sha256_of_bytes(raw) != entry.sha256:
        raw = _fetch(entry, force=True)
    if sha256_of_bytes(raw) != entry.sha256:
        raise UsageError(
            f"{_url(entry)} is not the registered set {entry.name!r}: expected sha256"
            f" {entry.sha256}, found {sha256_of_bytes(raw)}; give a folder with the right"
            f" {entry.name}.jsonl as --data-dir"
        )
    return raw


def _fetch(entry: QuestionSet, *, force: bool) -> bytes:
    import datasets  # here, since it is slow to import

    # The URL names a commit, so no ETag is needed; without one a cached file needs no network.
    config = datasets.DownloadConfig(use_etag=False, force_download=force, disable_tqdm=True)
    try:
        path = datasets.DownloadManager(download_config=config).download(_url(entry))
    except Exception as error:  # OSError, or whatever the library's HTTP client raises
        raise UsageError(
            f"cannot fetch the question set {entry.name!r} ({one_line(error.__cause__ or error)});"
            f" go online, or save {_url(entry)} as {entry.name}.jsonl in a folder and give the"
            " folder as --data-dir"
        ) from error
    return _read(Path(path))
