"""Question sets: where each one comes from, reading it line by line, choosing from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypedDict

from bench.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

DATA_DIR_VARIABLE: Final = "CHIMERA_BENCH_DATA"
UNCATEGORISED: Final = "uncategorised"


@dataclass(frozen=True)
class Source:
    """One file of a public repository, pinned by commit."""

    repository: str
    commit: str
    path: str

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{self.path}"


@dataclass(frozen=True)
class QuestionSet:
    """A registered set; `source` is None for one that ships with the package."""

    name: str
    source: Source | None
    sha256: str
    licence: str
    questions: int
    description: str


@dataclass(frozen=True)
class Questions:
    """A loaded set, or a choice from it; `sha256` is that of the whole file.

    `dataset` has the columns question_id (string), category (string) and turns (list of strings).
    """

    name: str
    sha256: str
    dataset: Dataset


class Row(TypedDict):
    question_id: str
    category: str
    turns: list[str]


_APACHE: Final = "Apache-2.0"


def _fastchat(name: str, sha256: str, description: str) -> QuestionSet:
    path = f"fastchat/llm_judge/data/{name}/question.jsonl"
    source = Source("lm-sys/FastChat", "0e6d3e4beaab66f4d3f93db72541a4abab8af28d", path)
    return QuestionSet(name, source, sha256, _APACHE, 80, description)


def _eagle(name: str, sha256: str, description: str) -> QuestionSet:
    path = f"eagle/data/{name}/question.jsonl"
    source = Source("SafeAILab/EAGLE", "cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b", path)
    return QuestionSet(name, source, sha256, _APACHE, 80, description)


_SPEC_BENCH: Final = Source(
    repository="hemingkx/Spec-Bench",
    commit="fd2c1cd7d2201ef71db4c5f4e455008f017967bf",
    path="data/spec_bench/question.jsonl",
)
_SETS: Final = (
    QuestionSet(
        "mini",
        None,
        "9a1bf15c090c1e3b900b37fa10040c952bd31b100d3c54465784c508aa674a9e",
        _APACHE,
        40,
        "original two-turn questions in eight categories",
    ),
    QuestionSet(
        "tuning",
        None,
        "ef6a2af0dd6a67d6ab6f63a152183d0901923cb5400fd3d62c7e215c9d60d2ed",
        _APACHE,
        32,
        "original two-turn questions for choosing parameters; in no report",
    ),
    _fastchat(
        "mt_bench",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        "MT-Bench: two turns, eight categories",
    ),
    _fastchat(
        "vicuna_bench",
        "c248c5c98ba45bb0c2aadae2f270e643bd32679c6c306a3b2a503ac4254cdaa5",
        "Vicuna-Bench: one turn, nine categories",
    ),
    QuestionSet(
        "spec_bench",
        _SPEC_BENCH,
        "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
        _APACHE,
        480,
        "Spec-Bench: MT-Bench, translation, summarization, QA, mathematics and RAG",
    ),
    _eagle(
        "humaneval",
        "ce0244e2b228339e9a11afc63a151719beede1e389fdaec7cd9751d33902180e",
        "functions to complete, from HumanEval",
    ),
    _eagle(
        "gsm8k",
        "a55920b2f2aac724241124c59e5b8e8168dbbeb2ab0fdbee17d5b0ab6db5ff27",
        "word problems, from GSM8K",
    ),
    _eagle(
        "alpaca",
        "8ad3e5a7fc61b88d8e25edb81a52a2ce00a04494d5694c122cb11a5cc26a00df",
        "short instructions, from Alpaca",
    ),
    _eagle(
        "qa",
        "04252e41ab00bcc03b11940b4a3766cf40ae0b76a09c4f56968ba952f0b029f3",
        "factual questions, from Natural Questions",
    ),
    _eagle(
        "sum",
        "916876f0c42f938a944de96eed16e51425f29f27438cca5c9ef4737c0fedf771",
        "news articles to summarize, from CNN/Daily Mail",
    ),
)
REGISTRY: Final[Mapping[str, QuestionSet]] = MappingProxyType(
    {entry.name: entry for entry in _SETS}
)


def load(name_or_path: str, data_dir: Path | None) -> Questions:
    """A registered set by name, or one's own JSONL by path.

    A registered set that does not ship with the package is taken from `<data_dir>/<name>.jsonl`
    (the variable CHIMERA_BENCH_DATA stands in for `data_dir`), else from the download cache, else
    from its repository. Its bytes must have the registered checksum.

    Raises UsageError for an unknown name, a file that cannot be read or fetched, a wrong checksum
    and, with its line number, anything in the file that is no question in FastChat's form.
    """
    entry = REGISTRY.get(name_or_path)
    if entry is None:
        return _load_own(name_or_path)
    path = _local(entry, data_dir)
    if path is None:
        return _parse(entry.name, _download(entry), origin=entry.name)
    raw = _read(path)
    if _sha256(raw) != entry.sha256:
        raise UsageError(
            f"{path} is not the registered set {entry.name!r}: expected sha256 {entry.sha256},"
            f" found {_sha256(raw)}; replace the file"
        )
    return _parse(entry.name, raw, origin=str(path))


def status(name: str, data_dir: Path | None) -> str | None:
    """None if the registered set can be loaded without a network, else a short reason."""
    if name not in REGISTRY:
        raise _unknown(name)
    entry = REGISTRY[name]
    try:
        library = _library()
    except UsageError as error:
        return str(error)
    path = _local(entry, data_dir)
    if path is not None:
        return None if _sha256(_read(path)) == entry.sha256 else f"{path} has a wrong checksum"
    # The library's cache names a file by its URL; it offers no public look-up.
    file_name = library.utils.file_utils.hash_url_to_filename(_url(entry))
    cached = Path(library.config.DOWNLOADED_DATASETS_PATH) / file_name
    if cached.is_file() and _sha256(_read(cached)) == entry.sha256:
        return None
    return "to be fetched on first use"


def spread(questions: Questions, limit: int | None) -> Questions:
    """At most `limit` questions, spread evenly over the categories; all of them for None.

    Questions are taken in rounds, one a category, in file order; the choice keeps the file's order.
    Raises UsageError for a limit below 1.
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


