"""The registered question sets: where each one comes from, its checksum and its licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


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
