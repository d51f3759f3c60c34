"""Spectra, step Jacobians and Lyapunov exponents: closed forms, known constants, brute force."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import CELLS
from matplotlib.image import imread
from torch import Tensor

import everstep as es
from everstep.look.jacobians import lyapunov_exponents, step_jacobians
from everstep.look.spectra import draw_jacobians, draw_spectrum, spectra, spectrum
from everstep.state import leaves, unflatten

F64 = torch.float64
STATELESS = ("Identity", "Dropout", "FeedForward", "TimeDistributed")


class Henon(es.Cell):
    """a_{t+1} = 1 − 1.4 a_t² + b_t, b_{t+1} = 0.3 a_t, with a state of two leaves."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def initial_state(self, batch, like):
        return {"a": like.new_full((batch,), 0.1), "b": like.new_full((batch, 1), 0.1)}

    def step(self, x, state):
        a = 1 - 1.4 * state["a"] ** 2 + state["b"][:, 0]
        return a[:, None], {"a": a, "b": 0.3 * state["a"][:, None]}


class Map(es.Cell):
    """h_t = W h_{t-1}."""

    def __init__(self, w: Tensor):
        super().__init__(1, len(w))
        self.w = w

    def step(self, x, h):
        h = h @ self.w.T
        return h, h


class Whole(es.Cell):
    """Hides that a cell is a stack."""

    def __init__(self, stack: es.Stack):
        super().__init__(stack.input_size, stack.output_size)
        self.stack = stack
        self.initial_state, self.step = stack.initial_state, stack.step


def test_spectrum_of_a_known_matrix() -> None:
    # a rotation by 60° that shrinks by 0.9, and a shear
    c, s = math.cos(math.pi / 3), math.sin(math.pi / 3)
    found = spectrum(0.9 * torch.tensor([[c, -s], [s, c]]), powers=4)
    assert found.radius == pytest.approx(0.9)
    np.testing.assert_allclose(np.sort_complex(found.eigenvalues), [0.9 * (c - s * 1j), 0.9 * (c + s * 1j)], rtol=1e-6)
    np.testing.assert_allclose(found.singular_values, [0.9, 0.9], rtol=1e-6)
    np.testing.assert_allclose(found.power_norms, 0.9 ** np.arange(5), rtol=1e-6)
    shear = spectrum(torch.tensor([[0.5, 10.0], [0.0, 0.5]], dtype=F64), powers=2)
    assert shear.radius == 0.5
    assert shear.power_norms[2] == pytest.approx(np.linalg.norm([[0.25, 10.0], [0, 0.25]], 2))


def test_every_gate_of_every_layer_has_its_matrix() -> None:
    lower, upper = es.LSTM(3, 4), es.MinGRU(4, 4)
    found = spectra(es.Stack(lower, es.Dropout(4, 0.5), es.Residual(es.GRU(4, 4)), upper))
    assert list(found) == [f"layer 1 LSTM: W_h{g}" for g in "ifgo"] + [f"layer 2 GRU: W_h{g}" for g in "rzn"]
    rows = lower.gate_rows(lower.weight_hh, "g", lower.hidden_gates)
    np.testing.assert_array_equal(found["layer 1 LSTM: W_hg"].power_norms, spectrum(rows).power_norms)


def test_a_cell_without_matrices_says_what_to_use() -> None:
    with pytest.raises(TypeError, match=r"expected a `Gated` cell.*but UnICORNN is not.*step_jacobians"):
        spectra(es.UnICORNN(3, 4))
    with pytest.raises(ValueError, match="spectra: Cumulate has no recurrent matrix"):
        spectra(Cumulate(3, 3))
    with pytest.raises(ValueError, match=r"expected a square matrix, but its shape is \(16, 4\)"):
        spectrum(es.LSTM(3, 4).weight_hh)
    with pytest.raises(ValueError, match="not finite"):
        spectrum(torch.full((2, 2), math.nan))


@es.gated("u")
def Cumulate(x, h, s):
    """h_t = h_{t-1} + W x_t."""
    return s.h + x.u


@pytest.mark.parametrize("name", [name for name in CELLS if name not in STATELESS])
def test_step_jacobians_are_those_of_reverse_differentiation(name: str) -> None:
    torch.manual_seed(0)
    cell = CELLS[name]().double().eval()
    xs = torch.randn(1, 4, cell.input_size, dtype=F64)
    found = step_jacobians(cell, xs, samples=2)
    assert all(one.steps.tolist() == [1, 4] for one in found.values())
    if len(found) > 1 or isinstance(cell, es.Stack):
        return
    with torch.no_grad():
        state = cell(xs[:, :3])[1]
    values = [leaf for _, leaf in leaves(state)]

    def after(*parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for _, leaf in leaves(cell.step(xs[:, 3], unflatten(state, parts))[1]))

    rows = torch.func.jacrev(after, argnums=tuple(range(len(values))))(*values)
    expected = torch.cat(
        [
            torch.cat([b.reshape(leaf.numel(), other.numel()) for b, other in zip(row, values, strict=True)], 1)
            for row, leaf in zip(rows, values, strict=True)
        ]
    )
    (one,) = found.values()
    np.testing.assert_allclose(one.matrices[1], expected.detach(), rtol=1e-9, atol=1e-12)


