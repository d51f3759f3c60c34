"""Ridge regression in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everstep.native import processor
from everstep.native.memory_pool import empty

_SAFE = 1e-15
"""Ratio of λ to the sum of squares below which λ is lost in rounding of Hᵀ H."""
_CORRECTIONS = 8
"""Most corrections; unless each divides the error by 10 or more, λ is too small for this method."""


class Ridge:
    """Linear read-out in closed form: the W and b that minimise Σ_t ‖y_t − W h_t − b‖² + λ ‖W‖².

    With H and Y the features and targets of all steps minus their means, W = Yᵀ H (Hᵀ H + λ I)⁻¹, and b = ȳ − W h̄ is
    not penalised (Hoerl & Kennard 1970, "Ridge regression"). Without an intercept, means are taken as 0.

    Steps are added in chunks. Only the triangular factor R of a QR decomposition of [1 H Y] is stored, in float64; it
    is equivalent and does not square the condition number (Golub 1965). So memory is O(features²) for any number of
    steps.

    The normal equations are solved by Cholesky's decomposition, and W is refined with the residual of the original
    equations (Björck 1987, "Stability analysis of the method of seminormal equations") until a correction is below the
    rounding error of a QR solution: ε κ (‖W‖ + ‖Y − H Wᵀ‖ / √λ) for each output, with κ² = ‖H‖² / λ. If λ is too small
    for that, QR solves the equations. So even a λ far below the rounding of Hᵀ H works, as free running often needs.

    >>> rng = torch.Generator().manual_seed(0)
    >>> features = torch.randn(100, 3, generator=rng)
    >>> regression = Ridge()
    >>> for part in features.split(40):
    ...     regression.add(part, 2 * part[:, :1] + 1)
    >>> weight, bias = regression.solve(0)
    >>> weight.round(decimals=6).abs(), bias.round(decimals=6)
    (tensor([[2., 0., 0.]], dtype=torch.float64), tensor([1.], dtype=torch.float64))

    λ is added to sums, not means: with twice the steps, twice the λ has the same effect.

    Args:
        intercept: whether to learn b.
    """

    def __init__(self, *, intercept: bool = True):
        self.intercept = intercept
        self.steps = 0
        self._ones: list[Tensor] = []  # first column of [1 H Y], or of a matrix with the same products
        self._rows: list[Tensor] = []  # the other columns
        self._sizes: tuple[int, ...] | None = None

    def add(self, features: Tensor | Any, targets: Tensor | Any) -> None:
        """Add steps: features h (steps, H) and targets y (steps, outputs), tensors or arrays.

        Raises:
            TypeError: an argument is neither a tensor nor an array of numbers.
            ValueError: shapes do not match each other or earlier steps; NaN or infinity, with its position.
        """
        features, targets = numbers("Ridge", "features", features), numbers("Ridge", "targets", targets)
        sizes = tuple((values.shape or (0,))[-1] for values in (features, targets))
        fit = features.dim() == targets.dim() == 2 and len(features) == len(targets)
        if not fit or sizes != (self._sizes or sizes):
            before = f" of {self._sizes} features and outputs, as before" if self._sizes else ""
            raise ValueError(
                f"Ridge: expected features (steps, H) and targets (steps, outputs){before}, but got shapes "
                f"{tuple(features.shape)} and {tuple(targets.shape)}"
            )
        for name, values in (("features", features), ("targets", targets)):
            check_finite("Ridge", name, values, ("step", "feature" if name == "features" else "output"), self.steps)
        self._sizes = sizes
        self.steps += len(features)
        if not processor.has_float64(features.device):
            features, targets = features.cpu(), targets.cpu()
        one = features.new_full((len(features),), float(self.intercept), dtype=torch.float64)
        rows = empty(one, len(features), sum(sizes))
        rows[:, : sizes[0]] = features.detach()
        rows[:, sizes[0] :] = targets.detach()
        self._ones.append(one)
        self._rows.append(rows)
        if sum(map(len, self._rows)) > 3 * (1 + sum(sizes)):
            both = torch.cat([torch.cat(self._ones)[:, None], torch.cat(self._rows)], 1)
            factor = torch.linalg.qr(both, mode="r")[1]
            self._ones, self._rows = [factor[:, 0]], [factor[:, 1:]]

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """W (outputs, H) and b (outputs,), float64, for λ = `ridge`. May be called for several λ.

        Raises:
            ValueError: no steps were added, λ is negative, or the equations are singular, so that W is not unique.
        """
        if not self.steps or self._sizes is None:
            raise ValueError("Ridge: there is nothing to solve, add steps first")
        if not 0 <= ridge < float("inf"):
            raise ValueError(f"Ridge: ridge should be a finite number of at least 0, but is {ridge}")
        one, size = torch.cat(self._ones), self._sizes[0]
        rows = torch.cat(self._rows, out=empty(one, len(one), sum(self._sizes)))
        means = one @ rows / one.square().sum().clamp(min=1)
        rows.addr_(one, means, alpha=-1)
        weight = self._solved(rows[:, :size], rows[:, size:], ridge).t()
        return weight, means[size:] - weight @ means[:size]

    def _solved(self, features: Tensor, targets: Tensor, ridge: float) -> Tensor:
        """(Hᵀ H + λ I)⁻¹ Hᵀ Y."""
        wide = features.shape[0] < features.shape[1]
        if wide and ridge == 0:
            raise self._singular(features, ridge)
        found = _by_products(features, targets, ridge)
        if found is not None:
            return found
        if wide:
            base, small = torch.linalg.qr(features.t())
            inside: Tensor = base @ self._by_triangle(small.t(), targets, ridge)
            return inside
        return self._by_triangle(features, targets, ridge)

    def _by_triangle(self, features: Tensor, targets: Tensor, ridge: float) -> Tensor:
        """The same from the factor R of [H Y; √λ I 0]."""
        size = features.shape[1]
        penalty = torch.eye(size, dtype=features.dtype, device=features.device) * ridge**0.5
        below = torch.cat([penalty, targets.new_zeros(size, targets.shape[1])], 1)
        factor = torch.linalg.qr(torch.cat([torch.cat([features, targets], 1), below]), mode="r")[1]
        triangle, right = factor[:size, :size], factor[:size, size:]
        pivots = triangle.diagonal().abs()
        if float(pivots.min()) <= 10 * size * torch.finfo(torch.float64).eps * float(pivots.max()):
            raise self._singular(features, ridge)
        found: Tensor = torch.linalg.solve_triangular(triangle, right, upper=True)
        return found

    def _singular(self, features: Tensor, ridge: float) -> ValueError:
        assert self._sizes is not None
        rank = int(torch.linalg.matrix_rank(features)) if features.numel() else 0
        advice = "give ridge > 0" if ridge == 0 else f"ridge={ridge:g} is lost in rounding, give more"
        return ValueError(
            f"Ridge: the equations are singular: rank {rank} of {self._sizes[0]} features after {self.steps} steps, so "
            f"that many read-outs fit equally well; {advice}"
        )


def _by_products(features: Tensor, targets: Tensor, ridge: float) -> Tensor | None:
    """The same by Cholesky and refinement; with few steps, Hᵀ (H Hᵀ + λ I)⁻¹ Y. None if λ is too small."""
    norm = float(torch.linalg.vector_norm(features))
    if ridge == 0 or ridge < _SAFE * norm**2:
        return None
    wide = features.shape[0] < features.shape[1]
    products = _products(features.t() if wide else features)
    products.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(products)
    if bool(failed):
        return None
    residual = targets
    weight, dual = targets.new_zeros(features.shape[1], targets.shape[1]), torch.zeros_like(targets)
    rounding = torch.finfo(torch.float64).eps * norm / ridge**0.5
    for _ in range(1 + _CORRECTIONS):
        gradient = residual - ridge * dual if wide else features.t() @ residual - ridge * weight
        change = torch.cholesky_solve(gradient, factor)
        if wide:
            dual += change
            change = features.t() @ change
        weight += change
        limit = rounding * (_lengths(weight) + _lengths(residual) / ridge**0.5)
        if bool((_lengths(change) <= limit).all()):
            return weight
        residual = targets - features @ weight
    return None


def _lengths(columns: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return found


def _products(matrix: Tensor) -> Tensor:
    """Aᵀ A, or only its lower triangle."""
    if matrix.device.type == "cpu" and torch.get_num_threads() == 1:
        numbers = matrix.numpy()  # computes one triangle, but with threads that compete with PyTorch's
        return torch.from_numpy(numbers.T @ numbers)
    size = matrix.shape[1]
    found = empty(matrix, size, size)
    step = max(64, -(-size // 10))
    for first in range(0, size, step):
        end = min(first + step, size)
        torch.mm(matrix[:, first:end].t(), matrix[:, :end], out=found[first:end, :end])
    return found


def numbers(who: str, name: str, values: Any, like: Tensor | None = None) -> Tensor:
    """A tensor unchanged; an array, of NumPy or another library, as a tensor with the dtype and device of `like`.

    Raises:
        TypeError: `values` is neither; the message uses `who` and `name`.
    """
    if isinstance(values, Tensor):
        return values
    try:
        if like is None:
            return torch.as_tensor(values)
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{who}: {name} should be a tensor or an array of numbers, but is {type(values).__name__} ({error})"
        ) from None


def check_finite(who: str, name: str, values: Tensor, axes: tuple[str, ...], first: int = 0) -> None:
    """Raise a ValueError with the position of the first NaN or infinity; the first axis counts from `first`."""
    if bool(torch.isfinite(values.sum())):
        return
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        value = float(values[tuple(place)])
        place[0] += first
        shown = ", ".join(f"{axis} {k}" for axis, k in zip(axes, place, strict=True))
        raise ValueError(f"{who}: {name} should be finite, but {value} is at {shown}")
