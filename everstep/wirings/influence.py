"""The influence of the parameters on the state, carried forward in time: exact, direct only, or of rank one.

J_t = ∂s_t/∂θ obeys J_t = D_t J_{t-1} + I_t, with D_t = ∂s_t/∂s_{t-1} and I_t the direct effect of θ on s_t in step t.
S is the size of the state of a row, P the number of parameters. Every influence is (batch, …).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from everstep.state import State, leaves, map_state
from everstep.wirings.row_jacobians import Parameters, RowJacobians, flat_rows

_EPSILON = 1e-7
_PROBES = 16
_AT_ONCE = 1 << 22


class Influence(nn.Module):
    """A rule that carries J_t or an approximation of it.

    Attributes:
        numbers: size of the influence of one row.
    """

    numbers: int

    def start(self, batch: int, like: Tensor, direct: Tensor | None) -> State:
        """J_0 of every row, from ∂s_0/∂θ (S, P), or None if that is 0."""
        raise NotImplementedError

    def move(
        self, rows: RowJacobians, parameters: Parameters, state: State, x: Tensor, old: State, signs: Tensor | None
    ) -> State:
        """J_t from J_{t-1}."""
        raise NotImplementedError

    def pull(self, grad: Tensor, influence: State) -> Tensor:
        """Σ over rows of dL/ds · J: (batch, S) to (P,)."""
        raise NotImplementedError


class Exact(Influence):
    """RTRL: J itself, (batch, S, P)."""

    def __init__(self, states: int, parameters: int):
        super().__init__()
        self.states, self.numbers = states, states * parameters

    def start(self, batch: int, like: Tensor, direct: Tensor | None) -> State:
        """∂s_0/∂θ for every row."""
        whole = like.new_zeros(1, 1) if direct is None else direct
        return whole.expand(batch, self.states, self.numbers // self.states)

    def move(
        self, rows: RowJacobians, parameters: Parameters, state: State, x: Tensor, old: State, signs: Tensor | None
    ) -> State:
        """D J + I."""
        every = torch.eye(self.states, dtype=x.dtype, device=x.device)
        direct = rows.by_parameters(parameters, state, x, every.expand(len(x), -1, -1))
        return torch.baddbmm(direct, rows.by_state(parameters, state, x), old)

    def pull(self, grad: Tensor, influence: State) -> Tensor:
        """dL/ds · J."""
        return torch.einsum("bs,bsp->p", grad, influence)


class Direct(Influence):
    """SnAp-1: J where θ touches s within one step, (batch, C, P); all else is 0.

    The states are coloured so that no parameter touches two states of one colour: entry (c, p) belongs to the state
    `touched[c, p]`, and one product with the sum of the states of a colour gives all their entries of I.
    """

    touched: Tensor
    there: Tensor
    colours: Tensor

    def __init__(self, touched: Tensor, colour: Tensor):
        super().__init__()
        number, states = int(colour.max()) + 1, len(colour)
        table = touched.new_full((number, touched.shape[1]), -1)
        slot, parameter = (touched >= 0).nonzero(as_tuple=True)
        which = touched[slot, parameter]
        table[colour[which], parameter] = which
        self.numbers = table.numel()
        self.register_buffer("there", table >= 0, persistent=False)
        self.register_buffer("touched", table.clamp(min=0), persistent=False)
        self.register_buffer("colours", torch.nn.functional.one_hot(colour, number).mT.view(number, states), False)

    def start(self, batch: int, like: Tensor, direct: Tensor | None) -> State:
        """The entries of ∂s_0/∂θ that are carried."""
        if direct is None:
            return like.new_zeros(1, 1).expand(batch, *self.touched.shape)
        return (direct.gather(0, self.touched) * self.there).expand(batch, -1, -1)

    def move(
        self, rows: RowJacobians, parameters: Parameters, state: State, x: Tensor, old: State, signs: Tensor | None
    ) -> State:
        """The carried entries of D J + I."""
        moved = rows.by_parameters(parameters, state, x, self.colours.to(x.dtype).expand(len(x), -1, -1))
        by_state = rows.by_state(parameters, state, x)
        for colour, place in enumerate(self.touched):
            moved = moved + by_state[:, self.touched, place] * old[:, colour, None]
        return moved * self.there

    def pull(self, grad: Tensor, influence: State) -> Tensor:
        """dL/ds · J."""
        entries: Tensor = grad[:, self.touched] * influence
        return entries.sum((0, 1))


class RankOneState(NamedTuple):
    """J ≈ s̃ θ̃ᵀ: `state` (batch, S) and `parameters` (batch, P)."""

    state: Tensor
    parameters: Tensor


class RankOne(Influence):
    """UORO: J ≈ s̃ θ̃ᵀ, unbiased over random signs ν."""

    def __init__(self, states: int, parameters: int):
        super().__init__()
        self.sizes, self.numbers = (states, parameters), states + parameters

    def start(self, batch: int, like: Tensor, direct: Tensor | None) -> State:
        """Zeros."""
        return RankOneState(*(like.new_zeros(batch, size) for size in self.sizes))

    def move(
        self, rows: RowJacobians, parameters: Parameters, state: State, x: Tensor, old: State, signs: Tensor | None
    ) -> State:
        """s̃ ← ρ₀ D s̃ + ρ₁ ν, θ̃ ← θ̃ / ρ₀ + νᵀ I / ρ₁; ρ₀, ρ₁ give both factors of each product equal norms."""
        assert signs is not None
        ahead = rows.along(parameters, state, x, old.state)
        direct = rows.by_parameters(parameters, state, x, signs[:, None])[:, 0]

        def ratio(a: Tensor, b: Tensor) -> Tensor:
            share: Tensor = (a.norm(dim=1) + _EPSILON) / (b.norm(dim=1) + _EPSILON)
            return share.sqrt()[:, None]

        first, second = ratio(old.parameters, ahead), ratio(direct, signs)
        return RankOneState(first * ahead + second * signs, old.parameters / first + direct / second)

    def pull(self, grad: Tensor, influence: State) -> Tensor:
        """(dL/ds · s̃) θ̃."""
        rows: Tensor = (grad * influence.state).sum(1)
        return torch.mv(influence.parameters.mT, rows)


def touching(rows: RowJacobians, parameters: Parameters, like: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Which states each parameter touches directly, (K, P) with −1 for none, and a colour of every state, (S,).

    Found by differentiating at random points: parameters near their values, state leaves random or initial.

    Raises:
        ValueError: some parameter touches so many states that the table would exceed `most` numbers.
    """
    random = torch.Generator().manual_seed(0)

    def noise(leaf: Tensor) -> Tensor:
        return torch.randn(leaf.shape, generator=random, dtype=torch.float64).to(leaf)

    points = []
    for _ in range(_PROBES):
        near = {name: p.detach() + 0.5 * noise(p) for name, p in parameters.items()}
        start = rows.cell.initial_state(1, like)
        coins = iter(torch.rand(len(leaves(start)), generator=random).tolist())
        state = map_state(lambda leaf, coins=coins: leaf.detach() + (next(coins) < 0.75) * noise(leaf), start)
        points.append((near, state, noise(like.new_empty(1, rows.cell.input_size))))
    direct = rows.of_start(parameters, like)
    states = flat_rows(points[0][1]).shape[1]
    numbers = sum(p.numel() for p in parameters.values())
    table = torch.full((0, numbers), -1)
    count = torch.zeros(numbers, dtype=torch.int64)
    every = torch.eye(states, dtype=like.dtype, device=like.device)
    for block in torch.arange(states).split(max(1, _AT_ONCE // numbers)):
        found = torch.zeros(len(block), numbers, dtype=torch.bool)
        for near, state, x in points:
            found |= (rows.by_parameters(near, state, x, every[None, block])[0].abs() > 0).cpu()
        if direct is not None:
            found |= (direct[block].abs() > 0).cpu()
        for place, row in zip(block.tolist(), found, strict=True):
            if bool((row & (count == len(table))).any()):
                table = torch.cat([table, torch.full((1, numbers), -1)])
            if table.numel() > most:
                raise ValueError(f"a parameter touches {len(table)} or more of the {states} state numbers in one step")
            where = row.nonzero()[:, 0]
            table[count[where], where] = place
            count += row
    return table, _coloured(table, states)


def _coloured(table: Tensor, states: int) -> Tensor:
    """A greedy colouring of the states: two states that some parameter touches differ in colour."""
    apart = torch.zeros(states, states, dtype=torch.bool)
    for one in range(len(table)):
        for other in range(one):
            both = (table[one] >= 0) & (table[other] >= 0)
            apart[table[one][both], table[other][both]] = True
    apart = apart | apart.mT
    colour = torch.full((states,), -1)
    for state in range(states):
        taken = set(colour[apart[state]].tolist())
        colour[state] = next(c for c in range(states) if c not in taken)
    return colour
