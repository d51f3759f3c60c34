"""AdamW that updates only the rows of a weight that a sparse gradient holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

_TOGETHER = 1 << 22  # numbers of the rows that move at once, since each step needs four arrays of that size


class RowwiseAdamW(AdamW):
    """AdamW (Loshchilov & Hutter 2019); of a parameter with a sparse gradient, only the rows in it change.

    A row i with gradient g at its n_i-th update: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
    w ← (1 − η λ) w − η (m / (1 − β₁^{n_i})) / (√(v / (1 − β₂^{n_i})) + ε). Each row counts its own updates n_i, so that
    a rare row's first update is as long as a frequent one's was. `torch.optim.SparseAdam` counts all steps instead, and
    takes no dense gradients. All other parameters are updated as by AdamW.

    >>> weight = torch.nn.Parameter(torch.zeros(3, 1))
    >>> optimizer = RowwiseAdamW([weight], lr=0.1, weight_decay=0.0)
    >>> torch.nn.functional.embedding(torch.tensor([1, 1]), weight, sparse=True).sum().backward()
    >>> optimizer.step()
    >>> weight.detach().flatten()
    tensor([ 0.0000, -0.1000,  0.0000])

    Known limit: a row that no gradient holds neither decays nor moves by its momentum, which dense AdamW would do.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    gradient, parameter.grad = parameter.grad.coalesce(), None
                    sparse.append((parameter, gradient))
                    self._move(parameter, gradient, group)
        super().step()
        for parameter, gradient in sparse:
            parameter.grad = gradient
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        rows, values = gradient._indices()[0], gradient._values()
        many = max(1, _TOGETHER * len(parameter) // max(1, parameter.numel()))
        for some, of_some in zip(rows.split(many), values.split(many), strict=True):
            _move_rows(parameter, state, some, of_some, group)


def _move_rows(
    parameter: Tensor, state: dict[str, Tensor], rows: Tensor, values: Tensor, group: dict[str, Any]
) -> None:
    rate, (first, second) = group["lr"], group["betas"]
    number = state["step"].index_select(0, rows) + 1
    mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - first)
    square = state["exp_avg_sq"].index_select(0, rows).mul_(second).addcmul_(values, values, value=1 - second)
    for name, value in (("step", number), ("exp_avg", mean), ("exp_avg_sq", square)):
        state[name].index_copy_(0, rows, value)
    aside = (slice(None), *[None] * (values.dim() - 1))
    spread = square.div_((1 - second**number)[aside]).sqrt_().add_(group["eps"])
    moved = mean.div_((1 - first**number)[aside]).div_(spread).mul_(-rate)
    moved.add_(parameter.index_select(0, rows), alpha=1 - rate * group["weight_decay"])
    parameter.index_copy_(0, rows, moved)
