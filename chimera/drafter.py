"""Drafting with Chimera's model: its KV cache, and token trees grown level by level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.decoding.decoder import Count
from bench.decoding.drafts.confident import ConfidentTree
from bench.decoding.drafts.layers import nbytes, write_rows
from bench.decoding.drafts.ranks import RankPath
from bench.decoding.drafts.worth import NodesWorth
from bench.decoding.engines import ops
from bench.decoding.target import TargetModel
from bench.decoding.tree import TokenTree, Topology
from chimera import fused
from chimera.model import Chimera


class Drafter:
    """The draft model, bound to a target's embeddings and LM head.

    Row i of the draft's cache is position i: the first `target.length` rows come from the target's
    true states, the rows after them from the encoder's own outputs in the tree being drafted.
    Everything but `start` is a function of tensors, so that engines can capture it.

    Attributes:
        vocabulary: int64 [V'], the target's ids that can be drafted.
    """

    def __init__(self, model: Chimera, target: TargetModel, vocabulary: Tensor, spare: int) -> None:
        """`vocabulary` int64 [V'] holds the target's ids that can be drafted; at most `spare` nodes
        of a tree are expanded."""
        self.model = model
        self._target = target
        self._embeddings: nn.Embedding = target.embeddings()
        self.vocabulary = vocabulary.to(target.device)
        self._head: Tensor | None = None
        self._bias: Tensor | None = None
        if not model.config.own_heads:
            self._head = target.head().weight[self.vocabulary].contiguous()
        if model.narrow is not None and self._head is not None:
            self._head, self._bias = model.narrow.head(self._head)
            table = model.narrow.embeddings(self._embeddings.weight)
            self._embeddings = nn.Embedding(
                len(table), table.shape[1], _weight=table
            ).requires_grad_(False)
        self._score = None if self._head is None else target.product(self._head)
        self._spare = spare
        self._rows = torch.empty(0)  # keys and values, [2, H, rows, D]
        self._drafted = 0  # rows after the true ones
        size, options = model.config.size, {"dtype": target.dtype, "device": target.device}
        self._state = torch.zeros(1, size, **options)  # type: ignore[call-overload]
        self._pull = torch.zeros_like(self._state) if model.config.query_state else None
        self._fused: fused.FusedDraft | None = None
        if fused.fits(model, target):
            self._fused = fused.draft(
                model, target, self._embeddings.weight, self._head, self._bias
            )
        depth = model.config.depth
        self._block = torch.ones(depth, depth, dtype=torch.bool, device=target.device)
        self._pass = (torch.empty(0), torch.empty(0))  # `Chimera.block_outputs`, of one pass
        self._root, self._estimate = target.fuse(self._rooted), target.fuse(self._estimated)
        self._follow = target.fuse(self._followed)
        self._ask = target.fuse(self._question)
        self._answer = target.fuse(self._reply)
        self._read = target.fuse(self._recall)
        self._spread = target.fuse(self._children)

    def start(self, hidden: Tensor, taps: list[Tensor]) -> None:
        """Start a new sequence, with true states [n, d]."""
        config, hidden = self.model.config, self._narrowed(hidden)
        rows = self._target.cache.capacity + self._spare
        if self._rows.dim() < 4 or self._rows.shape[2] < rows:
            shape = (2, config.heads, rows, config.size // config.heads)
            self._rows = torch.zeros(shape).to(hidden)
            if self._fused is not None:
                self._fused.reserve(rows)
        positions = torch.arange(hidden.shape[0], device=hidden.device)
        self._context(hidden, taps, positions, self._rows)
        keep = self._keep if self._fused is None else self._fused.state
        keep(hidden[-1:])

    def remember(self, hidden: Tensor, taps: list[Tensor], path: Tensor, accepted: Tensor) -> None:
        """Append true states of newly committed positions.

        Args:
            hidden: [w, d], of a tree's nodes.
            taps: of each [w, d].
            path: int64 [n], nodes from the root down. Those after the accepted ones are invalid;
                their rows are overwritten by the next draft.
            accepted: int64 [1], the number of accepted nodes below the root.
        """
        read = self._read if self._fused is None else self._fused.remember
        read(self._narrowed(hidden), taps, path, accepted, self._rows)

    def expand(
        self,
        trigrams: Tensor,
        level: int,
        visible: Tensor,
        last: bool = False,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Draft the children of n nodes at depth `level - 1` of the tree. A model with one pass
        runs it for the root, at level 1; its other levels read what that left.

        Args:
            trigrams: int64 [n, 3], the nodes' tokens, each with the two before it.
            level: depth of what is drafted, from 1.
            visible: bool [n, drafted rows + n]: the rows of the nodes' ancestors and their own.
            last: no deeper level follows, so that this level's rows are not needed.
            embedded: [n, 3d], as `sprout` returned it with the trigrams.

        Returns:
            logits [n, V'].
        """
        n, context = trigrams.shape[0], self.model.encoder.sees_context
        if self._fused is not None:
            x = self._fused.embed(trigrams) if embedded is None else embedded
            found = self._fused.level(x, level, visible, last, self._drafted, self._rows)
            self._drafted += n
            return found
        if self.model.config.one_pass:
            if level == 1:
                self._pass = self._run_pass(trigrams)
            z = self._follow(trigrams, *(rows[level - 1] for rows in self._pass))
            return z if self._score is None else self._score(z)
        if not context:  # a node sees only itself
            own = torch.eye(n, dtype=torch.bool, device=visible.device)
            visible = F.pad(own, (self._drafted, 0))
        length = self._target.length
        rows = length + self._drafted + torch.arange(n, device=trigrams.device)
        position = length + (level - 1)  # the same for all of a level
        u, q = self._ask(trigrams, self._pull, position, rows, self._rows)
        attended = self._target.attend(q, self._rows[0], self._rows[1], visible, context)
        into = None if last else self._rows
        logits: Tensor = self._answer(u, attended, self._state, position, level, rows, into)
        self._drafted += n
        return logits

    def _run_pass(self, trigrams: Tensor) -> tuple[Tensor, Tensor]:
        """`Chimera.block_outputs` of the root's trigram, int64 [1, 3]; its rows of the cache are
        overwritten by the next draft."""
        u, q = self._root(trigrams, self._pull, self._target.length, self._rows)
        attended = self._target.attend(q, self._rows[0], self._rows[1], self._block)
        return self._estimate(u, attended, self._state)

    def best(self, logits: Tensor, count: int) -> Tensor:
        """[n, count]: indices of the likeliest drafts of each row of [n, V']."""
        return self._target.top(logits, count)[1]

    def sprout(
        self, above: Tensor, best: Tensor, level: StaticLevel
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(trigrams [m, 3] of a level's nodes, those [k, 3] of the nodes to be expanded next, and
        the latter's embeddings [k, 3d] if `expand` reads them).

        above: int64 [n, 3], the expanded nodes; best: int64 [n, ranks], their drafts.
        """
        given = (above, best, level.parent, level.rank)
        if self._fused is None:
            return (*self._spread(*given, level.inner), None)
        shape = (level.place, len(level.inner))
        return ops.sprout(*given, *shape, self.vocabulary, *self._fused.embeddings)

    def rewind(self) -> None:
        """Discard the drafted tree."""
        self._drafted = 0

    def weight_bytes(self, levels: int) -> int:
        """Bytes of weights that drafting `levels` levels reads: each level reads the trigram
        encoder, the layer, its head and the LM head's rows; the committed positions of a step read
        the matrices of the taps, of h_t and of keys and values once. With one pass, the trigram
        encoder, the layer and all heads are read once, and a level reads the sequential head."""
        model, encoder = self.model, self.model.encoder
        apart = nbytes(encoder.from_taps) + nbytes(encoder.from_state)
        once = apart + nbytes(encoder.kv_proj)
        if model.narrow is not None:
            once += nbytes(model.narrow.from_state)
        layer = nbytes(model.trigram) + nbytes(encoder) - apart
        head = 0 if self._head is None else self._head.nbytes
        if model.sequential is not None:
            estimate = nbytes(model.sequential.from_estimate)
            once += layer + nbytes(model.heads) + estimate
            return once + levels * (nbytes(model.sequential) - estimate + head)
        level = layer + head
        heads = sum(nbytes(head) for head in model.heads.heads[:levels])
        return once + levels * level + heads

    def _narrowed(self, hidden: Tensor) -> Tensor:
        """True states [n, d] as the draft reads them, [n, w]."""
        narrow = self.model.narrow
        return hidden if narrow is None else narrow.states(hidden)

    # Functions of tensors, which engines may compile

    def _question(
        self, trigrams: Tensor, pull: Tensor | None, position: Tensor, rows: Tensor, into: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(input u [n, d] of the encoder, its query [n, H, D]); keys and values go into `rows`."""
        encoder = self.model.encoder
        u = self.model.trigram(self._embeddings(trigrams))
        u = u if pull is None else u + pull
        q, k, v = encoder.queries(u, encoder.rotation(position))
        write_rows(into, rows, k, v)
        return u, q

    def _reply(
        self,
        u: Tensor,
        attended: Tensor,
        state: Tensor,
        position: Tensor,
        level: int,
        rows: Tensor,
        into: Tensor | None,
    ) -> Tensor:
        """logits [n, V']; key and value of the encoder's own output go into `rows`."""
        encoder = self.model.encoder
        o = encoder.finish(u, attended)
        if into is not None:
            rotation = encoder.rotation(position)
            write_rows(into, rows, *encoder.keys_values(encoder.own_context(o), rotation))
        z: Tensor = self.model.heads(state.expand_as(o), o, level)
        if self._score is None:
            return z
        logits: Tensor = self._score(z)
        return logits if self._bias is None else logits + self._bias

    def _rooted(
        self, trigrams: Tensor, pull: Tensor | None, length: Tensor, into: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(inputs u [depth, d] of one pass, its queries [depth, H, D]); keys and values go behind
        the `length` true rows."""
        model, encoder = self.model, self.model.encoder
        x = model.trigram.standardised(self._embeddings(trigrams))  # [1, 3d]
        u = model.block_inputs(x, pull)[0]
        rows = length + torch.arange(u.shape[0], device=u.device)
        q, k, v = encoder.queries(u, encoder.rotation(rows))
        write_rows(into, rows, k, v)
        return u, q

    def _estimated(self, u: Tensor, attended: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`Chimera.block_outputs`: [depth, d] and [depth, inner]."""
        o = self.model.encoder.finish(u, attended)
        return self.model.block_outputs(state[0], o)

    def _followed(self, trigrams: Tensor, z: Tensor, added: Tensor) -> Tensor:
        """z [n, d] of n nodes of a level, from the pass's z [d] and A o^ [inner] for its depth."""
        model = self.model
        assert model.sequential is not None
        x = model.trigram.standardised(self._embeddings(trigrams))
        out: Tensor = z + model.heads.state_norm.scale * model.sequential(x, added)
        return out

    def _context(self, hidden: Tensor, taps: list[Tensor], rows: Tensor, into: Tensor) -> None:
        """Key and value of true states [n, d] into `rows`, which are their positions."""
        encoder = self.model.encoder
        k, v = encoder.keys_values(encoder.context(hidden, taps), encoder.rotation(rows))
        write_rows(into, rows, k, v)

    def _recall(
        self, hidden: Tensor, taps: list[Tensor], path: Tensor, accepted: Tensor, into: Tensor
    ) -> None:
        """See `remember`."""
        first = self._target.length - accepted - 1
        rows = first + torch.arange(len(path), device=path.device)
        self._context(hidden[path], [tap[path] for tap in taps], rows, into)
        self._keep(hidden[path[accepted]])

    def _keep(self, h: Tensor) -> None:
        """Store h_t, [1, d], and what it adds to the queries."""
        self._state.copy_(h)
        pull = self.model.encoder.pull(h)
        if self._pull is not None and pull is not None:
            self._pull.copy_(pull)

    def _children(
        self, above: Tensor, best: Tensor, parent: Tensor, rank: Tensor, inner: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(trigrams [m, 3] of a level's nodes, those of its nodes `inner`)."""
        nodes = ops.children(above, best, parent, rank, self.vocabulary)
        return nodes, nodes[inner]


class Grower(ABC):
    """How a tree is grown from its root.

    Attributes:
        depth: number of drafted levels.
        worth: chooses how many of the nodes are verified; None for all.
    """

    depth: int
    worth: NodesWorth | None = None

    @abstractmethod
    def grow(self, drafter: Drafter, recent: Tensor) -> TokenTree:
        """The tree after `recent`, int64 [3]; its last token, the newest, is the root."""


@dataclass(frozen=True)
class StaticLevel:
    """One level of a static tree.

    Attributes:
        visible: bool [n, rows + n], the drafted rows that the n expanded nodes above attend to.
        parent: int64 [m], the index of each node's parent among those n.
        rank: int64 [m], the rank of each node.
        inner: int64 [k], which of the m nodes are expanded next.
        place: int64 [m], the index of each node among those k, or -1.
        ranks: number of ranks needed.
    """

    visible: Tensor
    parent: Tensor
    rank: Tensor
    inner: Tensor
    place: Tensor
    ranks: int


class StaticGrower(Grower):
    """A tree of fixed rank paths."""

    def __init__(self, paths: Sequence[RankPath], device: torch.device) -> None:
        self.topology = Topology.from_rank_paths(paths, device)
        ordered = sorted({path[:k] for path in paths for k in range(len(path) + 1)} | {()})
        ordered.sort(key=len)  # as Topology.from_rank_paths orders its nodes
        has_children = {path[:-1] for path in ordered if path}
        rows: list[RankPath] = []  # expanded nodes, in the order of their rows
        parents: list[RankPath] = [()]
        self._levels: list[StaticLevel] = []
        for depth in range(1, max(map(len, ordered)) + 1):
            nodes = [path for path in ordered if len(path) == depth]
            rows += parents
            visible = [[row == path[: len(row)] for row in rows] for path in parents]
            inner = [i for i, path in enumerate(nodes) if path in has_children]
            place = [inner.index(i) if i in inner else -1 for i in range(len(nodes))]
            level = StaticLevel(
                visible=torch.tensor(visible, device=device),
                parent=torch.tensor([parents.index(p[:-1]) for p in nodes], device=device),
                rank=torch.tensor([path[-1] for path in nodes], device=device),
                inner=torch.tensor(inner, dtype=torch.long, device=device),
                place=torch.tensor(place, device=device),
                ranks=max(path[-1] for path in nodes) + 1,
            )
            self._levels.append(level)
            parents = [nodes[i] for i in inner]
        self.depth = len(self._levels)

    def grow(self, drafter: Drafter, recent: Tensor) -> TokenTree:
        drafter.rewind()
        above, embedded = recent[None], None
        trigrams = [above]  # by level, [m, 3]
        for depth, level in enumerate(self._levels, start=1):
            last = depth == self.depth
            logits = drafter.expand(above, depth, level.visible, last, embedded)
            best = drafter.best(logits, level.ranks)
            nodes, above, embedded = drafter.sprout(above, best, level)
            trigrams.append(nodes)
        return TokenTree(torch.cat(trigrams)[:, 2], self.topology)


class ConfidentGrower(Grower):
    """A tree of the likeliest paths; see `ConfidentTree`."""

    def __init__(self, nodes: Count, depth: int, beam: int, target: TargetModel) -> None:
        self._tree = ConfidentTree(nodes, depth, beam, target)
        self.depth = depth
        self._next = target.fuse(_followed_by)
        self.worth = self._tree.worth

    def grow(self, drafter: Drafter, recent: Tensor) -> TokenTree:
        drafter.rewind()
        trigrams = recent[None]  # [n, 3], of the nodes expanded last

        def expand(tokens: Tensor, above: Tensor, level: int, visible: Tensor) -> Tensor:
            nonlocal trigrams
            if level > 1:
                trigrams = self._next(trigrams, above, tokens)
            return drafter.expand(trigrams, level, visible, last=level == self.depth)

        return self._tree.grow(recent[2:], expand, drafter.vocabulary)


def _followed_by(trigrams: Tensor, above: Tensor, tokens: Tensor) -> Tensor:
    """int64 [n, 3]: the trigrams that end in `tokens` [n], behind those at `above` [n]."""
    return torch.cat((trigrams[above, 1:], tokens[:, None]), dim=1)
