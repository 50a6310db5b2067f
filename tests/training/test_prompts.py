"""Users' turns drawn from the packaged templates."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.targets import registry
from bench.training import given
from bench.training.prompts.__main__ import main
from bench.training.prompts.bank import FOLLOWED, Bank
from bench.training.prompts.grammar import SLOT, Scope
from bench.training.prompts.passages import WORDS, paragraphs
from tests.training.drafts import chat_target, write_data

DRAWS = 20_000


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank.read()


def test_every_template_can_be_filled(bank: Bank) -> None:
    draw = random.Random(0)
    names = {
        slot["name"] for words in bank.lists.values() for w in words for slot in SLOT.finditer(w)
    }
    assert names - {None} <= set(bank.lists)
    for category in bank.categories:
        for template in (*category.first, *category.next):
            filled = Scope(bank.lists, draw).fill(template)
            assert filled
            assert not SLOT.search(filled), template
    assert sum(len(category.first) for category in bank.categories) > 400


def test_few_draws_repeat(bank: Bank) -> None:
    draw = random.Random(0)
    found = Counter(
        bank.turns(bank.categories[i % len(bank.categories)], draw)[0] for i in range(DRAWS)
    )
    assert len(found) > 0.98 * DRAWS


def test_conversations_are_distinct_balanced_and_repeat_with_their_seed(bank: Bank) -> None:
    first, again, other = (list(bank.conversations(2000, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({turns[0] for _, turns in first}) == 2000
    counts = Counter(name for name, _ in first)
    assert set(counts) == {category.name for category in bank.categories}
    assert max(counts.values()) - min(counts.values()) <= 1
    followed = sum(len(turns) == 2 for _, turns in first) / 2000
    assert followed == pytest.approx(FOLLOWED, abs=0.05)


def test_slots() -> None:
    lists = {"thing": ["apple", "pear"], "pair": ["{thing} and {thing.2}"], "word": ["x {thing}"]}
    for seed in range(20):
        scope = Scope(lists, random.Random(seed))
        text = scope.fill("A {thing}, the {thing} or {^thing.2} {3-4}")
        article, one, other = text[:2], text.split()[1].strip(","), text.split()[5]
        assert text.split(", the ")[1].startswith(one)
        assert {one, other.lower()} == {"apple", "pear"}
        assert (article == "An") == (one == "apple")
        assert text[-1] in "34"
        left, right = Scope(lists, random.Random(seed)).fill("{pair}").split(" and ")
        assert left != right
    filled = {Scope(lists, random.Random(seed)).fill("so{word?}") for seed in range(20)}
    assert filled == {"so", "so x apple", "so x pear"}


def test_a_bank_that_is_too_small_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompts.jsonl"
    assert main(["--count", "0", "--out", str(out)]) == 2
    assert "--count must be at least 1" in capsys.readouterr().err
    assert not out.exists()


def test_paragraphs_of_an_answer() -> None:
    prose = "The " + "very " * 40 + "end."
    assert list(paragraphs(f"{prose}\n\n{prose}")) == [f"{prose}\n\n{prose}"], "joined"
    assert not list(paragraphs(prose)), "too short"
    assert not list(paragraphs("The " + "very " * WORDS.stop + "end.")), "too long"
    assert not list(paragraphs("The " + "very " * 80 + "much")), "cut off"
    assert not list(paragraphs(f"{prose}\n\n- {prose}\n\n{prose}")), "a list between them"


def test_texts_that_the_target_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "It " + "goes on " * 35 + "here."
    model = chat_target(tmp_path / "model")
    tokenizer = registry.tokenizer(registry.resolve(model))
    assert tokenizer is not None
    ids = torch.tensor([[0, 1, *tokenizer(text, add_special_tokens=False)["input_ids"], 0]])
    roles = torch.ones_like(ids)
    roles[0, :2] = roles[0, -1] = 0
    write_data(tmp_path / "data", "model", ids, roles.to(torch.uint8))
    out = tmp_path / "prompts.jsonl"
    flags = ["--count", "400", "--out", str(out), "--model", model]
    assert main([*flags, "--passages", str(tmp_path / "data")]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(text in turn for line in lines for turn in line["turns"]) > 20
    assert len(given.read(str(out), tokenizer, 10_000, 0)) == 400
    assert main([*flags, "--passages", str(tmp_path)]) == 2
    assert "holds no data card" in capsys.readouterr().err
