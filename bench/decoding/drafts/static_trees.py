"""Static trees of rank paths. A file holds `{"paths": [[0], [0, 0], [1], ...]}`, best first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from bench import files
from bench.decoding.drafts.ranks import RankPath

PAPER = "paper"  # names the method's published tree shape
RANKS = 2**31  # no rank comes near


def resolve(
    tree: str | None, own: object, counts: Sequence[int], nodes: int, depth: int
) -> tuple[list[RankPath], str]:
    """(rank paths, sha256 of their JSON) of a decoder's static tree.

    Args:
        tree: a file, "paper", or None for `own`.
        own: the tree that came with the weights; None for the paper's, and so is a tree without
            paths, which training grows where a draft ranks no true token low enough.
        counts: nodes of each level of the paper's tree.
        nodes, depth: the first `nodes` paths, none deeper than `depth`, are kept.

    ValueError, one line, where a tree cannot be read.
    """
    if tree == PAPER or (tree is None and own in (None, [])):
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
        content = files.json_of(path.read_bytes())
        if not isinstance(content, dict) or "paths" not in content:
            raise ValueError("there are no paths")
        return parse(content["paths"])
    except OSError as error:
        raise ValueError(f"cannot read the tree {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(
            f'{path} is no tree of the form {{"paths": [[0], [0, 0], ...]}}: {error}'
        ) from None


def parse(paths: object) -> list[RankPath]:
    """Rank paths from JSON. ValueError unless there are any, ranks are whole numbers from 0,
    parents come first and no path comes twice."""
    if not isinstance(paths, list) or not paths or not all(map(_is_path, paths)):
        raise ValueError("paths must be a list of lists of ranks, which count from 0")
    parsed = [tuple(path) for path in paths]
    known: set[RankPath] = {()}
    for path in parsed:
        if path in known:
            raise ValueError(f"rank path {list(path)} comes twice")
        if path[:-1] not in known:
            raise ValueError(f"rank path {list(path)} comes before its parent")
        known.add(path)
    return parsed


def misfit(path: Path, depth: int, choices: int | None) -> str | None:
    """Why a file's tree does not fit a draft of `depth` levels with `choices` tokens to rank (None:
    not known), or None. ValueError, one line, where it is not a tree."""
    paths = read(path)
    deepest, highest = max(map(len, paths)), max(map(max, paths))
    if deepest > depth:
        return f"{path.name} is {deepest} deep, the draft {depth}; leave out its deeper paths"
    if choices is not None and highest >= choices:
        return f"{path.name} has rank {highest}, and ranks go to {choices - 1}; correct the path"
    return None


def _is_path(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(rank) is int and 0 <= rank < RANKS for rank in value)
    )
