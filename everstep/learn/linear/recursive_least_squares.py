"""Recursive least squares, which learns a linear read-out step by step; in a closed loop, FORCE."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from everstep.learn.linear.ridge import check_finite, numbers
from everstep.state import State


class OnlineFit(NamedTuple):
    """The state of `EchoState.fit_online`; continuing from it equals one uninterrupted run.

    Attributes:
        state: the network's state, from which a call or `predict` can continue.
        inverse: P of `RecursiveLeastSquares`, (1, H + 1, H + 1), float64.
    """

    state: State
    inverse: Tensor


class RecursiveLeastSquares:
    """Ridge regression one step at a time, in O(H²) per step (Plackett 1950; Haykin 2002, "Adaptive filter theory").

    e_t = y_t − W_{t-1} h_t,  k_t = P_{t-1} h_t / (f + h_tᵀ P_{t-1} h_t),  W_t = W_{t-1} + e_t k_tᵀ,
    P_t = (P_{t-1} − k_t h_tᵀ P_{t-1}) / f,  from W_0 = 0 and P_0 = I / λ.

    After t steps W equals that of `Ridge(intercept=False)` with the same λ, to rounding. With a forgetting factor
    f < 1, a step s steps ago is weighted by f^s, and λ by f^t. For an intercept, add a feature that is always 1; it is
    penalised like the others.

    >>> rls = RecursiveLeastSquares(2, 1, ridge=1e-6)
    >>> for h in torch.eye(2, dtype=torch.float64).repeat(3, 1):
    ...     error = rls.update(h, h[:1] - h[1:])
    >>> rls.weight.round(decimals=3)
    tensor([[ 1., -1.]], dtype=torch.float64)

    Args:
        features, outputs: sizes H of h_t and of y_t.
        ridge: λ > 0.
        forgetting: f in (0, 1].

    Attributes:
        weight: W (outputs, H), float64.
        inverse: P (H, H), float64.

    Known limit: with f < 1, P grows without bound along directions that the features do not excite.

    Raises:
        ValueError: λ or f is out of range.
    """

    def __init__(self, features: int, outputs: int, *, ridge: float = 1.0, forgetting: float = 1.0):
        if not 0 < ridge < float("inf"):
            raise ValueError(f"RecursiveLeastSquares: ridge should be a finite number above 0, but is {ridge}")
        if not 0 < forgetting <= 1:
            raise ValueError(f"RecursiveLeastSquares: forgetting should lie in (0, 1], but is {forgetting}")
        self.forgetting = forgetting
        self.weight = torch.zeros(outputs, features, dtype=torch.float64)
        self.inverse = torch.eye(features, dtype=torch.float64) / ridge

    def update(self, features: Tensor | Any, target: Tensor | Any) -> Tensor:
        """Learn from h (H,) and y (outputs,), tensors or arrays; returns the error e (outputs,) before the update.

        Raises:
            TypeError: an argument is neither a tensor nor an array of numbers.
            ValueError: NaN or infinity, with its position.
        """
        features = numbers("RecursiveLeastSquares", "features", features)
        target = numbers("RecursiveLeastSquares", "target", target)
        check_finite("RecursiveLeastSquares", "features", features, ("feature",))
        check_finite("RecursiveLeastSquares", "target", target, ("output",))
        h = features.detach().cpu().to(self.weight)
        heard = self.inverse @ h
        size = self.forgetting + torch.dot(h, heard)
        error = target.detach().cpu().to(self.weight) - self.weight @ h
        self.weight.addr_(error, heard / size)
        # the same vector on both sides, so that P stays exactly symmetric
        root = heard / size.sqrt()
        self.inverse.addr_(root, root, alpha=-1)
        if self.forgetting != 1:
            self.inverse /= self.forgetting
        return error
