"""A batched generator in which the target writes whole conversations, users' turns included.

Every sequence of a batch is at the same row, so that a step is dense: one token each, no padding,
attention over the live rows of one static cache. A small state machine on the device decides what a
sequence does at a row: it samples a user's turn, copies the template's tokens or answers.

Given prompts are a queue: a sequence whose conversation has ended begins the next one in its later
rows. It reads the rows of the template's opening, which all conversations share, and its own, at
the positions that it would have if it stood alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache

from bench.decoding.cache import TreeCache, cache_argument, round_up
from bench.training.conversations import Conversation

USER, TURN, ANSWER, NEXT, DONE = range(5)  # what a sequence is writing
ATTENTION = "chimera_batch_decode"
TELL = 32  # rows between two reports of progress
ROOM = 4  # a conversation begins where at least a ROOM-th of the rows is left
LOGITS = 6  # float32 tensors of all logits that live at a time


@dataclass(frozen=True)
class WriterSettings:
    """How conversations are written.

    Attributes:
        batch: sequences at a time.
        length: tokens of a sequence, T.
        user_tokens: a user's turn that is longer ends with its sentence or line; at twice as many
            tokens it is cut and its answer is not kept.
        temperature, min_p: of users' turns (min-p: arXiv 2407.01082).
        answer_temperature: 0 for greedy answers.
        answer_tokens: an answer is cut behind as many; None: none is.
    """

    batch: int = 1024
    length: int = 448
    user_tokens: int = 96
    temperature: float = 1.0
    min_p: float = 0.04
    answer_temperature: float = 0.0
    answer_tokens: int | None = None

    @property
    def longest(self) -> int:
        """Tokens at which a user's turn is cut, its end included."""
        return 2 * self.user_tokens


def sequence_bytes(model: Any, length: int) -> int:
    """Memory of one sequence of a batch: its cache, ids and roles, and what its logits take while
    a token is drawn."""
    config = model.config.get_text_config()
    cache = TreeCache.of(config, model.dtype, torch.device("meta"))
    cache.reserve(length)
    logits: int = LOGITS * 4 * config.vocab_size
    return cache.rows.nbytes + 9 * length + logits


def _attend(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_kwargs: object,
) -> tuple[Tensor, None]:
    """One query for each sequence. A key head's queries become rows, so that keys are read once.

    query: [B, heads, 1, D]; key, value: [B, kv_heads, rows, D], of the whole cache; mask:
    [B, 1, 1, live], of the rows that are read.
    """
    assert attention_mask is not None
    live = attention_mask.shape[-1]
    key, value = key[:, :, :live], value[:, :, :live]
    batch, heads, _, size = query.shape
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], size)
    out = F.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(batch, 1, heads, size), None


