"""Equations as classes, and classes of cells: abstract or final, and the same weights as ever."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn, sigmoid, tanh

import everstep as es
from everstep.equation import Gated
from everstep.networks.cells_by_name import _options
from everstep.state import leaves
from tests.laws import D, H

EXPORTED = [kind for name in es.__all__ if inspect.isclass(kind := getattr(es, name)) and issubclass(kind, es.Layer)]
ABSTRACT = (es.Layer, es.Cell, es.Affine, es.Gated)


class Minimal(es.Gated, gates="z n"):
    """As small as a gated cell can be."""

    @staticmethod
    def equation(x: Any, h: Any, s: Any, *, activation: Any = tanh) -> Any:
        z = sigmoid(x.z + h.z)
        return (1 - z) * s.h + z * activation(x.n + h.n)


@es.gated("z n")
def Short(x: Any, h: Any, s: Any, *, activation: Any = tanh) -> Any:
    """As small as a gated cell can be."""
    z = sigmoid(x.z + h.z)
    return (1 - z) * s.h + z * activation(x.n + h.n)


# ------------------------------------------------------------------------------------------------------ equations


@pytest.mark.parametrize("options", [{}, {"activation": torch.relu}, {"bias": {"n": 0.5}}, {"bias": False}])
def test_a_class_is_what_the_decorator_makes(options: dict[str, Any]) -> None:
    one, other = Minimal(D, H, **options), Short(D, H, **options)
    other.load_state_dict(one.state_dict())
    xs = torch.randn(2, 6, D)
    ys, state = one(xs)
    assert torch.equal(ys, other(xs)[0])
    assert (type(one).gates, type(one).state_names) == (("z", "n"), ("h",))
    assert torch.equal(state, ys[:, -1])
    assert es.explain(one, xs).backend == es.explain(other, xs).backend
    assert repr(one) == repr(other).replace("Short", "Minimal")
    for kind in (Minimal, Short):
        text = str(kind.__doc__)
        assert text.startswith("As small as a gated cell can be.\n\nGates: z n. State: h; the output is h.")
        assert "        z = sigmoid(x.z + h.z)\n        return (1 - z) * s.h" in text
        assert "input_size: features D of x_t" in text


def test_a_subclass_is_the_cell_with_what_it_adds() -> None:
    class Mine(es.LSTM):
        """An LSTM that remembers at first."""

        def __init__(self, input_size: int, hidden_size: int, **options: Any):
            super().__init__(input_size, hidden_size, bias={"f": 2.0}, **options)

    cell = Mine(D, H)
    assert cell.vendor_kernel() == "lstm"
    assert Mine.__doc__ == "An LSTM that remembers at first."
    assert cell.gate_rows(cell.get_parameter("bias_ih"), "f", cell.input_gates).tolist() == [2.0] * H
    assert type(cell(torch.zeros(1, 2, D))[1]) is es.LSTM.state_type
    assert es.StateDropout(cell, 0.5).train()(torch.randn(2, 3, D))[0].shape == (2, 3, H)
    assert {"bias", "device", "dtype"} <= set(_options(Mine))


def equation(x: Any, h: Any, s: Any) -> Any:
    return tanh(x.a + h.a)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: type("Mine", (Gated,), {}, gates="a"), TypeError, r"@staticmethod equation\(x, h, s\); it has none"),
        (lambda: type("Mine", (Gated,), {"equation": equation}, gates="a"), TypeError, "it has a function"),
        (lambda: type("Mine", (es.RNN,), {"equation": staticmethod(equation)}), TypeError, "names of the gates beside"),
        (lambda: type("Mine", (Gated,), {"equation": staticmethod(equation)}, gates=3), TypeError, "got 3"),
        (lambda: type("Mine", (Gated,), {"equation": staticmethod(equation)}, gates="a a"), ValueError, "identifiers"),
        (lambda: type("Mine", (Gated,), {"equation": staticmethod(equation)}, gates="b"), AttributeError, "gate 'a'"),
        (lambda: type("Mine", (Gated,), {"equation": staticmethod(equation)}, gate="a"), TypeError, "no keyword"),
        (lambda: Gated(D, H), TypeError, "Gated has no equation"),
        (lambda: type("Mine", (Gated,), {})(D, H), TypeError, "Mine has no equation"),
    ],
)
def test_classes_that_are_no_equation_are_refused(make: Callable[[], Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        make()


# -------------------------------------------------------------------------------------------------------- classes


def test_type_checkers_see_every_cell_as_a_class() -> None:
    cells = [kind for kind in EXPORTED if issubclass(kind, Gated) and kind is not Gated]
    assert len(cells) >= 34
    for kind in cells:
        assert inspect.getsource(kind).startswith(f"class {kind.__name__}(Gated, gates="), kind


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_a_cell_is_abstract_or_final(kind: type[es.Layer]) -> None:
    above = [base for base in inspect.getmro(kind)[1:] if base in EXPORTED and base not in ABSTRACT]
    assert not above, f"{kind.__name__} inherits from {above[0].__name__}: let both inherit from what they share"


OLD: dict[str, Callable[[], es.Layer]] = {
    "LeakyRNN": lambda: es.LeakyRNN(3, 4, alpha=[0.5] * 4, activation=torch.relu, bias=False),
    "LeakyRNN learned": lambda: es.LeakyRNN(3, 4, alpha=0.7, learned=True),
    "IRNN": lambda: es.IRNN(3, 4),
    "ResLSTM": lambda: es.ResLSTM(3, 4),
    "PeepholeLSTM": lambda: es.PeepholeLSTM(3, 4),
    "AntisymmetricRNN": lambda: es.AntisymmetricRNN(3, 4),
    "GatedAntisymmetricRNN": lambda: es.GatedAntisymmetricRNN(3, 4, diffusion=0.2),
    "Stack": lambda: es.Stack(es.FeedForward(3, 4), es.Dropout(4, 0.5), nn.Linear(4, 4), es.Identity(4), es.LSTM(4, 4)),
    "EncoderStack": lambda: es.EncoderStack(es.Bidirectional(es.GRU(3, 4), es.GRU(3, 4)), es.Dropout(8, 0.5)),
}


@pytest.fixture(scope="module")
def kept() -> dict[str, torch.Tensor]:
    """Weights, inputs and outputs of cells, as an earlier version had them."""
    return load_file(Path(__file__).parent / "fixtures" / "cells.safetensors")


@pytest.mark.parametrize("name", OLD)
def test_weights_of_earlier_versions_load_and_compute_the_same(name: str, kept: dict[str, torch.Tensor]) -> None:
    weights = {key.removeprefix(f"{name}/"): value for key, value in kept.items() if key.startswith(f"{name}/")}
    layer = OLD[name]().eval()
    layer.load_state_dict(weights)
    with torch.no_grad():
        ys, state = layer(kept[f"{name}: xs"])
    torch.testing.assert_close(ys, kept[f"{name}: ys"], rtol=1e-5, atol=1e-6)
    assert all(leaf.isfinite().all() for _, leaf in leaves(state))