def _load_own(name_or_path: str) -> Questions:
    path = Path(name_or_path)
    if path.name == name_or_path and path.suffix != ".jsonl" and not path.is_file():
        raise _unknown(name_or_path)
    raw = _read(path)
    registered = REGISTRY.get(path.stem)
    if registered is not None and _sha256(raw) != registered.sha256:
        # Records know a set by its name: another file must not pass for the published one.
        raise UsageError(
            f"{path} has the name of the registered set {path.stem!r} but other content; rename it"
        )
    return _parse(path.stem, raw, origin=str(path))


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"unknown question set {name!r}; choose one of {', '.join(REGISTRY)},"
        " or give the path of a JSONL file"
    )


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the question set {path}: {error.strerror}") from error


def _library() -> Any:
    """The `datasets` module; imported on first use, since it is slow to import."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError("question sets need the datasets library: pip install datasets") from error
    return datasets


def _local(entry: QuestionSet, data_dir: Path | None) -> Path | None:
    """The file of a packaged set, or that of another in the user's folder, None if not there."""
    if entry.source is None:
        return Path(__file__).with_name(f"{entry.name}.jsonl")
    from_environment = os.environ.get(DATA_DIR_VARIABLE)
    if data_dir is None and from_environment:
        data_dir = Path(from_environment)
    if data_dir is None:
        return None
    if not data_dir.is_dir():
        raise UsageError(f"the data folder {data_dir} does not exist; name another by --data-dir")
    path = data_dir / f"{entry.name}.jsonl"
    return path if path.is_file() else None


def _url(entry: QuestionSet) -> str:
    if entry.source is None:
        raise ValueError(f"the set {entry.name!r} ships with the package")
    return entry.source.url


def _download(entry: QuestionSet) -> bytes:
    """The set's bytes by way of the download cache; a corrupt cached file is fetched once more."""
    raw = _fetch(entry, force=False)
    if _sha256(raw) != entry.sha256:
        raw = _fetch(entry, force=True)
    if _sha256(raw) != entry.sha256:
        raise UsageError(
            f"{_url(entry)} is not the registered set {entry.name!r}: expected sha256"
            f" {entry.sha256}, found {_sha256(raw)}; name a folder with a right {entry.name}.jsonl"
            " by --data-dir"
        )
    return raw


def _fetch(entry: QuestionSet, *, force: bool) -> bytes:
    library = _library()
    # The URL names a commit, so no ETag is needed; without one a cached file needs no network.
    config = library.DownloadConfig(use_etag=False, force_download=force, disable_tqdm=True)
    try:
        path = library.DownloadManager(download_config=config).download(_url(entry))
    except Exception as error:  # OSError, or whatever the library's HTTP client of the day raises
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise UsageError(
            f"cannot fetch the question set {entry.name!r} ({reason}); go online, or put"
            f" {_url(entry)} into a folder as {entry.name}.jsonl and name the folder by --data-dir"
        ) from error
    return _read(Path(path))


def _parse(name: str, raw: bytes, origin: str) -> Questions:
    """The questions in `raw`, one JSON object a line; `origin` is what an error calls the file."""
    rows: list[Row] = []
    lines: dict[str, int] = {}  # question_id -> number of its line
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{origin}, line {number}"
        row = _row(line, where)
        if row["question_id"] in lines:
            raise UsageError(
                f"{where}: question_id {row['question_id']!r} is that of"
                f" line {lines[row['question_id']]} too; give each question its own"
            )
        lines[row["question_id"]] = number
        rows.append(row)
    if not rows:
        raise UsageError(f"{origin}, line 1: the file is empty; it needs one question a line")
    library = _library()
    text = library.Value("string")
    features = library.Features(question_id=text, category=text, turns=library.List(text))
    return Questions(name, _sha256(raw), library.Dataset.from_list(rows, features=features))


def _row(line: bytes, where: str) -> Row:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: malformed JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a JSON object with question_id, category and turns")
    identity = value.get("question_id")
    if type(identity) is not int and not _is_text(identity):
        raise UsageError(f"{where}: question_id must be an integer or a string with text in it")
    category = value.get("category", "")
    if category != "" and not _is_text(category):
        raise UsageError(f"{where}: category must be a string")
    turns = value.get("turns")
    if not isinstance(turns, list) or not turns or not all(map(_is_text, turns)):
        raise UsageError(f"{where}: turns must be a list of one or more strings with text in them")
    return {
        "question_id": str(identity),
        "category": category or UNCATEGORISED,
        "turns": turns,
    }


def _is_text(value: object) -> bool:
    """A string with something in it that UTF-8 can hold: JSON escapes can spell lone surrogates."""
    return (
        isinstance(value, str)
        and value.strip() != ""
        and value == value.encode(errors="replace").decode()
    )
