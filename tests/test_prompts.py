"""Question sets: packaged sets, valid and invalid files, downloads, limits over categories."""

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import pytest

from bench.errors import UsageError
from bench.questions import registry
from bench.questions.registry import REGISTRY, QuestionSet, Source
from bench.questions.sets import DATA_DIR_VARIABLE, load, spread, status

CATEGORIES = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)
PUBLISHED = os.environ.get(DATA_DIR_VARIABLE)
GOOD = b'{"question_id": 1, "category": "math", "turns": ["How much?", "And now?"]}\n'
TOY = QuestionSet(
    name="toy",
    source=Source("someone/questions", "0" * 40, "toy.jsonl"),
    sha256=hashlib.sha256(GOOD).hexdigest(),
    licence="Apache-2.0",
    questions=1,
    description="one question",
)


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The one file of an empty download cache, with `toy` registered; any request fails."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service\nnot known")

    folder = tmp_path / "downloads"
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder)
    monkeypatch.setattr(datasets.utils.file_utils, "fsspec_head", refuse)
    monkeypatch.setattr(registry, "REGISTRY", MappingProxyType({"toy": TOY}))
    assert TOY.source is not None
    folder.mkdir()
    return folder / hashlib.sha256(TOY.source.url.encode()).hexdigest()


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path, *contents: bytes) -> list[bool]:
    """Let each download give the next of `contents`; the list returned notes which were forced."""
    forced: list[bool] = []

    def download(self: Any, url: str) -> str:
        assert url.endswith("/toy.jsonl")
        path = folder / f"download-{len(forced)}"
        path.write_bytes(contents[len(forced)])
        forced.append(self.download_config.force_download)
        return str(path)

    monkeypatch.setattr(datasets.DownloadManager, "download", download)
    return forced


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def grams(name: str, length: int) -> set[tuple[str, ...]]:
    found = set()
    for turns in load(name, None).dataset["turns"]:
        for turn in turns:
            text = words(turn)
            found |= {tuple(text[i : i + length]) for i in range(len(text) - length + 1)}
    return found


# The packaged sets


@pytest.mark.parametrize(("name", "each"), [("mini", 5), ("tuning", 4)])
def test_packaged_set_is_whole(name: str, each: int) -> None:
    questions = load(name, None)
    assert questions.name == name
    assert questions.sha256 == REGISTRY[name].sha256
    assert len(questions.dataset) == REGISTRY[name].questions == 8 * each
    assert Counter(questions.dataset["category"]) == dict.fromkeys(CATEGORIES, each)
    assert len(set(questions.dataset["question_id"])) == 8 * each
    for turns in questions.dataset["turns"]:
        assert len(turns) == 2
        assert all(turn == turn.strip() != "" for turn in turns)
    assert status(name, None) is None


def test_tuning_shares_nothing_with_mini() -> None:
    assert not grams("mini", 8) & grams("tuning", 8)


def test_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        REGISTRY["mine"] = TOY  # type: ignore[index]


@pytest.mark.skipif(not PUBLISHED, reason=f"{DATA_DIR_VARIABLE} is not set")
@pytest.mark.parametrize(
    ("name", "categories", "turns"), [("mt_bench", 8, 2), ("vicuna_bench", 9, 1)]
)
def test_published_sets_match_their_pins(name: str, categories: int, turns: int) -> None:
    assert PUBLISHED is not None
    if not (Path(PUBLISHED) / f"{name}.jsonl").is_file():
        pytest.skip(f"no {name}.jsonl there")
    questions = load(name, Path(PUBLISHED))
    assert questions.sha256 == REGISTRY[name].sha256
    assert len(questions.dataset) == REGISTRY[name].questions
    assert len(set(questions.dataset["category"])) == categories
    assert {len(each) for each in questions.dataset["turns"]} == {turns}
    limited = spread(questions, categories)
    assert len(set(limited.dataset["category"])) == categories


# A user's file


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    second = {"question_id": "b", "turns": ["Qué\u2028?"], "reference": ["left out"]}
    third = {"question_id": 3, "category": "", "turns": ["x"]}
    lines = [GOOD.decode(), json.dumps(second, ensure_ascii=False) + "\r\n\n", json.dumps(third)]
    path.write_bytes("".join(lines).encode())
    questions = load(str(path), None)
    assert questions.name == "own"
    assert questions.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert questions.dataset.to_list() == [
        {"question_id": "1", "category": "math", "turns": ["How much?", "And now?"]},
        {"question_id": "b", "category": "uncategorised", "turns": ["Qué\u2028?"]},
        {"question_id": "3", "category": "uncategorised", "turns": ["x"]},
    ]


