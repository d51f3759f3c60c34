"""Linear regression with a penalty, in closed form: `Ridge`."""

from __future__ import annotations

import torch
from torch import Tensor

_SAFE = 1e-12
"""λ over the sum of squares from which on the normal equations, which are quicker, lose nothing that matters."""


class Ridge:
    """Linear read-out in closed form: the W and b that minimise Σ_t ‖y_t − W h_t − b‖² + λ ‖W‖².

    With H and Y the features and targets of all steps about their means, W = Yᵀ H (Hᵀ H + λ I)⁻¹, and b = ȳ − W h̄ is
    not penalised (Hoerl & Kennard 1970, "Ridge regression"). Without an intercept the means are taken as 0.

    Steps come in chunks. Not they are kept but the triangular factor R of a QR decomposition of [1 H Y], which says the
    same in float64 without squaring the condition number (Golub 1965): memory is that of features², however many steps
    there are. The normal equations are solved where λ is large enough for that; else QR once more, so that a
    λ far below rounding in Hᵀ H still works, which free-running predictions are better for.

    >>> rng = torch.Generator().manual_seed(0)
    >>> features = torch.randn(100, 3, generator=rng)
    >>> regression = Ridge()
    >>> for part in features.split(40):
    ...     regression.add(part, 2 * part[:, :1] + 1)
    >>> weight, bias = regression.solve(0)
    >>> weight.round(decimals=6).abs(), bias.round(decimals=6)
    (tensor([[2., 0., 0.]], dtype=torch.float64), tensor([1.], dtype=torch.float64))

    λ stands beside sums, not means: for twice the steps, twice the λ penalises as much.

    Args:
        intercept: whether there is a b.
    """

    def __init__(self, *, intercept: bool = True):
        self.intercept = intercept
        self.steps = 0
        self._rows: list[Tensor] = []  # of [1 H Y], or of what has the same products
        self._sizes: tuple[int, int] | None = None

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Take in more steps: features h (steps, H) and targets y (steps, outputs).

        Raises:
            ValueError: shapes that do not fit one another or what came before, or NaN or infinity, with its place.
        """
        sizes = (features.shape[-1], targets.shape[-1])
        fit = features.dim() == targets.dim() == 2 and len(features) == len(targets)
        if not fit or sizes != (self._sizes or sizes):
            before = f" of {self._sizes} features and outputs, as before" if self._sizes else ""
            raise ValueError(
                f"Ridge: expected features (steps, H) and targets (steps, outputs){before}, but shapes "
                f"{tuple(features.shape)} and {tuple(targets.shape)} came"
            )
        for name, values in (("features", features), ("targets", targets)):
            check_finite("Ridge", name, values, ("step", "feature" if name == "features" else "output"), self.steps)
        self._sizes = sizes
        self.steps += len(features)
        one = torch.full((len(features), 1), float(self.intercept), dtype=torch.float64, device=features.device)
        self._rows.append(torch.cat([one, features.detach().double(), targets.detach().double()], 1))
        if sum(map(len, self._rows)) > 3 * self._rows[0].shape[1]:
            self._rows = [torch.linalg.qr(torch.cat(self._rows), mode="r")[1]]

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """W (outputs, H) and b (outputs,), float64, for λ = `ridge`; may be asked for several λ.

        Raises:
            ValueError: no steps came, λ is negative, or the equations are singular: then no one W is the best.
        """
        if not self.steps or self._sizes is None:
            raise ValueError("Ridge: there is nothing to solve, add steps first")
        if not 0 <= ridge < float("inf"):
            raise ValueError(f"Ridge: ridge should be a finite number of at least 0, but is {ridge}")
        rows, size = torch.cat(self._rows), self._sizes[0]
        one, rows = rows[:, 0], rows[:, 1:]
        means = one @ rows / one.square().sum().clamp(min=1)
        rows.addr_(one, means, alpha=-1)
        weight = self._solved(rows[:, :size], rows[:, size:], ridge).t()
        return weight, means[size:] - weight @ means[:size]

    def _solved(self, features: Tensor, targets: Tensor, ridge: float) -> Tensor:
        """(Hᵀ H + λ I)⁻¹ Hᵀ Y, or the same with fewer operations, Hᵀ (H Hᵀ + λ I)⁻¹ Y."""
        wide = features.shape[0] < features.shape[1]
        if wide and ridge == 0:
            raise self._singular(features, ridge)
        if ridge > 0 and ridge >= _SAFE * float(torch.linalg.vector_norm(features)) ** 2:
            products = _products(features.t() if wide else features)
            products.diagonal().add_(ridge)
            factor = torch.linalg.cholesky(products)
            if wide:
                return features.t() @ torch.cholesky_solve(targets, factor)
            return torch.cholesky_solve(features.t() @ targets, factor)
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


def _products(matrix: Tensor) -> Tensor:
    """Aᵀ A: numpy computes half of it, where PyTorch computes all."""
    if matrix.device.type != "cpu":
        return matrix.t() @ matrix
    numbers = matrix.numpy()
    return torch.from_numpy(numbers.T @ numbers)


def check_finite(who: str, name: str, values: Tensor, axes: tuple[str, ...], first: int = 0) -> None:
    """Raise a ValueError with the place of the first NaN or infinity; places of the first axis count from `first`."""
    if bool(torch.isfinite(values.sum())):
        return
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        value = float(values[tuple(place)])
        place[0] += first
        shown = ", ".join(f"{axis} {k}" for axis, k in zip(axes, place, strict=True))
        raise ValueError(f"{who}: {name} should be finite, but {value} is at {shown}")
