"""The reference loop, which defines the meaning of `scan`; every other backend is tested against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everstep.abstract import AbstractCell
from everstep.backends.protocol import Run
from everstep.state import State, check_nest, leaves, like_nest, map_state, renewed, unflatten, where

name = "reference"


def prepare(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> Run:
    """The run of the loop; it supports any cell."""
    return lambda state: run(cell, xs, state, lengths, resets)


def slower(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """None: no other backend remains."""
    return None


def run(
    cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """y_t, s_t = step(x_t, s_{t-1}) for t = 0 … T−1; beyond a row's length the state is kept and outputs are zero.

    Raises:
        TypeError, ValueError: the step changes the nest, a shape, the dtype or the device of its state, returns an
            output of another size than `output_size`, or no state.
    """
    like, nest = leaves(xs)[0][1], state
    ys = []
    lending = _Lending(cell, like)
    # unbind, because indexing a tensor that needs gradients step by step costs O(T²) in backward
    for t, parts in enumerate(zip(*(leaf.unbind(1) for _, leaf in leaves(xs)), strict=True)):
        x = unflatten(xs, list(parts))
        if resets is not None:
            again = resets[:, t] if lengths is None else resets[:, t] & (t < lengths)
            state = where(again, renewed(cell.initial_state(len(like), like), state), state)
        live = None if lengths is None else t < lengths
        # zeros in the padding, so that a NaN there reaches no gradient through the unused branch of `where`
        given = lending.step(x if live is None else where(live, x, map_state(torch.zeros_like, x)), state)
        if t == 0:
            _check(cell, given, state)
        y, new = given
        if live is not None:
            y, new = where(live, y, torch.zeros_like(y)), where(live, new, state)
        ys.append(y)
        state = new
    # copies, since a step may return its inputs, a part of x, or one tensor twice as state
    return torch.stack(ys, 1), map_state(torch.clone, like_nest(state, nest))


class _Lending:
    """Calls a step so that it may overwrite its arguments, although x and state are shared.

    The first call gets copies of all leaves; later calls get copies only of the leaves that the step overwrote.
    """

    def __init__(self, cell: AbstractCell, like: Tensor):
        self._cell = cell
        self._written: list[bool] | None = None
        self._copies, self._counted = False, not (torch.is_inference_mode_enabled() or like.is_inference())

    def step(self, x: Any, state: State) -> tuple[Tensor, State]:
        """Call the cell's step.

        Raises:
            RuntimeError: the step overwrites a leaf that it did not overwrite at first.
        """
        lent = _leaves(x) + _leaves(state)
        written = self._written
        if written is None:
            lent = [_copy(leaf) for leaf in lent]
            before = [leaf._version for leaf in lent]
            given = self._call(x, state, lent)
            self._written = [leaf._version != b for leaf, b in zip(lent, before, strict=True)]
            self._copies = any(self._written)
            return given
        if self._copies:
            lent = [leaf.clone() if copied else leaf for leaf, copied in zip(lent, written, strict=True)]
        before = [leaf._version for leaf in lent] if self._counted else []
        given = self._call(x, state, lent) if self._copies else self._cell.step(x, state)
        if self._counted and [leaf._version for leaf in lent] != before:
            self._check(lent, before, written)
        return given

    def _call(self, x: Any, state: State, lent: list[Tensor]) -> tuple[Tensor, State]:
        count = len(_leaves(x))
        return self._cell.step(unflatten(x, lent[:count]), unflatten(state, lent[count:]))

    def _check(self, lent: list[Tensor], before: list[int], copied: list[bool]) -> None:
        if any(leaf._version != b and not c for leaf, b, c in zip(lent, before, copied, strict=True)):
            raise RuntimeError(
                f"{self._cell._get_name()}.step changes its input or its state in place at one step, but not at the "
                "first; what the caller has, or the output before, may be changed with it: make a new tensor instead"
            )


def _leaves(nest: Any) -> list[Tensor]:
    return [nest] if isinstance(nest, Tensor) else [leaf for _, leaf in leaves(nest)]


def _copy(tensor: Tensor) -> Tensor:
    """A copy with a version counter, which tensors of inference mode lack."""
    if not torch.is_inference_mode_enabled():
        return tensor.clone()
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()


def _check(cell: AbstractCell, given: Any, state: State) -> None:
    """Raise if the output has another size than declared, or the state another structure.

    Under autocast, the dtype of the state may change.
    """
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
    if torch._C._is_any_autocast_enabled():
        new, state = (
            map_state(lambda leaf: torch.empty_like(leaf, dtype=torch.float32), nest) for nest in (new, state)
        )
    check_nest(f"{cell._get_name()}.step gives another state than it gets", new, state)