class Writer:
    """Writes batches of conversations with one causal LM."""

    def __init__(
        self,
        model: Any,
        conversation: Conversation,
        settings: WriterSettings,
        generator: torch.Generator,
    ) -> None:
        """`generator` lives on the model's device and is the only source of randomness."""
        self.model = model
        self.settings = settings
        self.conversation = conversation
        self._generator = generator
        device, batch = model.device, settings.batch
        config = model.config.get_text_config()
        self._argument = cache_argument(model)
        self._cache = TreeCache.of(config, model.dtype, device, batch)
        self._cache.reserve(settings.length)
        self._row = torch.zeros(1, dtype=torch.long, device=device)  # the newest token's
        self._cache.write_to = self._row
        self._live = 0  # rows that attention reads
        self._opening = torch.tensor(conversation.opening, device=device)
        self._turn = torch.tensor(conversation.turn, device=device)
        self._next = torch.tensor(conversation.next_turn, device=device)
        vocab = config.vocab_size  # a tokenizer may have more tokens
        control = [i for i in conversation.control if i < vocab]
        closing = [i for i in conversation.closing if i < vocab]
        self._control = torch.tensor(control, dtype=torch.long, device=device)
        self._closes = torch.zeros(vocab, dtype=torch.bool, device=device)
        self._closes[closing] = True
        self._ids = torch.zeros(batch, settings.length, dtype=torch.long, device=device)
        self._roles = torch.zeros(batch, settings.length, dtype=torch.uint8, device=device)
        self._mode, self._count, self._turns, self._number, self._begin = (
            torch.zeros(batch, dtype=torch.long, device=device) for _ in range(5)
        )
        self._owner = torch.zeros(batch, settings.length, dtype=torch.long, device=device)
        self._next_number = torch.zeros(1, dtype=torch.long, device=device)
        self._kept = torch.ones(batch, dtype=torch.bool, device=device)
        self._prompts: Tensor | None = None  # [N, turns, P], padded with -1
        self._asked = torch.zeros(1, dtype=torch.long, device=device)  # how many of the N
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        AttentionInterface.register(ATTENTION, _attend)

    @torch.inference_mode()
    def write(
        self, prompts: Tensor | None = None, wrote: Callable[[int], object] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(ids int64 [n, T], roles uint8 [n, T]: 1 where the target answered a kept prompt).

        Args:
            prompts: int64 [N, turns, P] with N >= B, padded with -1; sampled where None. The first
                n of them, B <= n <= N, are asked.
            wrote: called now and then with how many tokens are new.
        """
        self._start(prompts)
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation(ATTENTION)
        try:
            told, length = 0, self.settings.length
            for row in range(len(self.conversation.opening) - 1, length - 1):
                self._run(min(round_up(row + 1), length))
                if wrote and ((row + 2) % TELL == 0 or row + 2 == length):
                    now = int(self._row) + 1  # waits for the device
                    wrote(self.settings.batch * (now - told))
                    told = now
        finally:
            self.model.set_attn_implementation(usual)
        return self._conversations()

    def _conversations(self) -> tuple[Tensor, Tensor]:
        """(ids, roles) [n, T], a conversation a row, in the order of the prompts."""
        if self._prompts is None:
            return self._ids.clone(), self._roles.clone()
        start = len(self.conversation.opening)
        count = int(self._next_number)
        sequence, row = (self._owner >= 0).nonzero(as_tuple=True)
        owner = self._owner[sequence, row]
        begin = row.new_full((count,), self.settings.length)
        begin.scatter_reduce_(0, owner, row, "amin")
        ids = self._ids.new_zeros(count, self.settings.length)
        roles = self._roles.new_zeros(count, self.settings.length)
        ids[:, :start] = self._opening
        place = row - begin[owner] + start
        ids[owner, place] = self._ids[sequence, row]
        roles[owner, place] = self._roles[sequence, row]
        return ids, roles

    def _start(self, prompts: Tensor | None) -> None:
        """Run the opening once, as it is the same for all, and copy it to every sequence."""
        if prompts is not None:
            self._take(prompts)
        opening = self._opening
        known = DynamicCache(config=self.model.config.get_text_config())
        self.model.base_model(input_ids=opening[None], use_cache=True, **{self._argument: known})
        for layer, source in zip(self._cache.layers, known.layers, strict=True):
            layer.keys[:, :, : len(opening)] = source.keys
            layer.values[:, :, : len(opening)] = source.values
        self._ids.zero_()
        self._roles.zero_()
        self._ids[:, : len(opening)] = opening
        self._row.fill_(len(opening) - 1)
        self._mode.fill_(USER)
        self._count.zero_()
        self._turns.zero_()
        self._kept.fill_(True)
        self._owner.fill_(-1)
        self._begin.fill_(len(opening))
        torch.arange(self.settings.batch, out=self._number)
        self._next_number.fill_(self.settings.batch)

    def _take(self, prompts: Tensor) -> None:
        """Replace the prompts, in place if they fit: graphs read them where they are."""
        known = self._prompts
        fits = known is not None and known.shape[1:] == prompts.shape[1:]
        if known is None or not fits or len(known) < len(prompts):
            self._graphs.clear()
            self._prompts = known = torch.empty_like(prompts, device=self.model.device)
        known[: len(prompts)] = prompts
        self._asked.fill_(len(prompts))

    def _run(self, live: int) -> None:
        """One step; on a GPU a graph captured once for every number of live rows."""
        self._live = live
        if self.model.device.type != "cuda":
            self._step()
            return
        if live not in self._graphs:
            self._graphs[live] = self._capture(self._step)
        self._graphs[live].replay()

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        state = [self._row, self._ids, self._roles, self._mode, self._count]
        state += [self._turns, self._kept, self._number, self._begin, self._owner]
        state.append(self._next_number)
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm-up, undone below
            step()
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph):
            step()
        return graph

    def _step(self) -> None:
        """Run the tokens at `row` and write those of the next row."""
        row = self._row
        rows = torch.arange(self._live, device=row.device)
        start = len(self.conversation.opening)
        begin = self._begin[:, None]
        seen = (rows <= row) & ((rows < start) | (rows >= begin))  # [B, live]
        mask = torch.where(seen, 0.0, -torch.inf).to(self.model.dtype)[:, None, None]
        output = self.model(
            input_ids=self._ids.index_select(1, row),
            position_ids=row - begin + start,
            attention_mask=mask,
            use_cache=True,
            **{self._argument: self._cache},
        )
        owner = torch.where(self._mode == DONE, -1, self._number)
        token, role = self._advance(output.logits[:, -1])
        row.add_(1)
        self._owner.index_copy_(1, row, owner[:, None])
        self._ids.index_copy_(1, row, token[:, None])
        self._roles.index_copy_(1, row, role[:, None])

    def _advance(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(next token, role) [B] of every sequence, and its next state."""
        mode, count = self._mode, self._count
        turn, after = self._turn, self._next
        words, ended, cut = self._user_words(logits)
        answer, own = self._answer(logits)
        in_turn = turn[count.clamp(max=len(turn) - 1)]
        in_next = after[count.clamp(max=len(after) - 1)]
        token = torch.where(mode == USER, words, torch.where(mode == ANSWER, answer, 0))
        token = torch.where(mode == TURN, in_turn, torch.where(mode == NEXT, in_next, token))
        role = ((mode == ANSWER) & self._kept & own).to(torch.uint8)
        # A slot's last token is the first token of the template's next part.
        moves = (
            (USER, ended, TURN, 1),
            (TURN, count + 1 >= len(turn), ANSWER, 0),
            (ANSWER, answer == after[0], NEXT, 1),
            (NEXT, count + 1 >= len(after), USER, 0),
        )
        new_mode, new_count = mode.clone(), count + 1
        for at, leaves, to, first in moves:
            here = (mode == at) & leaves
            new_mode = torch.where(here, to, new_mode)
            new_count = torch.where(here, first, new_count)
        answered = (mode == ANSWER) & (answer == after[0])
        self._turns.add_(answered)
        if self._prompts is not None:
            given = (self._prompts[..., 0] >= 0).sum(dim=1)  # turns
            finished = answered & (self._turns >= given[self._number])
            new_mode, new_count = self._begin_next(finished, new_mode, new_count)
        self._kept.copy_(torch.where(mode == USER, ~cut, self._kept))
        self._mode.copy_(new_mode)
        self._count.copy_(new_count)
        return token, role

    def _begin_next(self, finished: Tensor, mode: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """(mode, count) [B] of sequences of which some, bool [B], have finished a conversation:
        they take the next prompts of the queue while there is room, else they are done."""
        number = self._next_number + finished.cumsum(0) - 1
        left = self.settings.length - (self._row + 2)
        starts = finished & (number < self._asked)
        starts = starts & (left >= self.settings.length // ROOM)
        self._number.copy_(torch.where(starts, number, self._number))
        self._begin.copy_(torch.where(starts, self._row + 2, self._begin))
        self._turns.masked_fill_(starts, 0)
        self._next_number.add_(starts.sum())
        mode = torch.where(finished, torch.where(starts, USER, DONE), mode)
        return mode, torch.where(starts, 0, count)

    def _user_words(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(token, whether it ends the slot, whether the slot was cut short), each [B]."""
        end = self.conversation.turn[0]
        if self._prompts is not None:
            turns, room = self._prompts.shape[1:]
            at = self._turns.clamp(max=turns - 1)
            rest = self._prompts[self._number, at]
            given = rest.gather(1, self._count.clamp(max=room - 1)[:, None]).squeeze(1)
            ended = (given < 0) | (self._count >= room)
            return torch.where(ended, end, given), ended, torch.zeros_like(ended)
        limit, longest = self.settings.user_tokens, self.settings.longest
        scores = logits.float() / self.settings.temperature
        scores.index_fill_(1, self._control, -torch.inf)
        scores[:, end] = scores[:, end].masked_fill(self._count == 0, -torch.inf)
        floor = scores.amax(dim=-1, keepdim=True) + math.log(self.settings.min_p)
        word = self._draw(scores.masked_fill(scores < floor, -torch.inf))
        newest = self._ids.index_select(1, self._row)[:, 0]
        word = torch.where((self._count >= limit) & self._closes[newest], end, word)
        cut = (self._count + 1 >= longest) & (word != end)
        word = torch.where(cut, end, word)
        return word, word == end, cut

    def _answer(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(token, whether the target chose it), each [B]."""
        if self.settings.answer_temperature == 0:
            token = logits.argmax(dim=-1)
        else:
            token = self._draw(logits.float() / self.settings.answer_temperature)
        if self.settings.answer_tokens is None:
            return token, torch.ones_like(self._kept)
        end = self._next[0]
        cut = (self._count >= self.settings.answer_tokens) & (token != end)
        return torch.where(cut, end, token), ~cut

    def _draw(self, scores: Tensor) -> Tensor:
        """One token a row with probability softmax(scores): the Gumbel-max trick."""
        noise = torch.empty_like(scores).exponential_(generator=self._generator).log_()
        return (scores - noise).argmax(dim=-1)