def test_the_layers_eigenvalues_are_the_stacks() -> None:
    torch.manual_seed(1)
    stack = es.Stack(es.GRU(2, 3), es.LSTM(3, 2)).double()
    xs = torch.randn(1, 5, 2, dtype=F64)
    layers = step_jacobians(stack, xs)
    (whole,) = step_jacobians(Whole(stack), xs).values()
    assert whole.matrices.shape == (5, 7, 7)
    blocks = np.concatenate([one.eigenvalues for one in layers.values()], 1)
    for mine, all_of_them in zip(blocks, whole.eigenvalues, strict=True):
        assert max(abs(all_of_them - value).min() for value in mine) < 1e-9


def test_singular_values_bound_the_stretch_of_a_step() -> None:
    w = torch.diag(torch.tensor([2.0, 0.5, 0.0], dtype=F64))
    (found,) = step_jacobians(Map(w), torch.zeros(1, 3, 1, dtype=F64)).values()
    np.testing.assert_allclose(found.singular_values, np.tile([2, 0.5, 0], (3, 1)))


def test_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues() -> None:
    torch.manual_seed(2)
    basis, rates = torch.randn(4, 4, dtype=F64), torch.tensor([1.2, 0.9, 0.5, 0.01], dtype=F64)
    cell = Map(basis @ torch.diag(rates) @ basis.inverse())
    xs = torch.zeros(1, 600, 1, dtype=F64)
    found = lyapunov_exponents(cell, xs, warm_up=500)
    np.testing.assert_allclose(found.values, rates.log(), rtol=1e-10)
    assert found.history.shape == (100, 4)
    np.testing.assert_allclose(lyapunov_exponents(cell, xs, warm_up=500, count=2).values, rates[:2].log(), rtol=1e-10)


def test_exponents_of_the_henon_map() -> None:
    found = lyapunov_exponents(Henon(), torch.zeros(1, 1_500, 1, dtype=F64), warm_up=100)
    assert found.values[0] == pytest.approx(0.419, abs=0.02)
    assert found.values.sum() == pytest.approx(math.log(0.3), abs=1e-10)  # the determinant is −0.3 everywhere


def test_what_is_forgotten_at_once_has_no_finite_exponent() -> None:
    assert lyapunov_exponents(es.Window(1, 3), torch.randn(1, 9, 1)).values.max() == -math.inf


def test_exponents_of_a_stack_are_of_its_whole_state() -> None:
    torch.manual_seed(3)
    stack = es.Stack(es.RNN(2, 3), es.GRU(3, 2))
    assert lyapunov_exponents(stack, torch.randn(1, 20, 2)).values.shape == (5,)


def test_bad_calls_say_what_is_wrong() -> None:
    xs = torch.randn(1, 6, 3)
    for measure in (step_jacobians, lyapunov_exponents):
        with pytest.raises(ValueError, match=r"one row is expected.*but xs has 2; give xs\[:1\]"):
            measure(es.LSTM(3, 4), xs.repeat(2, 1, 1))
        with pytest.raises(ValueError, match="Identity has no state"):
            measure(es.Identity(3), xs)
        with pytest.raises(TypeError, match="EncoderStack is acausal"):
            measure(es.EncoderStack(es.Bidirectional(es.LSTM(3, 4), es.LSTM(3, 4))), xs)
        with pytest.raises(ValueError, match="Map is not finite after step 3 of 6"):
            measure(Map(torch.full((1, 1), 1e15)), torch.zeros(1, 6, 1), state=torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"count should lie in 1 … 8, the numbers in the state, but is 9"):
        lyapunov_exponents(es.LSTM(3, 4), xs, count=9)
    with pytest.raises(ValueError, match=r"warm_up should lie in 0 … 5 for 6 steps, but is 6"):
        lyapunov_exponents(es.LSTM(3, 4), xs, warm_up=6)


def test_spectra_are_drawn_with_a_sentence(tmp_path: Path) -> None:
    torch.manual_seed(4)
    assert "W_ha 0." in draw_spectrum(spectra(es.RNN(3, 20)), tmp_path / "w.png")
    found = step_jacobians(es.Stack(es.LSTM(3, 4), es.GRU(4, 4)), torch.randn(1, 9, 3))
    assert "layer 2 GRU" in draw_jacobians(found, tmp_path / "jacobians.png")
    for name in ("w.png", "jacobians.png"):
        assert imread(tmp_path / name).shape[1] == 1200
