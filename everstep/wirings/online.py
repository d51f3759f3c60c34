"""Online learning: the gradient of every step is available at that step, with no past steps stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from everstep.backends.dispatch import dispatch
from everstep.cell import Cell, Layer, check_size
from everstep.state import State, detach, leaves, unflatten
from everstep.wirings.influence import Direct, Exact, Influence, RankOne, touching
from everstep.wirings.masks import bernoulli
from everstep.wirings.regularise import Dropout, Fed, Zoneout
from everstep.wirings.row_jacobians import RowJacobians, flat_rows

OnlineRule = Literal["rtrl", "snap1", "uoro"]
_COPIES = 3


class OnlineState(NamedTuple):
    """The cell's state, and the influence of the parameters on it."""

    cell: State
    influence: State


class Online(Cell):
    """A cell that learns online: dL_t/dθ is available at step t, and no earlier step is kept.

    y_t, s_t = cell(x_t, s_{t-1}). Beside s_t, the influence J_t = ∂s_t/∂θ of the parameters θ is carried forward,
    J_t = D_t J_{t-1} + I_t with D_t = ∂s_t/∂s_{t-1} and I_t = ∂s_t/∂θ within the step. Backward goes through one step,
    and J_{t-1} turns the gradient of s_{t-1} into one of θ: dL_t/dθ = ∂L_t/∂θ + ∂L_t/∂s_{t-1} · J_{t-1}. With
    θ unchanged, the sum over t is the gradient of BPTT. The rules:

    - "rtrl" (Williams & Zipser 1989, "A learning algorithm for continually running fully recurrent neural networks"):
      J exactly; S·P numbers per row, with state size S and P parameters, and O(S²·P) operations per step.
    - "snap1" (Menick 2021, "Practical real time recurrent learning with a sparse approximation"): J where θ touches s
      directly, in one step, and 0 elsewhere; about P numbers where each parameter belongs to one unit. Biased; exact
      where units do not see each other's past (IndRNN).
    - "uoro" (Tallec & Ollivier 2018, "Unbiased online recurrent optimization"): J ≈ s̃ θ̃ᵀ with random signs, S + P
      numbers; noisy, but unbiased.

    To learn online, call it on one step (or a few) at a time, as `fit` does with batches of one step (k1 = 1) and a
    carried state:

    >>> from everstep import GRU
    >>> cell, state = Online(GRU(3, 5)), None
    >>> optimizer = torch.optim.SGD(cell.parameters(), 0.1)
    >>> for x in torch.randn(10, 2, 1, 3):
    ...     y, state = cell(x, state)
    ...     optimizer.zero_grad()
    ...     y.square().sum().backward()
    ...     optimizer.step()
    ...     state = es.state.detach(state)

    Args:
        cell: the cell inside, of any kind; for evaluation use `online.cell`, which carries no influence.
        rule: "rtrl", "snap1" or "uoro".
        limit: bytes that updating the influence may take, three times what is carried.

    Known limits: it runs as a PyTorch loop. x_t gets only the gradient of the loss of its own step, not of later
    losses. So layers below that should learn exactly belong inside (`Online(Stack(a, b))`); dropout, which draws random
    numbers within a step, does not. Gradients cannot be differentiated again. While the weights change, J is that of
    the earlier weights (as in the paper). "snap1" finds which parameters touch which states by trial.

    Raises:
        TypeError: an acausal layer.
        ValueError: an unknown rule; a cell without state or trainable parameters; an influence that needs more than
            `limit` (checked again for each batch); "uoro" with a learned initial state.
        RuntimeError: dropout inside, in training; `step` with "uoro", whose signs belong to a sequence.
    """

    def __init__(self, cell: Cell, rule: OnlineRule = "rtrl", *, limit: int = 2 << 30):
        if not isinstance(cell, Cell):
            raise TypeError(
                f"Online: {type(cell).__name__} is no Cell: it sees the future, and cannot be learned forward in time"
            )
        if rule not in get_args(OnlineRule):
            raise ValueError(f"Online: rule should be one of {', '.join(get_args(OnlineRule))}, but is {rule!r}")
        super().__init__(cell.input_size, cell.output_size)
        self.cell, self.rule, self.limit = cell, rule, check_size(self, "limit", limit)
        self.names = tuple(name for name, p in cell.named_parameters() if p.requires_grad)
        self._size = sum(cell.get_parameter(name).numel() for name in self.names)
        like = next(cell.parameters(), torch.zeros(1)).detach()[..., :0]
        start = leaves(cell.initial_state(1, like))
        if not start or not self._size:
            what = "trainable parameters" if start else "state"
            raise ValueError(f"Online: {type(cell).__name__} has no {what}, so that there is nothing to carry forward")
        self._states = sum(leaf.numel() for _, leaf in start)
        # in tuples, so that they are not registered as submodules
        self._rows = (RowJacobians(cell),)
        self._fed = (Fed(self, "driven"),)
        self.influence = self._begin(like)

    def _begin(self, like: Tensor) -> Influence:
        if self.rule == "rtrl":
            self._check(1, self._states * self._size, like)
            return Exact(self._states, self._size)
        if self.rule == "uoro":
            self._check(1, self._states + self._size, like)
            if self._rows[0].of_start(self._trainable(), like) is not None:
                raise ValueError(
                    f"Online: the initial state of {type(self.cell).__name__} is learned, which 'uoro' cannot; take "
                    f"'rtrl' or 'snap1'"
                )
            return RankOne(self._states, self._size)
        try:
            most = self.limit // (_COPIES * like.element_size())
            rule = Direct(*touching(self._rows[0], self._trainable(), like, most))
        except ValueError as error:
            raise ValueError(f"Online: {error}: more than {_gib(self.limit)} GiB; {self._instead()}") from error
        self._check(1, rule.numbers, like)
        return rule.to(like.device)

    def _trainable(self) -> dict[str, Tensor]:
        parameters = dict(self.cell.named_parameters())
        return {name: parameters[name] for name in self.names}

    def _check(self, batch: int, numbers: int, like: Tensor) -> None:
        needed = _COPIES * batch * numbers * like.element_size()
        if needed > self.limit:
            raise ValueError(
                f"Online: {self.rule} of {type(self.cell).__name__} ({self._states:,} state numbers, {self._size:,} "
                f"parameters) carries {numbers:,} numbers for each of {batch} rows and needs {_gib(needed)} GiB to "
                f"move them, but limit is {_gib(self.limit)} GiB; {self._instead()}"
            )

    def _instead(self) -> str:
        others = {"rtrl": "take 'snap1' or 'uoro', ", "snap1": "take 'uoro', ", "uoro": "take "}[self.rule]
        return f"{others}fewer units or a smaller batch, or raise limit"

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's, and its influence: zero, unless the initial state is learned."""
        self._check(batch, self.influence.numbers, like)
        with torch.no_grad():
            direct = self._rows[0].of_start(self._trainable(), like)
            influence = self.influence.start(batch, like, direct)
        return OnlineState(self.cell.initial_state(batch, like), influence)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of the cell and of the influence."""
        if self.rule == "uoro":
            raise RuntimeError(
                "Online: the random signs of 'uoro' belong to a sequence; call it on one, (batch, 1, input_size) for "
                "one step"
            )
        return self.driven(x, state, None)

    def driven(self, x: Tensor, state: State, signs: Tensor | None) -> tuple[Tensor, State]:
        """One step, with the random signs ν (batch, S) of "uoro"."""
        self._refuse_noise()
        parameters, old = self._trainable(), detach(state[0])
        with torch.no_grad():
            fixed = {name: p.detach() for name, p in parameters.items()}
            influence = self.influence.move(self._rows[0], fixed, old, x.detach(), detach(state[1]), signs)
        start = [leaf for _, leaf in leaves(old)]
        found = _Owed.apply(self.influence, detach(state[1]), len(start), *start, *parameters.values())
        y, new = self.cell.step(x, unflatten(old, found))
        return y, OnlineState(new, influence)

    def _refuse_noise(self) -> None:
        for module in self.cell.modules():
            noisy = isinstance(module, Zoneout) or (isinstance(module, Dropout) and module.p > 0)
            if noisy and module.training:
                raise RuntimeError(
                    f"Online: {type(module).__name__} inside draws random numbers within a step, which is run more "
                    f"than once; put it outside, or .eval() it"
                )

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """A loop; the random signs of "uoro" are drawn first."""
        if backend not in ("auto", "reference"):
            raise ValueError(f"scan: backend {backend!r} cannot run Online: it differentiates every step")
        if self.rule != "uoro":
            return dispatch(self, xs, state, lengths, resets, "reference")
        signs = bernoulli(xs, (*xs.shape[:2], self._states), 0.5) * 2 - 1
        return dispatch(self._fed[0], (xs, signs), state, lengths, resets, "reference")

    def native_path(self, xs: Tensor) -> str | None:
        """A loop, whatever the cell."""
        return "a loop of PyTorch's, which differentiates every step"

    def sublayers(self) -> Sequence[Layer]:
        """The cell, although it runs as a loop here."""
        return (self.cell,)

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}"


class _Owed(torch.autograd.Function):
    """s_{t-1} as a function of θ: its values, and dL/dθ = dL/ds_{t-1} · J_{t-1}."""

    @staticmethod
    def forward(ctx: Any, rule: Influence, influence: State, states: int, *tensors: Tensor) -> Any:
        ctx.rule, ctx.like = rule, influence
        start, parameters = tensors[:states], tensors[states:]
        ctx.shapes = [p.shape for p in parameters]
        ctx.rows = [leaf.shape for leaf in start]
        ctx.save_for_backward(*(leaf for _, leaf in leaves(influence)))
        return tuple(leaf.view_as(leaf) for leaf in start)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        total = ctx.rule.pull(flat_rows(grads), unflatten(ctx.like, ctx.saved_tensors))
        parts = total.split([shape.numel() for shape in ctx.shapes])
        by_parameters = (part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))
        return None, None, None, *(None for _ in grads), *by_parameters


def _gib(size: int) -> str:
    return f"{size / 2**30:,.3g}"
