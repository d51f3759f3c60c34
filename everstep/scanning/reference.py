"""The loop that states the meaning of `scan`; every other backend is tested against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everstep.cell import Cell
from everstep.state import State, check_nest, leaves, map_state, unflatten, where

name = "reference"


def refuses(cell: Cell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """Never: any step can be looped over."""
    return None


def slower(cell: Cell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """Nothing is left to take instead."""
    return None


def run(cell: Cell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
    """y_t, s_t = step(x_t, s_{t-1}) for t = 0 … T-1; rows past their length stand still and give zeros.

    Raises:
        TypeError, ValueError: the step changes the nest, a shape, the dtype or the device of its state, gives an output
            of another size than `output_size`, or no state.
    """
    like = leaves(xs)[0][1]
    ys = []
    # unbind, because indexing a tensor that needs gradients step by step costs O(T²) in backward
    for t, parts in enumerate(zip(*(leaf.unbind(1) for _, leaf in leaves(xs)), strict=True)):
        x = unflatten(xs, list(parts))
        if resets is not None:
            again = resets[:, t] if lengths is None else resets[:, t] & (t < lengths)
            state = where(again, cell.initial_state(len(like), like), state)
        live = None if lengths is None else t < lengths
        # zeros in the padding, so that a NaN there reaches no gradient through the unused branch of `where`
        given = cell.step(x if live is None else where(live, x, map_state(torch.zeros_like, x)), state)
        if t == 0:
            _check(cell, given, state)
        y, new = given
        if live is not None:
            y, new = where(live, y, torch.zeros_like(y)), where(live, new, state)
        ys.append(y)
        state = new
    return torch.stack(ys, 1), state


def _check(cell: Cell, given: Any, state: State) -> None:
    """Raise if the output is of another size than said, or the state not what it was, but for its dtype under autocast,
    which changes that."""
    if not isinstance(given, tuple) or len(given) != 2:
        came = "one tensor" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise TypeError(f"{cell._get_name()}.step should give an output and the new state, but gives {came}")
    y, new = given
    if not isinstance(y, Tensor) or y.dim() != 2 or y.shape[1] != cell.output_size:
        came = f"an output of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(
            f"{cell._get_name()}.step gives {came}, but its output_size asks for (batch, {cell.output_size}); "
            "give output_size to Cell.__init__"
        )
    if torch.is_autocast_enabled(leaves(state)[0][1].device.type if leaves(state) else "cpu"):
        new, state = (
            map_state(lambda leaf: torch.empty_like(leaf, dtype=torch.float32), nest) for nest in (new, state)
        )
    check_nest(f"{cell._get_name()}.step gives another state than it gets", new, state)
