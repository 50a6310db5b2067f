from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.decoding.known import Known, known_predictable
from tests.training.drafts import METHODS

# Cases that share their code with another one. A second target, or a second engine of the same
# buffers, shows little that is new, and takes minutes.
VARIANTS = {
    "chimera_auto",
    "chimera_block",
    "chimera_dynamic",
    "chimera_dynamic_lookup",
    "chimera_lookup",
    "chimera_plus",
    "medusa_lookup",
    "medusa_typical",
    "draft_model",
    "dflash",
    "dflash_auto",
    "dflash_dynamic",
    "dynamic_oracle",
    "hydra",
    "eagle3",
    "eagle3_auto",
    "sampling_drafter",
    "suffix",
    "token_recycling",
}
AGAIN = {"multi_head", "exact"}
ENOUGH = ({"0.0", "graph"}, {"1.0", "compile"})  # each temperature and each engine once
# Each further target is another training of a method's drafts; oracles and methods without drafts
# run on all of them.
TRAINED = VARIANTS & {*METHODS, "dflash", "medusa_typical"} | {"chimera", "medusa"}
FURTHER = ("multi_head", "often_says_id_0")
# Settings of methods that run all of the conformance suite with others: of it, these two.
OF_ANOTHER = {name for name in VARIANTS if name.endswith(("_auto", "_dynamic", "_lookup"))}
ALWAYS = ("greedy_ids_equal", "repeats_and_prompts_in_between")


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _shows_little(item):
            item.add_marker(pytest.mark.slow)


def _shows_little(item: pytest.Item) -> bool:
    parts = set(item.name.rstrip("]").replace("[", "-").split("-"))
    if parts & VARIANTS and (parts & AGAIN or any(pair <= parts for pair in ENOUGH)):
        return True
    if parts & TRAINED and any(target in item.name for target in FURTHER):
        return True
    conformance = parts & OF_ANOTHER and "test_conformance" in item.nodeid
    return bool(conformance) and not any(test in item.name for test in ALWAYS)


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    """One thread: on tiny models more only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def multi_head() -> Known:
    return known_predictable(kv_heads=4)


@pytest.fixture(scope="session")
def grouped_query() -> Known:
    return known_predictable(kv_heads=2)


@pytest.fixture(params=["multi_head", "grouped_query"])
def known(request: pytest.FixtureRequest) -> Known:
    """Each of the two: their caches differ, and whatever reads and moves its rows."""
    target: Known = request.getfixturevalue(request.param)
    return target


@pytest.fixture(scope="session")
def favours_zero() -> Known:
    """A target whose greedy choice is id 0 at many a step."""
    return known_predictable(kv_heads=2, favourite=0)
