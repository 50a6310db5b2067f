"""DFlash's draft model on a target: the cached context, a block's logits, the table."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.dflash.model import DFlash
from bench.decoding.drafts.layers import FusedLayer, nbytes, write_rows
from bench.decoding.engines import ops
from bench.decoding.target import TargetModel


class Drafter:
    """The draft model, bound to a target's embeddings and LM head.

    Row i of a layer's cache is position i: the first `target.length` rows come from the target's
    states; the block is behind them, and the next step overwrites it. Everything but `start` is a
    function of tensors, so that engines can capture it.
    """

    def __init__(self, model: DFlash, target: TargetModel, vocabulary: Tensor) -> None:
        """`vocabulary` int64 [V'] holds the target's ids that can be drafted."""
        self._model, self._target = model, target
        self._rows = torch.empty(0)  # keys and values, [2, layers, H, rows, D]
        self._head = target.head().weight[vocabulary].contiguous()  # [V', d]
        self._score = target.product(self._head)
        self._block = torch.arange(model.config.depth + 1, device=target.device)
        self._visible = torch.ones(2 * [len(self._block)], device=target.device).bool()
        self._begin, self._end = target.fuse(self._entered), target.fuse(model.outputs)
        self._read = target.fuse(self._gathered)
        if model.markov is not None:  # T = features @ onward^T
            every = model.token_norm(target.embeddings().weight)  # [V, d]
            self._features = model.markov.features(every)  # [V, r]
            onward = self._head * model.state_norm.scale @ model.markov.out.weight
            self._onward = onward.contiguous()  # [V', r]
            self._gain = target.product(self._onward)

    def start(self, taps: list[Tensor]) -> None:
        """Start a new sequence, with the states [n, d] of its prompt."""
        config, like = self._model.config, taps[0]
        rows = self._target.cache.capacity + len(self._block)
        if self._rows.dim() < 5 or self._rows.shape[3] < rows:
            size = config.hidden_size // config.heads
            self._rows = like.new_zeros(2, config.layers, config.heads, rows, size)
            self._reserve(rows)
        self._store(self._model.tapped(taps), torch.arange(len(like), device=like.device))

    def remember(self, taps: list[Tensor], path: Tensor, accepted: Tensor) -> None:
        """Append the states of newly verified positions.

        Args:
            taps: of a tree's nodes, each [w, d].
            path: int64 [n], nodes from the root down. Those after the accepted ones are invalid;
                their rows are overwritten by the next block.
            accepted: int64 [1], the number of accepted nodes below the root.
        """
        self._store(*self._read(taps, path, accepted))

    def logits(self, root: Tensor) -> Tensor:
        """[K, V'] of the positions behind the newest token, int64 [1], without the table."""
        return self._score(self._end(self._run(self._begin(root))))

    def followed(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """logits [n, V'] behind tokens int64 [n], from those of their position, [1, V']."""
        if self._model.markov is None:
            return logits.expand(len(tokens), -1).contiguous()
        return logits + self._gain(self._features[tokens])

    def weight_bytes(self, levels: int) -> int:
        """Bytes of weights that drafting `levels` levels reads: the layers and the LM head's rows
        once, the table's at every level."""
        once = nbytes(self._model) + self._head.nbytes
        if self._model.markov is None:
            return once
        return once - nbytes(self._model.markov) + levels * self._onward.nbytes

    def _reserve(self, rows: int) -> None:
        """Make what else depends on the number of rows."""

    def _store(self, tapped: Tensor, rows: Tensor) -> None:
        """Keys and values of verified positions `rows`, int64 [n], from `DFlash.tapped`."""
        model = self._model
        c, turn = model.context(tapped), model.rotation(rows)
        for k, layer in enumerate(model.blocks):
            write_rows(self._rows[:, k], rows, *layer.keys_values(c, turn))

    def _run(self, u: Tensor) -> Tensor:
        """The layers' output [K + 1, d] from their input u."""
        rows = self._target.length + self._block
        turn = self._model.rotation(rows)
        for k, layer in enumerate(self._model.blocks):
            q, keys, values = layer.queries(u, turn)
            write_rows(self._rows[:, k], rows, keys, values)
            attended = self._target.attend(q, self._rows[0, k], self._rows[1, k], self._visible)
            u = layer.combine(u, attended.flatten(1))
        return u

    def _gathered(
        self, taps: list[Tensor], path: Tensor, accepted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(`DFlash.tapped` of a path, its positions [n]); see `remember`."""
        first = self._target.length - accepted - 1
        rows = first + torch.arange(len(path), device=path.device)
        return self._model.tapped([tap[path] for tap in taps]), rows

    def _entered(self, root: Tensor) -> Tensor:
        """u [K + 1, d] behind the newest token, int64 [1]."""
        return self._model.block(self._target.embeddings()(root))[0]


class FusedDrafter(Drafter):
    """The same in few kernels (`bench.decoding.engines.ops`), for engines that have them."""

    def __init__(self, model: DFlash, target: TargetModel, vocabulary: Tensor) -> None:
        super().__init__(model, target, vocabulary)
        self._tables = (torch.empty(0), torch.empty(0))  # cos, sin [rows, D / 2]
        self._layers = [FusedLayer(layer) for layer in model.blocks]
        halves = [layer.kv_proj.weight.chunk(2) for layer in model.blocks]
        keys, values = zip(*halves, strict=True)
        self._keys_values = torch.cat((*keys, *values))  # [2 layers d, d]

    def logits(self, root: Tensor) -> Tensor:
        return ops.linear(self._end(self._run(self._begin(root))), self._head)

    def followed(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if self._model.markov is None:
            return super().followed(logits, tokens)
        return ops.linear(self._features[tokens], self._onward, residual=logits)

    def _reserve(self, rows: int) -> None:
        cos, sin = self._model.rotation(torch.arange(rows, device=self._rows.device))
        self._tables = cos.squeeze(-2).contiguous(), sin.squeeze(-2).contiguous()

    def _store(self, tapped: Tensor, rows: Tensor) -> None:
        model, norm = self._model, self._model.context_norm
        c = ops.linear(tapped, model.fusion.weight)
        kv = ops.linear(c, self._keys_values, norm.weight, model.config.eps)
        keys, values = self._rows.flatten(1, 2)  # each [layers H, rows, D]
        ops.rotate_rows(kv, 0, keys, values, *self._tables, rows[:1], 0, 0, consecutive=True)

    def _run(self, u: Tensor) -> Tensor:
        place = (*self._tables, self._block, self._target.length, self._visible)
        for k, layer in enumerate(self._layers):
            rows, heads = self._rows[:, k], self._model.config.heads
            attended = ops.attend_rotated(layer.project(u), heads, None, rows[0], rows[1], *place)
            u = layer.combine(u, attended)
        return u
