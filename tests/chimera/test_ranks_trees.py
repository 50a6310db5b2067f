"""Rank statistics, static trees and trees grown by confidence."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from bench.decoding.drafts import static_trees
from bench.decoding.drafts.ranks import (
    RANK_LIMIT,
    RankPath,
    accepted_length,
    grow,
    ranks_of,
    top_accuracy,
)
from bench.decoding.target import TargetModel
from chimera.drafter import ConfidentGrower, Drafter

VOCAB = 5


def is_tree(paths: list[RankPath]) -> bool:
    return all(path[:-1] in {(), *paths[:i]} for i, path in enumerate(paths))


def test_ranks_count_what_beats_the_true_token() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0, 2.0], [0.1, 3.0, 2.0, 2.0], [0.1, 3.0, 2.0, 2.0]])
    assert ranks_of(logits, torch.tensor([1, 2, 0])).tolist() == [0, 1, 3]
    wide = torch.arange(40.0)[None]
    assert ranks_of(wide, torch.tensor([0])).tolist() == [RANK_LIMIT], "too far down"
    assert ranks_of(wide, torch.tensor([-1])).tolist() == [RANK_LIMIT], "not in the vocabulary"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_no_tree_of_as_many_nodes_is_accepted_further(seed: int, nodes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randint(3, (12, 3), generator=generator)
    paths = [path for k in (1, 2, 3) for path in itertools.product(range(3), repeat=k)]
    trees = (list(tree) for tree in itertools.combinations(paths, nodes))
    best = max(accepted_length(ranks, tree) for tree in trees if is_tree(tree))
    grown = grow(ranks, nodes)
    assert len(grown) == nodes
    assert is_tree(grown)
    assert accepted_length(ranks, grown) == pytest.approx(best)


def test_a_grown_tree_begins_with_the_smaller_ones_and_leaves_misses_out() -> None:
    ranks = torch.tensor([[0, 0], [0, 1], [0, 0], [1, RANK_LIMIT], [RANK_LIMIT, 0]])
    assert grow(ranks, 9) == [(0,), (0, 0), (1,), (0, 1)]
    assert grow(ranks, 2) == [(0,), (0, 0)]


def test_accepted_lengths_by_hand() -> None:
    ranks = torch.tensor([[0, 0], [0, 2], [1, 0], [2, 0]])
    assert accepted_length(ranks, []) == 1.0
    assert accepted_length(ranks, [(0,), (0, 0), (1,)]) == (3 + 2 + 2 + 1) / 4
    assert top_accuracy(ranks) == [0.5, 0.75]
    assert top_accuracy(ranks, 2) == [0.75, 0.75]


def test_a_shape_has_its_nodes_by_level_and_likely_paths_first() -> None:
    tree = static_trees.shaped((4, 8, 8, 3, 2))
    assert [sum(len(path) == depth for path in tree) for depth in range(1, 6)] == [4, 8, 8, 3, 2]
    assert is_tree(tree)
    assert tree[:6] == [(0,), (1,), (2,), (3,), (0, 0), (0, 1)]
    assert (0,) * 5 in tree


def test_which_tree_is_taken(tmp_path: Path) -> None:
    own = [[0], [0, 0], [1], [0, 0, 0]]
    shape = static_trees.shaped((2, 1))
    path = tmp_path / "tree.json"
    path.write_text(json.dumps({"paths": [[0], [1], [2]]}))

    def resolve(tree: str | None, own: object, nodes: int = 9, depth: int = 9) -> list[RankPath]:
        return static_trees.resolve(tree, own, (2, 1), nodes, depth)[0]

    assert resolve(None, own) == [(0,), (0, 0), (1,), (0, 0, 0)]
    assert resolve(None, own, nodes=2) == [(0,), (0, 0)]
    assert resolve(None, own, depth=2) == [(0,), (0, 0), (1,)]
    assert resolve(None, None) == resolve("paper", own) == shape
    assert resolve(str(path), own) == [(0,), (1,), (2,)]
    assert resolve(None, []) == shape, "no true token of the held-out data had a low rank"


def test_the_hash_is_that_of_the_paths_kept() -> None:
    first, second = (static_trees.resolve(None, [[0], [1]], (1,), n, 9)[1] for n in (1, 2))
    assert first != second
    assert first == static_trees.resolve(None, [[0]], (1,), 9, 9)[1]


@pytest.mark.parametrize(
    ("paths", "match"),
    [
        ([[0, 0], [0]], "comes before its parent"),
        ([[0], [0]], "comes twice"),
        ([], "must be a list"),
        ([[]], "must be a list"),
        ([[-1]], "must be a list"),
        ([0], "must be a list"),
        ({"0": 1}, "must be a list"),
        ([["a"]], "must be a list"),
        ([[0.5]], "must be a list"),
        ([[True]], "must be a list"),
        ([[10**30]], "must be a list"),
    ],
)
def test_what_is_no_tree_is_refused(paths: object, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        static_trees.parse(paths)
    path = tmp_path / "tree.json"
    path.write_text(json.dumps({"paths": paths}))
    with pytest.raises(ValueError, match="no tree of the form"):
        static_trees.read(path)


@pytest.mark.parametrize("text", ["[]", "{}", "not json", "[" * 100_000])
def test_a_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no tree of the form"):
        static_trees.read(path)
    with pytest.raises(ValueError, match="cannot read the tree"):
        static_trees.read(tmp_path / "missing.json")


class Plain:
    """Stands in for a target whose engine compiles nothing."""

    device = torch.device("cpu")
    top, likeliest = TargetModel.top, TargetModel.likeliest

    def fuse(self, function: object) -> object:
        return function


PLAIN = cast(TargetModel, Plain())


class Bigram:
    """Stands in for a drafter: what follows depends on the last two tokens and the depth."""

    vocabulary = torch.arange(VOCAB)

    def __init__(self, seed: int, depth: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = 2 * torch.randn(depth, VOCAB, VOCAB, VOCAB, generator=generator)

    def rewind(self) -> None:
        """It keeps no rows."""

    def expand(self, trigrams: Tensor, level: int, visible: Tensor, last: bool) -> Tensor:
        assert visible.shape[0] == len(trigrams)
        assert visible.sum(dim=1).tolist() == [level] * len(trigrams), "its ancestors and itself"
        return self.logits[level - 1, trigrams[:, 1], trigrams[:, 2]]

    def best(self, logits: Tensor, count: int) -> Tensor:
        return logits.topk(count, dim=-1).indices

    def score(self, recent: list[int], path: tuple[int, ...]) -> float:
        """Log-probability of the tokens `path` behind `recent`."""
        tokens, total = [*recent, *path], 0.0
        for level, token in enumerate(path):
            row = self.logits[level, tokens[level + 1], tokens[level + 2]]
            total += float(row.log_softmax(dim=-1)[token])
        return total


@pytest.mark.parametrize("nodes", [1, 4, 9, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_paths_make_the_tree(seed: int, nodes: int) -> None:
    """With a beam as wide as a level every path is a candidate."""
    depth, recent = 2, [3, 1, 2]
    drafter = Bigram(seed, depth)
    grower = ConfidentGrower(nodes, depth, VOCAB, PLAIN)
    tree = grower.grow(cast(Drafter, drafter), torch.tensor(recent))
    tokens, parents = tree.tokens.tolist(), tree.topology.parents.tolist()
    assert tokens[0] == 2
    assert parents[0] == -1
    assert all(0 <= parent < node for node, parent in enumerate(parents[1:], start=1))
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.width):
        paths.append((*paths[parents[node]], tokens[node]))
    assert len(set(paths)) == len(paths) == nodes + 1, "siblings differ"
    every = [path for k in (1, 2) for path in itertools.product(range(VOCAB), repeat=k)]
    every.sort(key=lambda path: -drafter.score(recent, path))
    assert set(paths[1:]) == set(every[:nodes])


def test_a_narrow_beam_goes_deep_and_leaves_fewer_nodes() -> None:
    drafter = Bigram(0, depth=4)
    recent = torch.tensor([0, 1, 2])
    tree = ConfidentGrower(30, 4, 1, PLAIN).grow(cast(Drafter, drafter), recent)
    assert tree.topology.parents.tolist() == [-1, 0, 1, 2, 3]
    tree = ConfidentGrower(12, 4, 2, PLAIN).grow(cast(Drafter, drafter), recent)
    assert tree.width == 13
    assert int(tree.topology.depths.max()) == 4
