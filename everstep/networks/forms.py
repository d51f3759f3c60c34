"""Forms: the computations of a trained model as functions of named tensors, which an export writes to a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer
from everstep.state import State

Named: TypeAlias = dict[str, Tensor]
_GAPS = 0.2
"""The share of drawn numbers that are missing, where some may be."""


@dataclass(frozen=True)
class Input:
    """An input tensor of a form.

    Attributes:
        dims: its sizes: a number, or the name of a dynamic size.
        below: for integers 0 … below − 1: the bound, or the name of a dynamic size; None: real numbers or lengths.
        upto: for lengths: the name of the dynamic size that is their largest value (inclusive).
        least: the smallest length.
        gaps: for real numbers: whether some may be NaN, where they are missing.
    """

    dims: tuple[str | int, ...]
    below: int | str | None = None
    upto: str | None = None
    least: int = 0
    gaps: bool = False

    def drawn(self, sizes: Mapping[str, int], random: torch.Generator) -> Tensor:
        """Random valid values. Of lengths the first is the largest allowed and the second the smallest.

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
            found = torch.randn(shape, generator=random)
            return found.masked_fill(torch.rand(shape, generator=random) < _GAPS, torch.nan) if self.gaps else found
        return torch.randint(sizes[self.below] if isinstance(self.below, str) else self.below, shape, generator=random)


LENGTHS = Input(("batch",), upto="time")
"""The number of valid steps of each row."""


@dataclass(frozen=True)
class Form:
    """A function of named tensors and a state. A file holds the leaves of the state as named tensors.

    Attributes:
        model: the module with the parameters.
        run: maps the inputs by name and the state to the outputs by name and the new state.
        inputs: the inputs by name.
        initial: maps a number of rows to their state before the first step; `()` without a state.
        cell: for a step form, the cell from the input, or its row of `table`, to the only output; None: no such cell.
        table: (symbols, features) the embedding that the input indexes; None: the input is the cell's own.
        before: for a step over a memory: the form whose new state is the state before the first step, in place of
            `initial`, such as an encoder; its dynamic sizes are also those of the state.
    """

    model: nn.Module
    run: Callable[[Named, State], tuple[Named, State]]
    inputs: dict[str, Input]
    initial: Callable[[int], State] = lambda rows: ()
    cell: Cell | None = None
    table: Tensor | None = None
    before: Form | None = None

    def sizes(self, usual: int = 1, **known: int) -> dict[str, int]:
        """A value of each dynamic size, in the order of the inputs: the known one, or else `usual`."""
        inputs = [*self.inputs.values(), *(self.before.inputs.values() if self.before else ())]
        found = dict.fromkeys((d for one in inputs for d in one.dims if isinstance(d, str)), usual)
        return found | {"batch": usual} | known

    def begun(self, sizes: Mapping[str, int], random: torch.Generator) -> State:
        """A state before the first step; `before`, where there is one, makes it of random inputs."""
        if self.before is None:
            return self.initial(sizes["batch"])
        given = {name: one.drawn(sizes, random) for name, one in self.before.inputs.items()}
        return self.before.run(given, self.before.begun(sizes, random))[1]


class Exported(NamedTuple):
    """The forms of a model: a function of one step and a function of sequences, or the reason why there is none."""

    step: Form | str
    sequence: Form | str


def layer_forms(layer: Layer) -> Exported:
    """The forms of a cell or wiring: `xs` to `ys`, with the state. An acausal layer has no step.

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
