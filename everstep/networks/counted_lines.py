"""Lines whose length is drawn first and then counted down."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.data.batches import TokenBatch
from everstep.heads.cross_entropy import row_nats
from everstep.learn.objective import Loss
from everstep.state import State, valid, where


class CountedLines(nn.Module):
    """p(line) = p(τ) Π_t p(x_t | x_<t, τ_t) for a line of τ words, with τ_t = τ − t the words still to come.

    Each step reads the embedding of the last word plus that of τ_t, so that the model knows where the line will end.
    The end follows when τ_t = 0, with certainty, and no word is the end. p(τ) = softmax(a)_τ over 1 … L is learned too.

    Tokens 0 … V − 1 are words; in `step`, V + τ is the count τ, which follows the begin symbol. So `everstep.sample`
    draws the count, then the words, then the end:

    >>> from everstep import LSTM, sample
    >>> model = CountedLines(LSTM(6, 8), words=5, end=0, longest=9)
    >>> drawn = sample(model.step, model.initial_state(3), [0], 11, count=3)
    >>> bool(((drawn[:, 1:] != 0).sum(1) == drawn[:, 0] - 5).all())
    True

    Args:
        body: a cell from E features to D.
        words: V, the end included.
        end: the word that ends a line, and stands before it.
        longest: L, the most words of a line, without its end.

    Parameters: `embedding.weight` (V, E); `remaining.weight` (L + 1, E), of τ_t; `weight` (V, D) and `bias` (V,) of the
    softmax, whose end is unused; `counts` (L,), a.

    Known limits: text that is given cannot be continued, because the count comes first; lines longer than L have no
    probability, and are refused in training.
    """

    def __init__(self, body: Cell, words: int, end: int, longest: int):
        super().__init__()
        self.body, self.words, self.end, self.longest = body, words, end, longest
        self.embedding = nn.Embedding(words, body.input_size)
        self.remaining = nn.Embedding(longest + 1, body.input_size)
        bound = body.output_size**-0.5
        self.weight = nn.Parameter(torch.empty(words, body.output_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(words))
        self.counts = nn.Parameter(torch.zeros(longest))

    def initial_state(self, batch: int) -> State:
        """The state before a line: that of the body, and the words still to come, −1 while it is unknown."""
        like = self.embedding.weight
        return self.body.initial_state(batch, like), like.new_full((batch,), -1)

    @torch.no_grad()
    def counted(self, lengths: Tensor) -> None:
        """Begin with the lengths (N,) of the training lines, in words: a_τ = log of how many have τ, at least ½."""
        often = torch.bincount(lengths.long(), minlength=self.longest + 1)[1 : self.longest + 1]
        self.counts.copy_(often.double().clamp_min(0.5).log())

    def _bias(self) -> Tensor:
        at = torch.arange(self.words, device=self.bias.device) == self.end
        return self.bias.masked_fill(at, -torch.inf)

    def nats(self, batch: TokenBatch) -> Tensor:
        """−log p of lines, (B,), in nats: `batch` as `Buckets` gives it, whose last target is the end.

        Raises:
            ValueError: a line has no word, or more than `longest`.
        """
        rows, time = batch.targets.shape
        lengths = torch.full((rows,), time, device=batch.targets.device) if batch.lengths is None else batch.lengths
        many = lengths - 1
        if bool((many < 1).any()) or bool((many > self.longest).any()):
            raise ValueError(f"CountedLines: expected lines of 1 to {self.longest} words, got {many.tolist()}")
        places = torch.arange(time, device=many.device)
        left = (many[:, None] - places).clamp_min(0)
        ys, _ = self.body(self.embedding(batch.inputs) + self.remaining(left), lengths=lengths)
        inside = valid(many, time)
        words = row_nats(ys[inside], self.weight, self._bias(), batch.targets[inside])
        found = torch.zeros_like(left, dtype=words.dtype).masked_scatter(inside, words).sum(1)
        return found - self.counts.log_softmax(0)[many - 1]

    def objective(self, model: nn.Module, batch: TokenBatch, state: State | None) -> Iterator[Loss]:
        """The objective for `everstep.fit`."""
        del state  # lines are separate
        assert isinstance(model, CountedLines)
        nats = model.nats(batch)
        yield Loss(nats, nats.detach())

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens (batch,), words or counts, to log p of the next, (batch, V + L + 1), and the new state.

        The begin symbol gives log p of counts. A count is read together with the begin symbol, and each word after it
        takes one from what is left.
        """
        inner, left = state
        counting = tokens > self.words
        fresh = (left < 0) & ~counting
        left = torch.where(counting, (tokens - self.words).to(left), torch.where(fresh, left, (left - 1).clamp_min(0)))
        read = torch.where(counting, self.end, tokens)
        y, moved = self.body.step(self.embedding(read) + self.remaining(left.clamp_min(0).long()), inner)
        inner = where(~fresh, moved, inner)
        words = nn.functional.linear(y, self.weight, self._bias()).float().log_softmax(-1)
        ends = torch.full_like(words, -torch.inf)
        ends[:, self.end] = 0
        log_p = torch.full((len(tokens), self.words + 1 + self.longest), -torch.inf, device=y.device)
        log_p[:, : self.words] = torch.where((left > 0)[:, None], words, ends)
        start = torch.full_like(log_p, -torch.inf)
        start[:, self.words + 1 :] = self.counts.float().log_softmax(0)
        return torch.where(fresh[:, None], start, log_p), (inner, left)
