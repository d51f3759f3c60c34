"""Tracing a step: what is found in it, that the graph computes the same, and what is refused, by line."""

from __future__ import annotations

import inspect

import pytest
import torch
from laws import CELLS, D
from torch import Tensor, nn

import everstep as es
from everstep.scanning.trace import Untraceable, trace
from everstep.state import leaves


@pytest.mark.parametrize("name", CELLS)
def test_the_graph_computes_the_step(name: str) -> None:
    torch.manual_seed(0)
    cell = CELLS[name]().double()
    modes = [module.training for module in cell.modules()]
    graph = trace(cell, torch.zeros(1, 1, D, dtype=torch.float64))
    x = torch.randn(graph.rows, D, dtype=torch.float64)
    assert [module.training for module in cell.modules()] == modes
    cell.eval()
    state = cell.initial_state(graph.rows, x)
    flat = [leaf + torch.randn_like(leaf) / 3 for _, leaf in leaves(state)]
    values = {f"cell.{k}": v for k, v in [*cell.named_parameters(), *cell.named_buffers()]}
    got = graph.module(values, [x], flat)
    y, new = cell.step(x, es.state.unflatten(state, flat))
    for a, b in zip(got, [y, *(leaf for _, leaf in leaves(new))], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("cell", "early", "products", "flops"),
    [
        (es.LSTM(3, 5), 1, 1, 2 * 5 * 20),
        (es.GRUBefore(3, 5), 1, 2, 2 * 5 * 10 + 2 * 5 * 5),
        (es.MinGRU(3, 5), 1, 0, 0),
        (es.Stack(es.LSTM(3, 5), es.GRU(5, 4)), 1, 3, 2 * 5 * 20 + 2 * 5 * 12 + 2 * 4 * 12),
        (es.Zoneout(es.RNN(3, 5), 0.1), 1, 1, 2 * 5 * 5),
    ],
)
def test_what_can_be_hoisted_is_found(cell: es.Cell, early: int, products: int, flops: int) -> None:
    graph = trace(cell, torch.zeros(2, 4, 3))
    found = [o for o in graph.operations if o.kind == "product"]
    assert sum(o.hoisted for o in found) == early
    assert sum(not o.hoisted for o in found) == products
    assert sum(o.flops for o in found if not o.hoisted) == flops
    assert str(graph).startswith(f"products that need x alone: {early}; ")


def looks_at_values(x: Tensor, h: Tensor) -> Tensor:
    return h + x if x.sum() > 0 else h  # the line


def changes_in_place(x: Tensor, h: Tensor) -> Tensor:
    return h.add_(x)  # the line


def draws(x: Tensor, h: Tensor) -> Tensor:
    return h + torch.rand_like(x)  # the line


def sorts(x: Tensor, h: Tensor) -> Tensor:
    return torch.sort(h + x)[0]  # the line


def grows(x: Tensor, h: Tensor) -> Tensor:
    return torch.cat([h, x], -1)


def widens(x: Tensor, h: Tensor) -> Tensor:
    return (h + x).double()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (looks_at_values, "decides by the value of a tensor"),
        (changes_in_place, "in place by add_"),
        (draws, "random numbers by rand_like; a mask belongs to the sequence"),
        (sorts, "uses sort, which the engine does not know"),
        (grows, r"leaf 'state' from \(\d+, 3\) torch.float32 into \(\d+, 6\)"),
        (widens, "into .* torch.float64"),
    ],
)
def test_refusals_name_the_operation_and_the_line(function, message: str) -> None:
    class Cell(es.Cell):
        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = function(x, h)
            return h, h

    with pytest.raises(Untraceable, match=message) as caught:
        trace(Cell(3), torch.zeros(2, 4, 3))
    lines, first = inspect.getsourcelines(function)
    marked = [first + place for place, line in enumerate(lines) if "# the line" in line]
    assert all(f"{__file__}:{line}" in str(caught.value) for line in marked)
    assert str(caught.value) in str(es.explain(Cell(3), torch.zeros(2, 4, 3)))


def test_user_modules_are_followed() -> None:
    class Normed(es.Cell):
        def __init__(self) -> None:
            super().__init__(3, 5)
            self.linear, self.norm = nn.Linear(8, 5), nn.LayerNorm(5)

        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.norm(self.linear(torch.cat([x, h], -1))))
            return h, h

    graph = trace(Normed(), torch.zeros(2, 4, 3))
    assert {o.kind for o in graph.operations} == {"view", "product", "reduction", "pointwise"}