def test_own_file_needs_no_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "questions").write_bytes(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load("questions", None).name == "questions"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"question_id": 2, "turns": ["a"]', "malformed JSON: .* at column 34"),
        (b"question two", "malformed JSON"),
        (b'{"question_id": 2, "turns": ["\xff"]}', "not UTF-8"),
        (b'["a list"]', "expected a JSON object"),
        (b'{"turns": ["a"]}', "question_id must be"),
        (b'{"question_id": null, "turns": ["a"]}', "question_id must be"),
        (b'{"question_id": true, "turns": ["a"]}', "question_id must be"),
        (b'{"question_id": 2.5, "turns": ["a"]}', "question_id must be"),
        (b'{"question_id": " ", "turns": ["a"]}', "question_id must be"),
        (b'{"question_id": 2, "category": 7, "turns": ["a"]}', "category must be"),
        (b'{"question_id": 2}', "turns must be"),
        (b'{"question_id": 2, "turns": "a"}', "turns must be"),
        (b'{"question_id": 2, "turns": []}', "turns must be"),
        (b'{"question_id": 2, "turns": ["a", " "]}', "turns must be"),
        (b'{"question_id": 2, "turns": ["a", 3]}', "turns must be"),
        (b'{"question_id": 2, "turns": ["\\ud800"]}', "turns must be"),
        (b'{"question_id": "1", "turns": ["a"]}', "question_id '1' is also that of line 1"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(UsageError, match=rf"own\.jsonl, line 3: {complaint}") as caught:
        load(str(path), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"\n \n"])
def test_empty_file(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=r"own\.jsonl, line 1: the file is empty"):
        load(str(path), None)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.jsonl: No such file"):
        load(str(tmp_path / "none.jsonl"), None)


def test_unknown_name_lists_the_sets() -> None:
    with pytest.raises(
        UsageError,
        match=r"unknown question set 'mtbench'.*mini.*mt_bench.*paths.*did you mean 'mt_bench'",
    ):
        load("mtbench", None)
    with pytest.raises(UsageError, match="unknown question set 'mtbench'"):
        status("mtbench", None)


def test_own_file_cannot_pass_for_a_registered_set(tmp_path: Path) -> None:
    path = tmp_path / "mt_bench.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(UsageError, match="registered set 'mt_bench' but other content; rename"):
        load(str(path), None)


# The data folder, the cache and the network


@pytest.mark.usefixtures("cache")
def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.jsonl").write_bytes(GOOD)
    assert load("toy", tmp_path).dataset["question_id"][:] == ["1"]
    assert status("toy", tmp_path) is None
    assert status("toy", None) == "to be fetched on first use"
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    assert load("toy", None).sha256 == TOY.sha256
    with pytest.raises(UsageError, match=r"data folder .*nowhere does not exist"):
        load("toy", tmp_path / "nowhere")


@pytest.mark.usefixtures("cache")
def test_wrong_checksum_in_the_data_folder(tmp_path: Path) -> None:
    changed = GOOD.replace(b"much", b"many")
    (tmp_path / "toy.jsonl").write_bytes(changed)
    with pytest.raises(UsageError, match=r"toy\.jsonl is not the registered set 'toy'") as caught:
        load("toy", tmp_path)
    assert f"expected sha256 {TOY.sha256}" in str(caught.value)
    assert f"found {hashlib.sha256(changed).hexdigest()}" in str(caught.value)
    assert str(status("toy", tmp_path)).endswith("toy.jsonl has a wrong checksum")


def test_cached_set_needs_no_network(cache: Path) -> None:
    cache.write_bytes(GOOD)
    assert status("toy", None) is None
    assert load("toy", None).dataset["turns"][:] == [["How much?", "And now?"]]


@pytest.mark.parametrize("cached", [None, b"cut sho"])
def test_no_network(cache: Path, cached: bytes | None) -> None:
    if cached is not None:
        cache.write_bytes(cached)
    assert status("toy", None) == "to be fetched on first use"
    with pytest.raises(UsageError, match="cannot fetch the question set 'toy'") as caught:
        load("toy", None)
    message = str(caught.value)
    assert "ConnectionError: Name or service not known" in message
    assert "--data-dir" in message
    assert "\n" not in message


@pytest.mark.usefixtures("cache")
def test_corrupt_cached_file_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forced = serve(monkeypatch, tmp_path, b"cut sho", GOOD)
    assert load("toy", None).sha256 == TOY.sha256
    assert forced == [False, True]


@pytest.mark.usefixtures("cache")
def test_wrong_checksum_after_fetching_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forced = serve(monkeypatch, tmp_path, b"cut sho", b"cut sho again")
    with pytest.raises(UsageError, match=f"expected sha256 {TOY.sha256}, found .*--data-dir"):
        load("toy", None)
    assert forced == [False, True]


# A limit, spread over categories


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 20, 39])
def test_spread_is_even_and_keeps_the_order(limit: int) -> None:
    questions = load("mini", None)
    chosen = spread(questions, limit)
    identities = chosen.dataset["question_id"][:]
    assert len(identities) == limit
    assert identities == sorted(identities)  # mini's ids are numbered in file order
    counts = Counter(chosen.dataset["category"])
    assert max(counts.values()) - min(counts[category] for category in CATEGORIES) <= 1
    assert (chosen.name, chosen.sha256) == (questions.name, questions.sha256)
    assert spread(questions, limit).dataset["question_id"][:] == identities
    larger = spread(questions, limit + 1).dataset["question_id"][:]
    assert set(identities) < set(larger)


def test_spread_of_eight_takes_the_first_of_each_category() -> None:
    chosen = spread(load("mini", None), 8)
    assert chosen.dataset["question_id"][:] == [f"mini-{i:02d}" for i in range(1, 41, 5)]


def test_spread_with_uneven_categories(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [
        {"question_id": i, "category": category, "turns": ["x"]}
        for i, category in enumerate("aaabaac")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    chosen = spread(load(str(path), None), 5)
    assert chosen.dataset["question_id"][:] == ["0", "1", "2", "3", "6"]


def test_spread_without_or_above_the_size_keeps_all() -> None:
    questions = load("tuning", None)
    for limit in (None, 32, 1000):
        assert spread(questions, limit).dataset.to_list() == questions.dataset.to_list()


@pytest.mark.parametrize("limit", [0, -3])
def test_spread_refuses_less_than_one(limit: int) -> None:
    with pytest.raises(UsageError, match="--limit must be at least 1"):
        spread(load("mini", None), limit)
