"""The grid: its order, the seeds of its turns and the keys by which they are resumed."""

import itertools
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest

from bench.files import canonical_sha256
from bench.questions.history import Prompt
from bench.records.runs import FIELDS
from bench.run import grid as grid_module
from bench.run.grid import Cell, GridPoint, generator_seed, grid
from bench.run.methods import Method, resolve

TEXTS = ("autoregressive", "transformers_generate", "lookahead", "lookahead(n=4)", "prompt_lookup")
PROMPTS = [
    Prompt("set", "d" * 64, str(number), "sums", turn, (1, 2, number, turn))
    for number in range(10)
    for turn in (1, 2)
]
CELL = Cell(
    model="tiny",
    revision="a" * 64,
    dtype="float32",
    device="a processor, 2 threads",
    engine="eager",
    method="lookahead",
    params={"n": 5, "w": 7},
    lossless=True,
    checkpoint_sha256=None,
    tree_sha256=None,
    dataset="set",
    dataset_sha256="d" * 64,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    seed=0,
    repeat=0,
    clock=False,
    max_new_tokens=8,
    code_sha256="a" * 64,
)
OTHERS: dict[str, Any] = {
    "model": "other",
    "revision": None,
    "dtype": "bfloat16",
    "device": "a processor, 1 thread",
    "engine": "stock",
    "method": "prompt_lookup",
    "params": {"n": 5, "w": 8},
    "lossless": False,
    "checkpoint_sha256": "c" * 64,
    "tree_sha256": "e" * 64,
    "dataset": "other",
    "dataset_sha256": "f" * 64,
    "temperature": 0.5,
    "top_k": 1,
    "top_p": 0.5,
    "seed": 1,
    "repeat": 1,
    "clock": True,
    "max_new_tokens": 9,
    "code_sha256": "b" * 64,
}


@pytest.fixture(scope="module")
def methods() -> list[Method]:
    return resolve(TEXTS)


def order(found: list[GridPoint]) -> list[str]:
    return [point.method.label for point in found]


def place(point: GridPoint) -> tuple[str, int, float]:
    return (point.prompt.sha256, point.repeat, point.temperature)


# Order


def test_every_point_is_there_once(methods: list[Method]) -> None:
    found = list(grid(PROMPTS, 3, [0.0, 1.0], methods, seed=0))
    assert len(found) == len(PROMPTS) * 2 * (3 * len(methods) + len(methods) - 1)
    places = {(s.prompt.sha256, s.repeat, s.temperature, s.method.label) for s in found}
    assert len(places) == len(found)


def test_the_phase_clock_runs_in_one_more_repeat_of_all_but_the_stock_row(
    methods: list[Method],
) -> None:
    clocks: dict[str, list[tuple[int, bool | None]]] = {}
    for point in grid(PROMPTS[:1], 2, [0.0], methods, seed=0):
        clocks.setdefault(point.method.label, []).append((point.repeat, point.clock))
    stock = clocks.pop("transformers_generate")
    assert stock == [(0, None), (1, None)]
    assert all(found == [(0, False), (1, False), (2, True)] for found in clocks.values())


def test_repeats_are_interleaved_within_a_turn(methods: list[Method]) -> None:
    found = list(grid(PROMPTS, 2, [0.0, 1.0], methods, seed=0))
    turns = [
        key for key, _ in itertools.groupby((s.prompt.prompt_id, s.prompt.turn) for s in found)
    ]
    assert turns == [(prompt.prompt_id, prompt.turn) for prompt in PROMPTS]
    rounds = [list(points) for _, points in itertools.groupby(found, place)]
    assert len(rounds) == len(PROMPTS) * 3 * 2
    for one_round in rounds:
        count = len(methods) - bool(one_round[0].repeat == 2)  # no stock row with the clock
        assert len(set(order(one_round))) == len(one_round) == count


def test_the_order_of_methods_is_shuffled_by_the_seed_alone(methods: list[Method]) -> None:
    def orders(seed: int, given: list[Method] = methods) -> list[str]:
        return order(list(grid(PROMPTS, 3, [0.0], given, seed)))

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    points = grid(PROMPTS, 3, [0.0], methods, 0)
    groups = [(key, list(group)) for key, group in itertools.groupby(points, place)]
    rounds = [tuple(order(group)) for key, group in groups if key[1] < 3]
    assert len(rounds) == 60
    assert len(set(rounds)) > 30
    first = Counter(one_round[0] for one_round in rounds)
    assert len(first) == len(methods)
    assert max(first.values()) < 30  # 12 of 60 expected


def test_more_prompts_leave_the_order_of_the_others_alone(methods: list[Method]) -> None:
    few = list(grid(PROMPTS[4:8], 2, [0.0], methods, seed=0))
    many = list(grid(PROMPTS, 2, [0.0], methods, seed=0))
    chosen = {prompt.sha256 for prompt in PROMPTS[4:8]}
    assert order(few) == order([point for point in many if point.prompt.sha256 in chosen])


# Seeds


def test_sampling_is_seeded_by_turn_and_repeat() -> None:
    seeds = {
        generator_seed(seed, prompt, repeat)
        for seed in range(3)
        for prompt in PROMPTS
        for repeat in range(3)
    }
    assert len(seeds) == 3 * len(PROMPTS) * 3
    assert generator_seed(0, PROMPTS[0], 0) == generator_seed(0, replace(PROMPTS[0], ids=(9,)), 0)
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch.Generator takes


# Keys


def test_others_differ_in_every_field() -> None:
    assert [field.name for field in fields(Cell)] == list(OTHERS)
    assert all(getattr(CELL, name) != value for name, value in OTHERS.items())


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_is_in_the_key(name: str) -> None:
    other = replace(CELL, **{name: OTHERS[name]})
    assert other.id != CELL.id
    assert other.key(PROMPTS[0]) != CELL.key(PROMPTS[0])
    assert other.key(None) != CELL.key(None)


def test_every_field_of_a_cell_is_one_of_a_record() -> None:
    assert {field.name for field in fields(Cell)} <= set(FIELDS)


def test_the_order_of_parameters_is_not_in_the_key() -> None:
    other = replace(CELL, params={"w": 7, "n": 5})
    assert other.key(PROMPTS[0]) == CELL.key(PROMPTS[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_id": "x"},
        {"turn": 3},
        {"ids": (1, 2, 0)},
        {"history": canonical_sha256(["an answer"])},
    ],
)
def test_the_prompt_is_in_the_key(changes: dict[str, Any]) -> None:
    assert CELL.key(replace(PROMPTS[0], **changes)) != CELL.key(PROMPTS[0])


def test_the_category_is_not_in_the_key_but_the_package_version_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = CELL.key(PROMPTS[0])
    assert CELL.key(replace(PROMPTS[0], category="names")) == before
    monkeypatch.setattr(grid_module, "version", lambda package: f"{package} of tomorrow")
    assert CELL.key(PROMPTS[0]) != before


def test_keys_are_told_apart_by_every_character() -> None:
    ids = ([0, 5], [0.5], [5, 0], [50])
    prompts = [replace(PROMPTS[0], ids=tuple(each)) for each in ids]  # type: ignore[arg-type]
    assert len({CELL.key(prompt) for prompt in prompts}) == len(ids)
