"""Acceptance rules over token trees, the only place that decides what is emitted.

Every rule marks the nodes that survive against their parent's target distribution, and the path
to the chosen survivor is emitted with one bonus token of the target's own. The rules are tensor
code without host reads and take leading batch dimensions: tokens [..., w], logits [..., w, V].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.decoding.sampling import Sampling
from bench.decoding.tree import TokenTree, Topology


@dataclass(frozen=True)
class Verdict:
    """What a rule decided.

    Attributes:
        length: int64 [...], accepted drafted nodes.
        path: int64 [..., w], node indices from the root down; the first `length + 1` count, the
            rest is padding and is never read.
        bonus: int64 [...], the target's own token behind the path.
    """

    length: Tensor
    path: Tensor
    bonus: Tensor


def accept(
    tree: TokenTree, logits: Tensor, sampling: Sampling, draft_probs: Tensor | None = None
) -> Verdict:
    """The lossless rule for `sampling`: greedy at temperature 0, speculative sampling above."""
    if sampling.greedy:
        return greedy(tree, logits)
    return speculative_sampling(tree, sampling.probs(logits), sampling, draft_probs)


def greedy(tree: TokenTree, logits: Tensor) -> Verdict:
    """Keep the longest path on which every token is the argmax at its parent."""
    return exact_match(tree, logits.argmax(dim=-1))


def exact_match(tree: TokenTree, best: Tensor) -> Verdict:
    """The greedy rule, given the argmax at every node, int64 [..., w]."""
    topology = tree.topology
    kept = tree.tokens == best[..., _parent(topology)]
    last = _deepest(topology, kept)
    return _verdict(topology, last, _at(best, last))


def speculative_sampling(
    tree: TokenTree, probs: Tensor, sampling: Sampling, draft_probs: Tensor | None = None
) -> Verdict:
    """Multi-branch rejection sampling: the output follows `probs` exactly.

    At each accepted node the children are tried in index order against the residual r, at first
    the target's p: child x is taken with probability min(1, r(x) / q(x)), otherwise
    r <- norm(max(r - q, 0)). If none is taken, the bonus token comes from r.
    Leviathan et al. (arXiv 2211.17192), section 2.3, over several drafts as in SpecInfer
    (arXiv 2305.09781), section 4.3.

    Args:
        tree: tokens [..., w].
        probs: [..., w, V], the target's distributions after temperature, top-k and top-p.
        sampling: source of randomness.
        draft_probs: [..., w, V], where row n is the distribution that n's children were drawn
            from in index order without replacement; None where they were chosen, not drawn, so
            that q is a point mass.
    """
    topology = tree.topology
    uniform = sampling.uniform(tree.tokens)
    if draft_probs is None:
        taken = _try_chosen(tree, probs, uniform)
        last = _deepest(topology, taken)
        residual = _without_children(tree, _at(probs, last), last)
    else:
        taken, residuals = _try_drawn(tree, probs, draft_probs, uniform)
        last = _deepest(topology, taken)
        residual = _at(residuals, last)
    # Rounding can leave nothing of a distribution whose whole mass was drafted and refused.
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, _at(probs, last))
    return _verdict(topology, last, sampling.draw(residual))


def typical(
    tree: TokenTree,
    probs: Tensor,
    sampling: Sampling,
    epsilon: float = 0.09,
    delta: float = 0.3,
) -> Verdict:
    """Medusa's typical acceptance (arXiv 2401.10774, section 2.3.1). NOT lossless.

    Keeps the longest path on which p(x) > min(epsilon, delta * exp(-H(p))) at every parent; the
    bonus token is drawn from p.
    """
    topology = tree.topology
    entropy = torch.special.entr(probs).sum(dim=-1)  # [..., w]
    threshold = (delta * torch.exp(-entropy)).clamp(max=epsilon)
    kept = _prob_at_parent(tree, probs) > threshold[..., _parent(topology)]
    last = _deepest(topology, kept)
    return _verdict(topology, last, sampling.draw(_at(probs, last)))


def _try_chosen(tree: TokenTree, probs: Tensor, uniform: Tensor) -> Tensor:
    """bool [..., w]: the first child taken of each parent, for point-mass drafts.

    With q a point mass the residual before child i is p without its elder siblings, so that
    P(take i) = p(x_i) / (1 - sum of p over elder siblings): no [w, V] residual is needed.
    """
    elder = tree.topology.elder_siblings
    p = _prob_at_parent(tree, probs)
    twin = elder & (tree.tokens[..., :, None] == tree.tokens[..., None, :])
    p = p.masked_fill(twin.any(dim=-1), 0.0)  # already refused once
    spent = (elder * p[..., None, :]).sum(dim=-1)
    left = (1.0 - spent).clamp(min=0.0)  # rounding may spend a little more than all of p
    taken = _acceptable(tree.topology, uniform * left < p)
    return taken & ~(elder & taken[..., None, :]).any(dim=-1)


def _try_drawn(
    tree: TokenTree, probs: Tensor, draft_probs: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """(bool [..., w] the child taken of each parent, [..., w, V] the residual at each parent)."""
    taken = torch.zeros_like(tree.tokens)  # how often
    residual, q = probs, draft_probs
    trying = torch.ones_like(taken, dtype=torch.bool)  # parents without a taken child
    for child in tree.topology.children.unbind(dim=1):  # child: [w], one sibling rank
        node = child.clamp(min=0)
        token = tree.tokens[..., node, None]  # [..., w, 1]
        r_x, q_x = (d.gather(-1, token).squeeze(-1) for d in (residual, q))
        tried = (child >= 0) & trying
        take = tried & (uniform[..., node] * q_x < r_x)
        taken.index_add_(-1, node, take.long())
        rejected = (tried & ~take)[..., None]
        residual = torch.where(rejected, _norm((residual - q).clamp(min=0)), residual)
        q = torch.where(rejected, _norm(q.scatter(-1, token, 0.0)), q)
        trying = trying & ~take
    return taken > 0, residual


def _norm(mass: Tensor) -> Tensor:
    return mass / mass.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


def _prob_at_parent(tree: TokenTree, probs: Tensor) -> Tensor:
    """[..., w]: p of each node's token at its parent; the root's own entry means nothing."""
    tokens = tree.tokens[..., None]
    return probs[..., _parent(tree.topology), :].gather(-1, tokens).squeeze(-1)


def _without_children(tree: TokenTree, p: Tensor, last: Tensor) -> Tensor:
    """[..., V]: `p` of node `last` without the tokens of its children, all refused."""
    child = _acceptable(tree.topology, tree.topology.parents == last[..., None])
    drop = torch.zeros_like(p).scatter_add_(-1, tree.tokens, child.to(p.dtype))
    return p.masked_fill(drop > 0, 0.0)


def _parent(topology: Topology) -> Tensor:
    """int64 [w]: parents, with the root its own."""
    return topology.parents.clamp(min=0)


def _acceptable(topology: Topology, nodes: Tensor) -> Tensor:
    return nodes if topology.acceptable is None else nodes & topology.acceptable


def _deepest(topology: Topology, kept: Tensor) -> Tensor:
    """int64 [...]: the deepest node whose whole path was kept; the root always is."""
    kept = _acceptable(topology, kept) | (topology.parents < 0)
    whole = (kept[..., None, :] | ~topology.ancestors).all(dim=-1)
    return (whole * (topology.depths + 1)).argmax(dim=-1)


def _at(rows: Tensor, node: Tensor) -> Tensor:
    """`rows[..., node]` over batch dimensions: [..., w] -> [...], [..., w, V] -> [..., V]."""
    axis = node.dim()
    index = node.view(*node.shape, *[1] * (rows.dim() - axis))
    return rows.take_along_dim(index, dim=axis).squeeze(axis)


def _verdict(topology: Topology, last: Tensor, bonus: Tensor) -> Verdict:
    order = torch.arange(topology.width, device=last.device)
    on_path = _row(topology.ancestors, last)  # [..., w]; a path has one node a depth
    there = on_path[..., None, :] & (topology.depths == order[:, None])  # [..., w depths, w nodes]
    path = (there * order).sum(dim=-1)
    return Verdict(length=_row(topology.depths, last), path=path, bonus=bonus)


def _row(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`; plain indexing reads an index without dimensions on the host."""
    return table.index_select(0, index.reshape(-1)).view(index.shape + table.shape[1:])
