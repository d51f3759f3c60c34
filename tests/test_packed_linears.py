"""Products by packed parameters against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import everstep as es
from everstep.native.packed_linears import PackedLinears


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 3), (33, 3), (2, 5, 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    layer, x = nn.Linear(3, 7, bias=bias, dtype=dtype), torch.randn(shape, dtype=dtype)
    with torch.no_grad(), PackedLinears(layer) as packed:
        found = layer(x)
        assert len(packed._packed) == 1
        torch.testing.assert_close(layer(x.clone()), found, rtol=0, atol=0)
    assert len(packed._packed) == 1
    torch.testing.assert_close(found, layer(x))


def test_steps_of_cells_and_parts_of_their_weights() -> None:
    for cell in (es.LSTM(6, 9), es.GRU(6, 9)):  # a GRU multiplies by parts of its matrix
        x, state = torch.randn(40, 6), cell.initial_state(40, torch.zeros(1))
        with torch.no_grad(), PackedLinears(cell) as packed:
            y, _ = cell.step(x, state)
        assert packed._packed
        torch.testing.assert_close(y, cell.step(x, state)[0])


def test_rows_do_not_depend_on_others() -> None:
    layer, x = nn.Linear(300, 70), torch.randn(40, 300)
    with torch.no_grad(), PackedLinears(layer):
        for n in (1, 2, 5, 33):
            assert torch.equal(layer(x)[:n], layer(x[:n]))


def test_everything_else_is_pytorchs() -> None:
    layer, other, x = nn.Linear(3, 7), nn.Linear(3, 7), torch.randn(4, 3)
    packed = PackedLinears(layer)
    with packed:
        assert layer(x).requires_grad
        with torch.no_grad():
            other(x)
            F.linear(x, weight=layer.weight)
            F.linear(x, layer.weight * 2)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            with pytest.raises(RuntimeError, match="dtype"):
                layer(x.double())
            with pytest.raises(RuntimeError, match="shapes"):
                layer(x[:, :2])
    assert not packed._packed


def test_without_a_compiler(uncompiled: Any) -> None:
    layer, x = nn.Linear(3, 7), torch.randn(4, 3)
    with torch.no_grad(), PackedLinears(layer) as packed:
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not packed._packed
