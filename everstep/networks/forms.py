"""What a trained model computes, as functions of named tensors: what an export writes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer
from everstep.state import State

Named: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Input:
    """A tensor that a form reads.

    Attributes:
        dims: its sizes: a number, or the name of a size that each call brings.
        below: whole numbers from 0 up to, and without, this one; a name: that size of the call; None: real numbers,
            or lengths.
        upto: lengths: whole numbers up to that size of the call, and with it.
        least: of lengths.
    """

    dims: tuple[str | int, ...]
    below: int | str | None = None
    upto: str | None = None
    least: int = 0

    def drawn(self, sizes: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Numbers as the form may get them; the first of lengths is the longest, the second the shortest.

        >>> Input(("batch",), upto="time").drawn({"batch": 3, "time": 9}, torch.Generator()).tolist()[:2]
        [9, 0]
        """
        shape = [sizes[size] if isinstance(size, str) else size for size in self.dims]
        if self.upto is not None:
            found = torch.randint(self.least, sizes[self.upto] + 1, shape, generator=random)
            found[:1] = sizes[self.upto]
            found[1:2] = self.least
            return found
        if self.below is None:
            return torch.randn(shape, generator=random)
        return torch.randint(sizes[self.below] if isinstance(self.below, str) else self.below, shape, generator=random)


LENGTHS = Input(("batch",), upto="time")
"""How many steps of each row count."""


@dataclass(frozen=True)
class Form:
    """A function of named tensors and of a state, which is taken apart into named leaves in a file.

    Attributes:
        model: whose parameters it uses.
        run: the inputs by name and the state to the outputs by name and the new state.
        inputs: what it reads, by name.
        initial: the state of so many rows before the first step; `()` where there is none.
        cell: of one step: what steps, from the input, or from its row of `table`, to the only output.
        table: (numbers, features) the embedding that the input is a place in.
    """

    model: nn.Module
    run: Callable[[Named, State], tuple[Named, State]]
    inputs: dict[str, Input]
    initial: Callable[[int], State] = lambda rows: ()
    cell: Cell | None = None
    table: Tensor | None = None


class Exported(NamedTuple):
    """What of a model can be written down: a function of one step, and one of sequences; else the reason why not."""

    step: Form | str
    sequence: Form | str


def layer_forms(layer: Layer) -> Exported:
    """A cell or wiring: `xs` to `ys`, with its state; an acausal one has no step.

    >>> import everstep as es
    >>> layer_forms(es.Bidirectional(es.GRU(2, 3), es.GRU(2, 3))).step
    'a Bidirectional reads both ways, and needs the whole sequence'
    """

    def initial(rows: int) -> State:
        parameter = next(layer.parameters(), torch.zeros(()))
        return layer.initial_state(rows, parameter)

    def step(given: Named, state: State) -> tuple[Named, State]:
        ys, state = layer(given["x"][:, None], state)
        return {"y": ys[:, 0]}, state

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        ys, state = layer(given["xs"], state, lengths=given["lengths"])
        return {"ys": ys}, state

    size = layer.input_size
    whole = Form(layer, sequence, {"xs": Input(("batch", "time", size)), "lengths": LENGTHS}, initial)
    if not isinstance(layer, Cell):
        return Exported(f"a {type(layer).__name__} reads both ways, and needs the whole sequence", whole)
    return Exported(Form(layer, step, {"x": Input(("batch", size))}, initial, layer), whole)
