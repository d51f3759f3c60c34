"""Randomness along a sequence: dropout between layers, one mask per sequence, and zoneout.

A mask belongs to the sequence. It is drawn when a sequence is run, never stored, and never drawn inside a `step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everstep import hooks
from everstep.backends.dispatch import dispatch
from everstep.cell import Cell, Layer, scan
from everstep.equation import Gated
from everstep.state import State, leaves, map_state, unflatten
from everstep.wirings.cell_wrapper import CellWrapper
from everstep.wirings.masks import bernoulli, dropout, dropout_mask
from everstep.wirings.memoryless import Memoryless
from everstep.wirings.stack import zero_padding
from everstep.wirings.time_distributed import check_cell


class Dropout(Memoryless):
    """y_t = x_t ∘ m_t / (1 − p), a new mask at every step; the place for it is between layers (Zaremba 2014).

    >>> from everstep import LSTM, Stack
    >>> cell = Stack(LSTM(3, 8), Dropout(8, 0.5), LSTM(8, 8))

    Args:
        size: features.
        p: probability in [0, 1) that a feature is dropped in training.
    """

    def __init__(self, size: int, p: float):
        super().__init__(size)
        self.p = probability(self, "p", p)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step, with a mask of its own."""
        return dropout(x, self.p, self.training), state

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """All steps at once."""
        return zero_padding(dropout(xs, self.p, self.training), lengths), state

    def extra_repr(self) -> str:
        return f"{self.input_size}, p={self.p}"


class Masking(CellWrapper):
    """Base class of wirings around a `cell` that draw a mask in training, with probability `p`.

    The mask belongs to the sequence: `unroll` draws it, and a single step in training raises an error.

    Attributes:
        once: whether one mask is used for the whole sequence, which then cannot be cut into pieces.
    """

    p: float
    once: bool = True

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The cell's step, outside of training."""
        if self.training and self.p > 0:
            raise RuntimeError(
                f"{type(self).__name__}: a single step has no sequence that its mask belongs to; call the cell on a "
                "sequence, or .eval() it"
            )
        return super().step(x, state)


class FeedingMasks(Masking):
    """What wirings share that put their masks into the step of a `Gated` cell, by their method `dropped`."""

    def __init__(self, cell: Gated, p: float):
        super().__init__(cell.input_size, cell.output_size)
        self.cell, self.p = cell, probability(self, "p", p)
        self._fed = (Fed(self, "fed"),)  # in a tuple, so that it is not a submodule

    def fed(self, x: Tensor, state: State, mask: Tensor) -> tuple[Tensor, State]:
        """One step with a mask; the cell's hooks run around it as around its own step."""
        if not hooks.pending(self.cell):
            return self.dropped(x, state, mask)
        y, new = hooks.around(self.cell, lambda x, state: self.dropped(x, state, mask), x, state)
        return y, new

    def dropped(self, x: Tensor, state: State, mask: Tensor) -> tuple[Tensor, State]:
        """One step with a mask (batch, hidden_size)."""
        raise NotImplementedError

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """In training, draw the masks first (per step, or one per row) and pass them to the step as extra inputs."""
        if not self.training or self.p == 0:
            return scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        batch, time = xs.shape[:2]
        masks = dropout_mask(xs, (batch, 1 if self.once else time, self.cell.hidden_size), self.p)
        return dispatch(self._fed[0], (xs, masks.expand(-1, time, -1)), state, lengths, resets, backend)

    def dispatched(self, xs: Tensor) -> tuple[Layer, Any] | None:
        """In training, the step that takes masks as inputs."""
        if not self.training or self.p == 0:
            return None
        return self._fed[0], (xs, xs.new_empty(1).expand(*xs.shape[:2], self.cell.hidden_size))


