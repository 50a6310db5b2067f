"""nodes=auto: each step verifies as many nodes as are worth their measured time."""

from __future__ import annotations

import math

import pytest
import torch

from bench.decoding.drafts.worth import PRIOR, SIZES, NodesWorth
from bench.decoding.sampling import Sampling
from bench.decoding.timing import LEAST, median_seconds
from bench.run.runner import Turn, run_turn
from tests.decoding.cases import costs, oracle, registered, with_costs
from tests.decoding.known import Known


def measured(known: Known, node: float) -> NodesWorth:
    """For a forward of 0.5 and `node` for each drafted node, and a draft of 1."""
    target = known.fresh()
    found = NodesWorth(target)
    with costs(node):
        found.measure(oracle()(target))  # type: ignore[arg-type]
    found.start()
    return found


def scores(*probabilities: float) -> torch.Tensor:
    """Of 63 nodes; those without a probability are hopeless."""
    return torch.tensor([*probabilities, *[1e-9] * (63 - len(probabilities))]).log()


@pytest.mark.parametrize(
    ("likely", "nodes"), [(2, 3), (3, 3), (6, 7), (12, 15), (25, 31), (63, 63)]
)
def test_it_takes_what_is_likely(grouped_query: Known, likely: int, nodes: int) -> None:
    assert measured(grouped_query, 0.01).choose(scores(*[0.9] * likely)).tolist() == [nodes + 1]


def test_it_maximises_expected_tokens_a_second(grouped_query: Known) -> None:
    generator = torch.Generator().manual_seed(0)
    for node in (0.005, 0.02, 0.1):
        found = measured(grouped_query, node)
        for _ in range(20):
            paths = torch.rand(63, generator=generator).pow(3).sort(descending=True).values
            rates = {n: float(1 + paths[:n].sum()) / (1.5 + node * n) for n in SIZES}
            assert found.choose(paths.log()).item() == max(rates, key=lambda n: rates[n]) + 1


def test_drafts_that_are_believed_too_much_are_cut(grouped_query: Known) -> None:
    found = measured(grouped_query, 0.05)
    sure = scores(*[0.9] * 31)
    sizes = []
    for _ in range(6):
        sizes.append(int(found.choose(sure)) - 1)
        found.learn(sizes[-1], torch.tensor([0]))
    assert sizes[0] == 31
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 3
    found.start()
    assert int(found.choose(sure)) - 1 == 31, "a new answer begins anew"


def test_what_was_accepted_counts_against_what_was_predicted(grouped_query: Known) -> None:
    """With a of p nodes accepted and PRIOR each, the confidence counts (a + PRIOR)/(p + PRIOR)."""
    found = measured(grouped_query, 0.05)
    half = scores(*[0.5] * 4)
    found.choose(half)
    found.learn(3, torch.tensor([3]))  # of 1.5 predicted
    c = (PRIOR + 3) / (PRIOR + 1.5)
    level = 0.0  # the probability from which 7 nodes are worth more than 3
    for q in torch.linspace(0.01, 0.99, 99).tolist():
        chosen = int(found.choose(scores(*[q] * 7))) - 1
        if chosen == 7:
            level = q
            break
    # (1 + 7cq) / 1.85 = (1 + 3cq) / 1.65
    assert math.isclose(level, 0.2 / (1.65 * 7 - 1.85 * 3) / c, abs_tol=0.011)


@pytest.mark.parametrize("name", ["chimera", "dflash", "eagle3"])
def test_costly_nodes_are_few_and_free_ones_many(grouped_query: Known, name: str) -> None:
    def turn(node: float) -> Turn:
        decoder = with_costs(registered(f"{name}(nodes=auto,beam=8)"), node)(grouped_query.fresh())
        return run_turn(decoder, grouped_query.prompts[0], Sampling(), 40, eos_ids=())

    few, some, many = (turn(node) for node in (10.0, 0.03, 0.0))
    assert few.output_ids == some.output_ids == many.output_ids
    drafted = [{step["drafted"] for step in found.steps or []} for found in (few, some, many)]
    assert drafted[0] == {3}
    assert drafted[1] <= set(SIZES)
    assert len(drafted[1]) > 1, "it depends on the step"
    assert drafted[2] == {63}


def test_a_decoder_measures_its_own_costs(grouped_query: Known) -> None:
    make = registered("chimera(nodes=auto,beam=3)")
    turn = run_turn(make(grouped_query.fresh()), grouped_query.prompts[0], Sampling(), 12, ())
    assert turn.output_ids == grouped_query.expected(grouped_query.prompts[0], 12)


def test_work_is_timed_more_than_once() -> None:
    runs: list[int] = []
    seconds = median_seconds(lambda: runs.append(sum(range(20_000))), torch.device("cpu"))
    assert len(runs) >= LEAST
    assert 1e-6 < seconds < 1.0
