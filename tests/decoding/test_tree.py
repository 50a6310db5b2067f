from __future__ import annotations

import pytest
import torch

from bench.decoding.tree import TokenTree, Topology
from tests.decoding.law import random_topology

RANDOM = [
    random_topology(width, depth=5, children=4, generator=torch.Generator().manual_seed(width))
    for width in (1, 2, 3, 7, 20, 64)
]
CHAIN = Topology.of(list(range(-1, 69)))
TREES = pytest.mark.parametrize("topology", [*RANDOM, CHAIN], ids=lambda t: f"width {t.width}")


def path_to(topology: Topology, node: int) -> list[int]:
    """Nodes from `node` up to the root."""
    path = [node]
    while path[-1]:
        path.append(int(topology.parents[path[-1]]))
    return path


@TREES
def test_ancestors_and_depths(topology: Topology) -> None:
    for node in range(topology.width):
        path = path_to(topology, node)
        assert topology.ancestors[node].nonzero().squeeze(1).tolist() == sorted(path)
        assert int(topology.depths[node]) == len(path) - 1


@TREES
def test_bias_hides_all_but_the_ancestors(topology: Topology) -> None:
    assert topology.bias.dtype == torch.float32
    assert (topology.bias[topology.ancestors] == 0.0).all()
    assert (topology.bias[~topology.ancestors] == -torch.inf).all()


@TREES
def test_elder_siblings_and_children(topology: Topology) -> None:
    parents = topology.parents.tolist()
    for node in range(topology.width):
        elder = [other for other in range(1, node) if parents[other] == parents[node]]
        assert topology.elder_siblings[node].nonzero().squeeze(1).tolist() == elder
        children = [child for child, parent in enumerate(parents) if parent == node]
        row = topology.children[node].tolist()
        assert row == children + [-1] * (len(row) - len(children))


def test_nodes_that_are_not_acceptable_are_nobody_s_children_or_elder_siblings() -> None:
    topology = Topology.of([-1, 0, 0, 0, 2], acceptable=[True, False, True, True, False])
    assert topology.children.tolist() == [[2, 3], [-1, -1], [-1, -1], [-1, -1], [-1, -1]]
    assert topology.elder_siblings.nonzero().tolist() == [[3, 2]]
    assert topology.ancestors[4].tolist() == [True, False, True, False, True]


def test_rank_paths_come_level_by_level_and_siblings_by_rank() -> None:
    topology = Topology.from_rank_paths([(2, 0, 0), (1,), (0, 1), (2, 3), (0, 1)])
    # Prefixes are added, and what is named twice is one node.
    # 0 (); 1 (0), 2 (1), 3 (2); 4 (0, 1), 5 (2, 0), 6 (2, 3); 7 (2, 0, 0)
    assert topology.parents.tolist() == [-1, 0, 0, 0, 1, 3, 3, 5]
    assert topology.depths.tolist() == [0, 1, 1, 1, 2, 2, 2, 3]
    assert topology.acceptable is None


def test_rank_paths_in_another_order_give_the_same_tree() -> None:
    paths = [(0, 0, 1), (1, 0), (0, 2), (3,)]
    expected = Topology.from_rank_paths(paths).parents
    assert torch.equal(Topology.from_rank_paths(paths[::-1]).parents, expected)


def test_no_rank_paths_leave_the_root() -> None:
    assert Topology.from_rank_paths([]).parents.tolist() == [-1]


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([], "starts with its root"),
        ([0], "starts with its root"),
        ([0, -1], "starts with its root"),
        ([-1, -1], "must come before"),
        ([-1, 1], "must come before"),
        ([-1, 2, 0], "must come before"),
        ([-1, 0, 3], "must come before"),
        ([-1, 0, -2], "must come before"),
    ],
)
def test_what_is_no_tree_is_refused(parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology.of(parents)


def test_a_tree_is_as_wide_as_its_topology() -> None:
    tree = TokenTree(torch.tensor([[1, 2, 3], [4, 5, 6]]), Topology.of([-1, 0, 0]))
    assert tree.width == tree.topology.width == 3


def test_siblings_follow_a_tree_that_is_written_anew_at_the_same_place() -> None:
    """As a captured draft's are."""
    parents = torch.tensor([-1, 0, 0])
    tree = Topology.grown(parents, height=2)
    assert tree.elder_siblings.tolist()[2] == [False, True, False]
    parents.copy_(torch.tensor([-1, 0, 1]))
    assert not tree.elder_siblings.any()
