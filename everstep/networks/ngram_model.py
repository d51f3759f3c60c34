"""A table of counts as a model: it scores, steps and generates like a network, and has nothing to optimise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from everstep.data.batches import TokenBatch
from everstep.learn.objective import Loss
from everstep.rivals.ngrams.ngram_table import NGramTable
from everstep.rivals.sparse_matrix.sparse_matrix_table import SparseMatrixTable
from everstep.state import State


class NGramModel(nn.Module):
    """p(x_t | the tokens before) of a table.

    The state is (batch, …) int64, see `NGramTable` and `SparseMatrixTable`. It has no parameters of PyTorch: its
    numbers are the table's, which may be mapped from a file.

    Args:
        table: the n-grams, or the matrix.

    Attributes:
        parameter_count: number of values in the table.
    """

    def __init__(self, table: NGramTable | SparseMatrixTable):
        super().__init__()
        self.table = table
        self.parameter_count = table.parameters

    def extra_repr(self) -> str:
        """The sizes of the table."""
        return self.table.described()

    def initial_state(self, batch: int) -> Tensor:
        """The state before any token."""
        return torch.from_numpy(self.table.initial_state(batch))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """log p of the next tokens (batch, V) in nats after tokens (batch,), and the new state: a `StepFn`."""
        assert isinstance(state, Tensor)
        log_p, new = self.table.step(tokens.cpu().numpy(), state.cpu().numpy())
        return torch.from_numpy(log_p), torch.from_numpy(new)

    def loss(self, batch: TokenBatch, state: State) -> Loss:
        """-Σ log p of the targets of each row, and the state after the batch."""
        rows, time = batch.inputs.shape
        before = state if isinstance(state, Tensor) else self.initial_state(rows)
        resets = None if batch.resets is None else batch.resets.numpy()
        log_p, after = self.table.score(batch.inputs.numpy(), batch.targets.numpy(), before.numpy(), resets)
        if batch.lengths is not None:
            log_p[np.arange(time) >= batch.lengths.numpy()[:, None]] = 0
        nats = torch.from_numpy(-log_p.sum(1))
        return Loss(nats, nats, torch.from_numpy(after))

    def row_log_probs(self, rows: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """log p in nats of each token of each row, except the first, given those before it."""
        flat = np.fromiter((token for row in rows for token in row), np.int64)
        starts = np.cumsum([0, *map(len, rows)])
        resets = np.zeros((1, max(len(flat) - 1, 0)), np.bool_)
        resets[0, starts[1:-1][starts[1:-1] < len(flat) - 1]] = True
        if not resets.size:
            return [()] * len(rows)
        log_p, _ = self.table.score(flat[None, :-1], flat[None, 1:], self.table.initial_state(1), resets)
        values = log_p[0].tolist()
        return [tuple(values[start : max(end - 1, start)]) for start, end in pairwise(starts)]