class VariationalDropout(Masking):
    """A cell with one input dropout mask for the whole sequence (Gal & Ghahramani 2016).

    y_t = cell(x_t ∘ m / (1 − p)), with m drawn for every row each time a sequence is run.
    `VariationalDropout(Identity(n), p)` does the same to the output of the layer below.

    Args:
        cell: the cell inside.
        p: probability in [0, 1) that an input feature is dropped in training.

    Raises:
        RuntimeError: `step` in training, since the mask belongs to a sequence.
    """

    def __init__(self, cell: Cell, p: float):
        check_cell("VariationalDropout", cell)
        super().__init__(cell.input_size, cell.output_size)
        self.cell, self.p = cell, probability(self, "p", p)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Draw one mask per row, then run the cell over the whole sequence."""
        if self.training and self.p > 0:
            xs = xs * dropout_mask(xs, (len(xs), 1, xs.shape[2]), self.p)
        return scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Zoneout(Cell):
    """Each unit of the state keeps its old value with probability p (Krueger 2017).

    s_t = m_t ∘ s_{t-1} + (1 − m_t) ∘ s̃_t with m_t ~ Bernoulli(p), new at every step; in eval mode the mean,
    s_t = p·s_{t-1} + (1 − p)·s̃_t. If the cell's output is one of its state leaves, so is Zoneout's.

    >>> from everstep import LSTM
    >>> ys, (h, c) = Zoneout(LSTM(3, 5), {"h": 0.05, "c": 0.5})(torch.zeros(2, 7, 3))

    Args:
        cell: the cell inside.
        p: one probability in [0, 1) for all leaves of the state, or a mapping from leaf names to probabilities.

    Known limit: in training the masks enter the step, so that no vendor kernel can run it.

    Raises:
        ValueError: a probability outside of [0, 1), or for a leaf that the state does not have.
    """

    def __init__(self, cell: Cell, p: float | Mapping[str, float]):
        check_cell("Zoneout", cell)
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell
        names = [name for name, _ in leaves(cell.initial_state(1, torch.zeros(1)))]
        given = dict(p) if isinstance(p, Mapping) else dict.fromkeys(names, p)
        if unknown := sorted(set(given) - set(names)):
            raise ValueError(f"Zoneout: no state leaf {unknown[0]!r}; {type(cell).__name__} has {', '.join(names)}")
        self.p = {name: probability(self, name, given.get(name, 0.0)) for name in names}
        # stored, so that it is compiled once; in a tuple, so that it is not a submodule
        self._fed = (Fed(self, "zoned"),)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's."""
        return self.cell.initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step; in training it draws its own masks."""
        if self.training:
            return self.zoned(x, state, map_state(lambda m: m[:, 0], self._draw(state, 1)))
        return self.zoned(x, state, unflatten(state, list(self.p.values())))

    def zoned(self, x: Tensor, state: State, keep: State) -> tuple[Tensor, State]:
        """One step that keeps the fraction `keep` (a mask or a number) of the old state."""
        # computed first, because the step may write over its state
        kept = map_state(lambda old, k: k * old, state, keep)
        y, new = self.cell.step(x, state)
        mixed = map_state(lambda old, fresh, k: old + (1 - k) * fresh, kept, new, keep)
        for (_, fresh), (_, leaf) in zip(leaves(new), leaves(mixed), strict=True):
            if fresh is y:
                return leaf, mixed
        return y, mixed

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """In training, draw the masks of all steps first and pass them to the step as extra inputs."""
        if not self.training:
            return dispatch(self, xs, state, lengths, resets, backend)
        return dispatch(self._fed[0], (xs, self._draw(state, xs.shape[1])), state, lengths, resets, backend)

    def dispatched(self, xs: Tensor) -> tuple[Layer, Any] | None:
        """In training, the step that takes masks as inputs."""
        if not self.training:
            return self, xs
        like = self.initial_state(1, xs)
        masks = map_state(lambda leaf: leaf.new_empty(1).expand(*xs.shape[:2], *leaf.shape[1:]), like)
        return self._fed[0], (xs, masks)

    def _draw(self, state: State, steps: int) -> State:
        masks = [
            bernoulli(leaf, (len(leaf), steps, *leaf.shape[1:]), p)
            for (_, leaf), p in zip(leaves(state), self.p.values(), strict=True)
        ]
        return unflatten(state, masks)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Fed(Cell):
    """A wiring whose masks come in with the inputs: a pure step, `wiring.METHOD(x, state, masks)`."""

    def __init__(self, wiring: Cell, method: str):
        super().__init__(wiring.input_size, wiring.output_size)
        self.wiring, self.method = wiring, method

    def _get_name(self) -> str:
        return str(self.wiring._get_name())

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The wiring's."""
        return self.wiring.initial_state(batch, like)

    def step(self, x: tuple[Tensor, Any], state: State) -> tuple[Tensor, State]:
        """One step of the wiring."""
        y, new = getattr(self.wiring, self.method)(x[0], state, x[1])
        return y, new


def probability(who: Cell, name: str, p: float) -> float:
    """`p` if it is a number in [0, 1); else a ValueError that names `who` and `name`."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
        raise ValueError(f"{type(who).__name__}: {name} should be a probability in [0, 1), but is {p!r}")
    return float(p)
