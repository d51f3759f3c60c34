"""Derivatives of a cell's step, row by row, with respect to its state and its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from everstep.cell import Cell
from everstep.state import State, leaves, map_state, unflatten

Parameters = Mapping[str, Tensor]


def flat(values: Iterable[Tensor]) -> Tensor:
    """All values of one row, concatenated."""
    return torch.cat([value.reshape(-1) for value in values])


def flat_rows(state: State) -> Tensor:
    """The state as (batch, state size)."""
    return torch.cat([leaf.flatten(1) if leaf.dim() > 1 else leaf[:, None] for _, leaf in leaves(state)], 1)


class RowJacobians(nn.Module):
    """s_t = f(θ, s_{t-1}, x_t) of one row as a function to differentiate; θ are parameters by name, x_t is constant."""

    def __init__(self, cell: Cell):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor | None, state: State, batch: int = 1, like: Tensor | None = None) -> State:
        """The step's new state, or without x the initial one: both in one place for `functional_call`."""
        return self.cell.initial_state(batch, like) if x is None and like is not None else self.cell.step(x, state)[1]

    def _next(self, parameters: Parameters, state: State, x: Tensor) -> Tensor:
        """The new states, (batch, S)."""
        named = {f"cell.{name}": value for name, value in parameters.items()}
        return flat_rows(functional_call(self, named, (x, state)))

    def by_state(self, parameters: Parameters, state: State, x: Tensor) -> Tensor:
        """D_t = ∂s_t/∂s_{t-1}: (batch, S, S)."""
        out, pull = vjp(lambda s: self._next(parameters, s, x), state)[:2]
        every = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
        # rows are independent, so that one direction serves all of them
        found: Tensor = vmap(lambda v: flat_rows(pull(v.expand_as(out))[0]), out_dims=1)(every)
        return found

    def by_parameters(self, parameters: Parameters, state: State, x: Tensor, directions: Tensor) -> Tensor:
        """v · ∂s_t/∂θ for each direction v of each row, (batch, C, S): (batch, C, P)."""
        batch, count = directions.shape[:2]

        def one(state: State, x: Tensor, direction: Tensor) -> Tensor:
            alone = map_state(lambda leaf: leaf[None], state)
            _, pull = vjp(lambda p: self._next(p, alone, x[None])[0], dict(parameters))[:2]
            return flat(pull(direction)[0].values())

        # one level of vmap for rows and directions, because PyTorch's rule for PReLU is wrong in two
        state, x = map_state(lambda leaf: leaf.repeat_interleave(count, 0), (state, x))
        found: Tensor = vmap(one)(state, x, directions.flatten(0, 1))
        return found.view(batch, count, -1)

    def along(self, parameters: Parameters, state: State, x: Tensor, tangent: Tensor) -> Tensor:
        """D_t · tangent, each (batch, S)."""
        found = leaves(state)
        parts = tangent.split([leaf[0].numel() for _, leaf in found], 1)
        nest = unflatten(state, [part.reshape(leaf.shape) for (_, leaf), part in zip(found, parts, strict=True)])
        out, pull = vjp(lambda s: self._next(parameters, s, x), state)[:2]
        # u ↦ uᵀ D is linear, and its own vjp is D; forward mode would warn of torch.jit
        _, along = vjp(lambda u: pull(u)[0], torch.zeros_like(out))[:2]
        moved: Tensor = along(nest)[0]
        return moved

    def of_start(self, parameters: Parameters, like: Tensor) -> Tensor | None:
        """∂s_0/∂θ, (S, P); None where the initial state is not learned."""
        with torch.enable_grad():
            start = [leaf for _, leaf in leaves(self.cell.initial_state(1, like))]
        if not any(leaf.requires_grad for leaf in start):
            return None

        def first(parameters: Parameters) -> Tensor:
            named = {f"cell.{name}": value for name, value in parameters.items()}
            args: Any = (None, (), 1, like)
            return flat(leaf for _, leaf in leaves(functional_call(self, named, args)))

        out, pull = vjp(first, dict(parameters))[:2]
        every = torch.eye(len(out), dtype=out.dtype, device=out.device)
        return vmap(lambda v: flat(pull(v)[0].values()))(every)
