"""A linear read-out learned step by step: recursive least squares, and FORCE, which is that in a closed loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from everstep.learn.linear.ridge import check_finite, numbers
from everstep.state import State


class Learned(NamedTuple):
    """Where `EchoState.fit_online` stands: what it needs to go on as if it had not stopped.

    Attributes:
        state: the network's, from which a call or `predict` goes on.
        inverse: P of `RecursiveLeastSquares`, (1, H + 1, H + 1), float64.
    """

    state: State
    inverse: Tensor


class RecursiveLeastSquares:
    """Ridge regression one step at a time, in O(H²) a step (Plackett 1950; Haykin 2002, "Adaptive filter theory").

    e_t = y_t − W_{t-1} h_t,  k_t = P_{t-1} h_t / (f + h_tᵀ P_{t-1} h_t),  W_t = W_{t-1} + e_t k_tᵀ,
    P_t = (P_{t-1} − k_t h_tᵀ P_{t-1}) / f,  from W_0 = 0 and P_0 = I / λ.

    After t steps W is that of `Ridge(intercept=False)` with the same λ, to rounding; with a forgetting factor f < 1, a
    step s ago, and the λ, count f^s. For an intercept add a feature that is always 1; it is then penalised like others.

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

    Known limit: with f < 1, P grows without bound along directions in which nothing comes.

    Raises:
        ValueError: λ or f out of range.
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
        """Take in one step, h (H,) and y (outputs,), tensors or arrays; gives the error e (outputs,) before it.

        Raises:
            TypeError: what holds no numbers.
            ValueError: NaN or infinity, with its place.
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
        # one vector on both sides: P stays symmetric to the last bit
        root = heard / size.sqrt()
        self.inverse.addr_(root, root, alpha=-1)
        if self.forgetting != 1:
            self.inverse /= self.forgetting
        return error
