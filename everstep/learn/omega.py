"""Pascanu's Ω, a penalty on error signals that grow or shrink from step to step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from everstep.cell import Cell
from everstep.state import State, leaves, map_state, valid, where


def omega(
    cell: Cell,
    xs: Tensor,
    loss: Callable[[Tensor], Tensor],
    state: State = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    immediate: bool = False,
) -> tuple[Tensor, Tensor, State]:
    """E and Ω = Σ_t (‖∂E/∂s_{t+1} · ∂s_{t+1}/∂s_t‖ / ‖∂E/∂s_{t+1}‖ − 1)² of every row; minimise E + λ·Ω.

    s_t is the row's whole state after t steps, its leaves concatenated; s_0 is the state at the start. ∂E/∂s_{t+1} is
    the total derivative: through all later steps, and through the output of this step if that is itself a leaf of the
    state, as h of an LSTM is. ∂s_{t+1}/∂s_t is the Jacobian of one step with x_t fixed. Ω = 0 if every step preserves
    the norm of the error signal, so that it neither vanishes nor explodes. Steps with ∂E/∂s_{t+1} = 0, and steps with
    a reset before them, contribute nothing.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, eq. 9.
    Their eq. 10 and their code (trainingRNNs) square both norms.

    Args:
        cell: any cell; a wiring that draws one mask per sequence (dropout, zoneout) only in eval mode.
        xs: (batch, time, input_size).
        loss: maps outputs (batch, time, output_size) to E (batch,), row by row, in any unit; Ω has none.
        state: the state to continue from; the cell's initial state if None.
        lengths: (batch,); later steps are ignored.
        resets: (batch, time) bool; the state is reset before such a step.
        immediate: differentiate Ω as the paper does, with all s_t and ∂E/∂s_{t+1} held constant (its code also holds
            the slopes of the activations constant). If false, the total derivative, by differentiating twice. The
            value of Ω is the same.

    Returns:
        E (batch,) and Ω (batch,), both differentiable, and the final state.

    Raises:
        ValueError: `loss` does not return shape (batch,).
        RuntimeError: the cell has no `step` in training mode.

    Known limits: the steps run one by one in Python, forward twice and backward twice. An output computed beside the
    state, such as that of `Residual`, is not part of s_t. Ω is not smooth where one of the two norms is 0.

    Example:
        >>> import everstep as es
        >>> cell = es.RNN(1, 2, activation=torch.nn.Identity())
        >>> es.init_identity(cell)
        >>> error, penalty, _ = omega(cell, torch.ones(3, 5, 1), lambda ys: ys[:, -1].sum(1))
        >>> penalty.detach()  # the identity preserves the norm
        tensor([0., 0., 0.])
    """
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        run = _Run(cell, xs, state, lengths, resets)
        errors = loss(run.ys)
        if errors.shape != xs.shape[:1]:
            raise ValueError(f"omega: loss should give {(len(xs),)}, one number a row, but gave {tuple(errors.shape)}")
        penalty = run.omega(errors, immediate)
    if wanted:
        return errors, penalty, run.final
    return errors.detach(), penalty.detach(), map_state(torch.Tensor.detach, run.final)


class _Run:
    """A run of a cell that stores every state: `before[t]` enters step t, after any reset; `after[t]` leaves it."""

    def __init__(self, cell: Cell, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None):
        batch, time = xs.shape[:2]
        initial = cell.initial_state(batch, xs)
        # every state needs a gradient, also if the cell has no parameters
        state = map_state(_differentiable, initial if state is None else state)
        if lengths is None:
            lengths = torch.full((batch,), time, device=xs.device)
        self.live = valid(lengths, time)
        self.counted = self.live if resets is None else self.live & ~resets
        # so that padding never reaches a gradient
        self.xs = torch.where(self.live[..., None], xs, 0)
        self.cell = cell
        self.before: list[State] = []
        self.after: list[State] = []
        outputs = []
        for t, x in enumerate(self.xs.unbind(1)):
            if resets is not None:
                state = where(resets[:, t] & self.live[:, t], map_state(_differentiable, initial), state)
            self.before.append(state)
            y, new = _told_apart(*cell.step(x, state))
            # stored before the state is frozen beyond the length, so that its derivative includes the output's share
            self.after.append(new)
            state = where(self.live[:, t], new, state)
            outputs.append(where(self.live[:, t], y, torch.zeros_like(y)))
        self.final = state
        self.ys = torch.stack(outputs, 1)

    def omega(self, errors: Tensor, immediate: bool) -> Tensor:
        """Ω of every row (batch,), from one step over the states of all times at once."""
        ends = [_learnable(new) for new in self.after]
        if not any(ends):
            return 0 * errors
        signals = torch.autograd.grad(
            errors.sum(),
            [leaf for parts in ends for leaf in parts],
            create_graph=not immediate,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        width = len(ends[0])
        signal = [torch.stack(signals[leaf::width], 1).flatten(0, 1) for leaf in range(width)]
        start = map_state(lambda *parts: torch.stack(parts, 1).flatten(0, 1), *self.before)
        xs = self.xs.flatten(0, 1)
        if immediate:
            start, xs = map_state(lambda leaf: _differentiable(leaf.detach()), start), xs.detach()
        _, after = self.cell.step(xs, start)
        handed_back = torch.autograd.grad(
            _learnable(map_state(_differentiable, after)),
            _learnable(start),
            signal,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        length = _norm(signal)
        ratio = _norm(handed_back) / torch.where(length > 0, length, 1)
        terms = torch.where(self.counted.flatten() & (length > 0), (ratio - 1).square(), 0)
        return terms.view_as(self.counted).sum(1)


def _told_apart(y: Tensor, new: State) -> tuple[Tensor, State]:
    """A step's results with every leaf a separate tensor, so that the effect of c through h = o ∘ tanh(c) is h's."""
    output = y

    def own(leaf: Tensor) -> Tensor:
        nonlocal output
        made = _differentiable(leaf.view_as(leaf))
        if leaf is y and output is y:
            output = made
        return made

    new = map_state(own, new)
    return output, new


def _learnable(state: State) -> list[Tensor]:
    return [leaf for _, leaf in leaves(state) if leaf.is_floating_point()]


def _differentiable(leaf: Tensor) -> Tensor:
    return leaf if leaf.requires_grad or not leaf.is_floating_point() else leaf.detach().requires_grad_()


def _norm(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """The norm of every row over several leaves, concatenated: (batch,)."""
    norm: Tensor = torch.linalg.vector_norm(
        torch.cat([part.reshape(len(part), part[0].numel()) for part in parts], 1), dim=1
    )
    return norm
