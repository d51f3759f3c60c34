"""Spectra of recurrent matrices and their powers, and drawings of spectra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from everstep.cell import Layer
from everstep.equation import Gated
from everstep.look.jacobians import Jacobians, Real
from everstep.look.style import COLOURS, DASHES, GREY, canvas, label, legend, save
from everstep.look.trajectory import innermost, names, parts

MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of a recurrent matrix W, and the norms of its powers.

    Attributes:
        eigenvalues: (H,) complex, largest first.
        singular_values: (H,), largest first.
        power_norms: ‖W^k‖₂ for k = 0 … K; for a non-normal matrix they may grow at first although ρ < 1.
    """

    eigenvalues: NDArray[np.complex128]
    singular_values: Real
    power_norms: Real

    @property
    def radius(self) -> float:
        """The spectral radius ρ = max |λ| = lim ‖W^k‖^(1/k)."""
        return float(abs(self.eigenvalues[0]))


def spectrum(matrix: Tensor, powers: int = 50) -> Spectrum:
    """The eigenvalues and singular values of a square matrix, and the norms of its powers, in double precision.

    >>> spectrum(torch.diag(torch.tensor([0.5, -0.25])), powers=2).power_norms.tolist()
    [1.0, 0.5, 0.25]

    Raises:
        ValueError: the matrix is not square or not finite.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"spectrum: expected a square matrix, but its shape is {tuple(matrix.shape)}")
    w = matrix.detach().cpu().double().numpy(force=True)
    if not np.isfinite(w).all():
        raise ValueError("spectrum: the matrix holds values that are not finite; did the training diverge?")
    eigenvalues = np.linalg.eigvals(w).astype(np.complex128)
    power, norms = np.eye(len(w)), []
    for _ in range(powers + 1):
        norms.append(np.linalg.norm(power, 2))
        power = power @ w
    return Spectrum(
        eigenvalues[np.argsort(-abs(eigenvalues))], np.linalg.svd(w, compute_uv=False), np.array(norms, dtype=float)
    )


def spectra(cell: Layer, powers: int = 50) -> dict[str, Spectrum]:
    """The spectrum of every recurrent matrix W_h· of a `Gated` cell or a stack, by its gate.

    >>> from everstep import LSTM
    >>> list(spectra(LSTM(3, 5)))
    ['W_hi', 'W_hf', 'W_hg', 'W_ho']

    Raises:
        TypeError: the layer contains no `Gated` cell.
        ValueError: there is no recurrent matrix.
    """
    layers = parts(cell)
    found = [(name, inner) for name, one in zip(names(layers), layers, strict=True) if (inner := innermost(one))]
    equations = [(name, inner) for name, inner in found if isinstance(inner, Gated)]
    if not equations:
        raise TypeError(
            f"spectra: expected a `Gated` cell, whose matrices are known by gate, but {type(cell).__name__} is "
            "not. Give a matrix of it to `spectrum`, or see `step_jacobians`, which takes any cell"
        )
    matrices = {
        f"{name}: W_h{gate}" if len(layers) > 1 else f"W_h{gate}": inner.gate_rows(
            inner.weight_hh, gate, inner.hidden_gates
        )
        for name, inner in equations
        if inner.weight_hh is not None
        for gate in inner.hidden_gates
    }
    if not matrices:
        raise ValueError(
            f"spectra: {type(cell).__name__} has no recurrent matrix, as each unit's state goes on by itself; see "
            "`step_jacobians`"
        )
    return {name: spectrum(matrix, powers) for name, matrix in matrices.items()}


def draw_spectrum(found: Spectrum | Mapping[str, Spectrum], path: Path) -> str:
    """Draw eigenvalues with the unit circle, and ‖W^k‖ with ρ^k; returns the caption.

    Args:
        found: one spectrum, or up to six by name.
        path: the PNG to write.
    """
    shown = dict(found) if isinstance(found, Mapping) else {"W": found}
    figure = canvas(6.2)
    plane, growth = figure.subplots(1, 2)
    _plane(plane, {name: one.eigenvalues for name, one in shown.items()})
    for place, (name, one) in enumerate(shown.items()):
        colour, powers = COLOURS[place % len(COLOURS)], np.arange(len(one.power_norms))
        growth.plot(
            powers,
            one.power_norms,
            color=colour,
            linewidth=2.6,
            label=rf"$\|W^k\|$, {name}" if len(shown) > 1 else r"$\|W^k\|$",
        )
        growth.plot(
            powers,
            one.radius**powers,
            color=colour,
            linewidth=1.6,
            linestyle=":",
            label=rf"$\rho^k$, $\rho$ = {one.radius:.2f}",
        )
    growth.set_yscale("log")
    label(growth, "power $k$", "spectral norm")
    legend(growth)
    save(figure, path)
    radii = ", ".join(f"{name} {one.radius:.2f}" for name, one in shown.items())
    return (
        "Repeated products shrink along eigenvalues inside the unit circle (grey) and grow along those outside; powers "
        f"may grow at first, then follow ρ^k. Spectral radius ρ: {radii}."
    )


def draw_jacobians(found: Mapping[str, Jacobians], path: Path) -> str:
    """Draw the eigenvalues of the step's Jacobians, and the stretching of a step; returns the caption.

    Args:
        found: the Jacobians of each layer by name, from `step_jacobians`.
        path: the PNG to write.
    """
    values = {name: one.eigenvalues for name, one in found.items()}
    stretches = {name: one.singular_values for name, one in found.items()}
    figure = canvas(6.2)
    plane, over_time = figure.subplots(1, 2)
    _plane(plane, {name: one.ravel() for name, one in values.items()})
    for place, (name, one) in enumerate(found.items()):
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
        over_time.plot(one.steps, stretches[name][:, 0], linewidth=2.4, marker="o", label=name, **style)
    over_time.axhline(1, color=GREY, linewidth=1, label="neither stretched nor shrunk")
    over_time.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    over_time.margins(x=0.1)
    over_time.set_ylim(0, 1.1 * max(1.0, *(one[:, 0].max() for one in stretches.values())))
    label(over_time, "step $t$", r"largest singular value of $\partial s_t/\partial s_{t-1}$")
    legend(over_time)
    save(figure, path)
    radii = ", ".join(f"{name} {abs(one).max(1).mean():.2f}" for name, one in values.items())
    return (
        "Eigenvalues of ∂s_t/∂s_{t−1}: directions near 1 (on the grey circle) are kept from step to step, those near "
        f"0 are forgotten at once. Spectral radius, mean over {len(next(iter(found.values())).steps)} steps: {radii}."
    )


def _plane(axes: Axes, values: Mapping[str, NDArray[np.complex128]]) -> None:
    """Draw eigenvalues in the complex plane, with the unit circle."""
    angle = np.linspace(0, 2 * np.pi, 400)
    axes.plot(np.cos(angle), np.sin(angle), color=GREY, linewidth=1.5)
    for place, (name, found) in enumerate(values.items()):
        axes.scatter(
            found.real,
            found.imag,
            s=14,
            alpha=0.5 if found.size < 1000 else 0.2,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            linewidths=0,
            label=name,
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.locator_params(nbins=6)
    label(axes, r"real part of $\lambda$", r"imaginary part of $\lambda$")
