"""Static trees of rank paths. A file holds `{"paths": [[0], [0, 0], [1], ...]}`, best first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from bench import files
from bench.decoding.drafts.ranks import RankPath

PAPER = "paper"  # names the method's published tree shape


def resolve(
    tree: str | None, own: object, counts: Sequence[int], nodes: int, depth: int
) -> tuple[list[RankPath], str]:
    """(rank paths, sha256 of their JSON) of a decoder's static tree.

    Args:
        tree: a file, "paper", or None for `own`.
        own: the tree that came with the weights, or None for the paper's.
        counts: nodes of each level of the paper's tree.
        nodes, depth: the first `nodes` paths, none deeper than `depth`, are kept.

    ValueError, one line, where a tree cannot be read.
    """
    if tree == PAPER or (tree is None and own is None):
        paths = shaped(counts)
    else:
        paths = parse(own) if tree is None else read(Path(tree))
    kept = [path for path in paths if len(path) <= depth][:nodes]
    return kept, files.sha256_of_bytes(json.dumps(kept).encode())


def shaped(counts: Sequence[int]) -> list[RankPath]:
    """A tree with `counts[j]` nodes at depth j + 1, for a published shape without rank paths: each
    level takes the children of the level above with the least sum of log(1 + rank)."""
    tree: list[RankPath] = []
    level: list[RankPath] = [()]
    for count in counts:
        children = [(*path, rank) for path in level for rank in range(count)]
        children.sort(key=lambda path: (sum(math.log1p(rank) for rank in path), path))
        level = children[:count]
        tree += level
    return tree


def read(path: Path) -> list[RankPath]:
    """The rank paths of a file. ValueError, one line, where it is not a tree."""
    try:
        return parse(json.loads(path.read_bytes())["paths"])
    except OSError as error:
        raise ValueError(f"cannot read the tree {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is no tree of the form {{"paths": [[0], [0, 0], ...]}}: {error}'
        ) from None


def parse(paths: object) -> list[RankPath]:
    """Rank paths from JSON. ValueError unless parents come first and ranks are not negative."""
    if not isinstance(paths, list):
        raise ValueError("paths must be a list of lists of ranks")
    parsed = [tuple(int(rank) for rank in path) for path in paths]
    known: set[RankPath] = {()}
    for path in parsed:
        if not path or path[:-1] not in known or min(path) < 0:
            raise ValueError(f"rank path {list(path)} comes before its parent")
        known.add(path)
    return parsed
