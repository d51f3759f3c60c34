"""A cell that reads a memory at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer, scan
from everstep.state import State, leaves, like_nest, map_state, where
from everstep.wirings.attention.attending import Attention, AttentionMemory, BatchedAttention
from everstep.wirings.stack import zero_padding
from everstep.wirings.time_distributed import check_cell


class AttendState(NamedTuple):
    """The state of `Attend`.

    Attributes:
        cell: the state of the cell inside.
        memory: what is read; steps never change it.
        attention: what the attention carries from query to query; `()` for most.
        fed: the output before, (batch, output_size), if it is fed back; else `()`.
    """

    cell: State
    memory: AttentionMemory
    attention: State
    fed: State


class Attend(Cell):
    """A cell that reads a memory, such as the outputs of an encoder, through an attention.

    query="before" (Bahdanau 2015, "Neural machine translation by jointly learning to align and translate"):
    c_t = attention(h_{t-1}, memory); y_t, s_t = cell([x_t; c_t], s_{t-1}), h the first leaf of the state s.
    query="after" (Luong 2015, "Effective approaches to attention-based neural machine translation"):
    y_t, s_t = cell(x_t, s_{t-1}); c_t = attention(y_t, memory).
    The output o_t is y_t ("cell"), [y_t; c_t] ("both") or tanh(W [c_t; y_t]) ("mixed", Luong's). With input feeding
    (Luong 2015), the cell's input ends with o_{t-1}, zeros before the first step.

    >>> cell = Attend(es.LSTM(3 + 6, 5), es.AdditiveAttention(5, 6))  # [x; c], from h
    >>> luong = Attend(es.LSTM(3 + 5, 5), es.GeneralAttention(5, 6), "after", input_feeding=True)  # [x; o]
    >>> state = cell.start(torch.randn(2, 7, 6), lengths=torch.tensor([7, 4]))
    >>> ys, state = cell(torch.zeros(2, 9, 3), state)
    >>> y, state, weights = cell.step_with_weights(torch.zeros(2, 3), state)
    >>> ys.shape, weights.shape
    (torch.Size([2, 9, 5]), torch.Size([2, 7]))

    The memory is part of the state, an `AttendState` that `start` makes. So the cell steps, streams, chunks and
    reorders like any other, and each call may bring a memory of another size. Without a state, and in `initial_state`,
    the memory is empty: contexts are 0. A reset restores the state of the cell, of the attention and what is fed back;
    the memory stays.

    If nothing read goes back into the cell ("after" without input feeding), a sequence is one scan of the cell, then
    all queries at once, then one product for all outputs.

    Args:
        cell: the cell inside, whose inputs are those of x_t, then c_t ("before"), then o_{t-1} (input feeding).
        attention: its queries are as large as h or y.
        query: "before" or "after" the cell's step.
        output: "cell", "both" or "mixed"; by default "cell" for queries before, "mixed" for queries after.
        input_feeding: feed the last output back.
        device, dtype: of W, the layer `mix`, (output_size of the cell, memory_size + that); there is no bias.

    Known limits: where something goes back into the cell, it runs step by step even if it is a stack whose layers could
    run one by one, and random masks inside are not supported (see `VariationalDropout`).

    Raises:
        TypeError: not a cell, or not an attention.
        ValueError: an unknown option, sizes that do not fit, or an output that leaves out what is read after the step.
    """

    def __init__(
        self,
        cell: Cell,
        attention: Attention,
        query: Literal["before", "after"] = "before",
        *,
        output: Literal["cell", "both", "mixed"] | None = None,
        input_feeding: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_cell("Attend", cell)
        if not isinstance(attention, Attention):
            raise TypeError(f"Attend: expected an attention, but got {type(attention).__name__}")
        if query not in ("before", "after"):
            raise ValueError(f"Attend: query should be 'before' or 'after', but is {query!r}")
        output = output or ("cell" if query == "before" else "mixed")
        if output not in ("cell", "both", "mixed"):
            raise ValueError(f"Attend: output should be 'cell', 'both' or 'mixed', but is {output!r}")
        if (query, output) == ("after", "cell"):
            raise ValueError(
                "Attend: with query='after', output='cell' leaves out what is read; take 'both' or 'mixed'"
            )
        super().__init__()
        self.cell, self.reader = cell, AttentionReader(attention)
        self.query, self.output, self.input_feeding = query, output, input_feeding
        self.output_size = cell.output_size + attention.memory_size * (output == "both")
        self.input_size = (
            cell.input_size - self._read_first() * attention.memory_size - input_feeding * self.output_size
        )
        self._check_sizes()
        if output == "mixed":
            width = attention.memory_size + cell.output_size
            self.mix = nn.Linear(width, cell.output_size, bias=False, device=device, dtype=dtype)

    @property
    def attention(self) -> Attention:
        """The attention."""
        return self.reader.attention

    def start(self, memory: Tensor, lengths: Tensor | None = None, state: State = None) -> AttendState:
        """The state before the first step over a memory.

        Args:
            memory: (batch, S, memory_size), S of any size.
            lengths: (batch,) whole numbers in 0 … S: what lies beyond is never read. All of it if None.
            state: of the cell inside; its initial state if None.

        Raises:
            TypeError, ValueError: a memory or lengths of another shape, dtype or range.
        """
        given = self.attention.prepare(memory, lengths)
        like = given.mask
        initial = self.cell.initial_state(like.shape[0], like)
        return AttendState(
            initial if state is None else like_nest(state, initial), given, self.attention.start(given), self._fed(like)
        )

    def initial_state(self, batch: int, like: Tensor) -> AttendState:
        """The cell's, over an empty memory; its number of places is free: each call may bring another."""
        memory, carried = self.attention.empty(batch, like), self.attention.initial_state(batch, like)
        return AttendState(self.cell.initial_state(batch, like), memory, carried, self._fed(like.new_empty(batch, 0)))

    def step(self, x: Tensor, state: AttendState) -> tuple[Tensor, AttendState]:
        """One step of the equation."""
        y, state, _ = self.step_with_weights(x, state)
        return y, state

    def step_with_weights(self, x: Tensor, state: AttendState) -> tuple[Tensor, AttendState, Tensor]:
        """One step: the output, the new state, and the weights (batch, S) of the places of the memory."""
        inner, memory, carried, fed = state
        given = [x]
        if self._read_first():
            context, weights, carried = self.attention.attend(leaves(inner)[0][1], memory, carried)
            given.append(context)
        if self.input_feeding:
            given.append(fed)
        y, inner = self.cell.step(torch.cat(given, -1) if len(given) > 1 else x, inner)
        if not self._read_first():
            context, weights, carried = self.attention.attend(y, memory, carried)
        y = self._joined(y, context)
        return y, AttendState(inner, memory, carried, y if self.input_feeding else ()), weights

    def unroll(
        self, xs: Tensor, state: AttendState, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Step by step where something read goes back; else the cell, then the attention, then the outputs."""
        if self._goes_back():
            return super().unroll(xs, state, lengths, resets, backend)
        how = {"lengths": lengths, "resets": resets, "backend": backend}
        ys, inner = scan(self.cell, xs, state.cell, **how)  # type: ignore[arg-type]
        contexts, (memory, carried) = scan(self.reader, ys, (state.memory, state.attention), **how)  # type: ignore[arg-type]
        return zero_padding(self._joined(ys, contexts), lengths), AttendState(inner, memory, carried, ())

    def weights(self, xs: Tensor, state: AttendState, lengths: Tensor | None = None) -> Tensor:
        """The weights (batch, time, S) of every step; zeros at and beyond a row's length.

        Args:
            xs: (batch, time, input_size).
            state: the state before the first step, as for a call.
            lengths: (batch,), of the rows of xs.
        """
        found = []
        for t, x in enumerate(xs.unbind(1)):
            live = None if lengths is None else t < lengths
            _, new, weights = self.step_with_weights(x if live is None else where(live, x, torch.zeros_like(x)), state)
            state = new if live is None else where(live, new, state)
            found.append(weights if live is None else where(live, weights, torch.zeros_like(weights)))
        return torch.stack(found, 1) if found else state.memory.mask[:, None][:, :0]

    def sublayers(self) -> Sequence[Layer]:
        """The cell and what reads its outputs, if nothing read goes back; else this cell as a whole."""
        return (self,) if self._goes_back() else (self.cell, self.reader)

    def extra_repr(self) -> str:
        feeding = ", input_feeding=True" if self.input_feeding else ""
        return f"{self.input_size}, {self.output_size}, query={self.query!r}, output={self.output!r}{feeding}"

    def _read_first(self) -> bool:
        return self.query == "before"

    def _goes_back(self) -> bool:
        """Whether a step needs what a step before has read."""
        return self.input_feeding or self._read_first()

    def _joined(self, y: Tensor, context: Tensor) -> Tensor:
        """The output, of (batch, …, features)."""
        if self.output == "mixed":
            return torch.tanh(self.mix(torch.cat([context, y], -1)))
        return torch.cat([y, context], -1) if self.output == "both" else y

    def _fed(self, like: Tensor) -> State:
        """The output before the first, of as many rows as `like`."""
        return like.new_zeros(like.shape[0], self.output_size) if self.input_feeding else ()

    def _check_sizes(self) -> None:
        cell, attention = self.cell, self.attention
        if self.input_size < 0:
            parts = [f"{attention.memory_size} of the context"] * self._read_first()
            parts += [f"{self.output_size} of the last output"] * self.input_feeding
            raise ValueError(
                f"Attend: the cell also takes {' and '.join(parts)}, but {type(cell).__name__} has input_size "
                f"{cell.input_size}"
            )
        size, what = cell.output_size, "output"
        if self._read_first():
            found = leaves(cell.initial_state(1, torch.zeros(1)))
            what = "first leaf of the state"
            if not found or found[0][1].dim() != 2:
                came = f"of shape {tuple(found[0][1].shape)}" if found else "missing"
                raise ValueError(f"Attend: the query is the {what} of the cell, (batch, features), but that is {came}")
            size = found[0][1].shape[1]
        if size != attention.query_size:
            raise ValueError(
                f"Attend: the query is the {what} of {type(cell).__name__}, {size} features, but "
                f"{type(attention).__name__} has query_size {attention.query_size}"
            )


class AttentionReader(Cell):
    """An attention alone, as a cell: x_t is a query, y_t its context; the state is the memory and what is carried."""

    def __init__(self, attention: Attention):
        super().__init__(attention.query_size, attention.memory_size)
        self.attention = attention

    def initial_state(self, batch: int, like: Tensor) -> State:
        """An empty memory."""
        return self.attention.empty(batch, like), self.attention.initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One query."""
        memory, carried = state
        context, _, carried = self.attention.attend(x, memory, carried)
        return context, (memory, carried)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """All queries at once if the attention carries nothing; else step by step."""
        if not isinstance(self.attention, BatchedAttention):
            return super().unroll(xs, state, lengths, resets, backend)
        contexts, _ = self.attention.attend_all(xs, state[0])
        return zero_padding(contexts, lengths), map_state(torch.clone, state)

    def native_path(self, xs: Tensor) -> str | None:
        """For `explain`."""
        batched = isinstance(self.attention, BatchedAttention)
        return f"{type(self.attention).__name__} of all steps as one batched product" if batched else None
