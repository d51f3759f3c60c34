"""The loop that states the meaning of `scan`; every other backend is tested against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everstep.cell import Cell
from everstep.state import State, leaves, map_state, unflatten, where

name = "reference"


def refuses(cell: Cell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """Never: any step can be looped over."""
    return None


def slower(cell: Cell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """Nothing is left to take instead."""
    return None


def run(cell: Cell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
    """y_t, s_t = step(x_t, s_{t-1}) for t = 0 … T-1; rows past their length stand still and give zeros."""
    like = leaves(xs)[0][1]
    ys = []
    # unbind, because indexing a tensor that needs gradients step by step costs O(T²) in backward
    for t, parts in enumerate(zip(*(leaf.unbind(1) for _, leaf in leaves(xs)), strict=True)):
        x = unflatten(xs, list(parts))
        if resets is not None:
            again = resets[:, t] if lengths is None else resets[:, t] & (t < lengths)
            state = where(again, cell.initial_state(len(like), like), state)
        if lengths is None:
            y, state = cell.step(x, state)
        else:
            live = t < lengths
            # zeros in the padding, so that a NaN there reaches no gradient through the unused branch of `where`
            y, new = cell.step(where(live, x, map_state(torch.zeros_like, x)), state)
            y, state = where(live, y, torch.zeros_like(y)), where(live, new, state)
        ys.append(y)
    return torch.stack(ys, 1), state
