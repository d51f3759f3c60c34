"""What gates and parameters are called in pictures: by the names that a cell declares, else by its parameters'."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn, sigmoid, tanh

import everstep as es
from everstep.cli.loading import load_cell
from everstep.look.cell_graph import _step
from everstep.look.diagram import Diagram, step_diagram
from everstep.look.gates import activities
from everstep.look.step import ParameterRows, gate_name, named_step, narrowed
from everstep.networks.cells_by_name import cell_names

D, H = 6, 8
TREE = ("tanh", ("cell", ("add", ("mul", ("sigmoid", ("add", "x", "h")), "c"), ("tanh", "x"))))
MADE: dict[str, Any] = {
    "Accumulator": lambda: es.Accumulator(H),
    "IntersectionRNN": lambda: es.IntersectionRNN(H),
    "ProjectedLSTM": lambda: es.ProjectedLSTM(D, H, 3),
    "RGLRU": lambda: es.RGLRU(H),
    "ExpressionCell": lambda: es.ExpressionCell(D, H, TREE),
}


def exported() -> list[str]:
    import everstep.cells as cells

    kinds = ((name, getattr(cells, name)) for name in cell_names())
    return sorted(name for name, kind in kinds if isinstance(kind, type) and issubclass(kind, es.Cell))


def diagram(cell: es.Cell) -> Diagram:
    return step_diagram(cell, torch.zeros(1, cell.input_size))


def gates(cell: es.Cell) -> list[str]:
    return sorted(gate.name for gate in named_step(cell, torch.zeros(1, cell.input_size)).gates)


@pytest.mark.parametrize("name", exported())
def test_no_exported_cell_has_a_gate_or_block_without_a_name(name: str) -> None:
    cell = MADE[name]() if name in MADE else load_cell("test", name, f"{D},{H}")
    words = gates(cell) + [line for item in diagram(cell).items.values() for line in item.lines]
    assert words
    assert not [word for word in words if re.search(r"\d:\d| of \d", word)]


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (es.SLSTM(D, H), "o z"),
        (es.SLSTM(D, H, heads=2), "o z"),
        (es.MLSTM(D, H, heads=2), "o"),
        (es.MCLSTM(D, H), "f g i m o"),
        (es.TauGRU(D, H), "a g u z"),
        (es.RHN(D, H, depth=2), "1−k1 1−k2 k1 k2 n1 n2"),
        (es.RHN(D, H, depth=1, coupled=False), "e1 k1 n1"),
        (es.MinGRU(D, H), "1−z z"),
        (es.QRNN(D, H), "1−f f o z"),
        (es.SRU(D, H), "f r"),
        (es.SRU(H, H), "f r"),
        (es.FastGRNN(D, H), "n z"),
        (es.SCRN(D, H, context_size=3), "h"),
        (es.GatedAntisymmetricRNN(D, H), "n z"),
        (es.TLSTM(D, H), "f o"),
        (es.BRC(D, H), "a c n"),
        (es.ExpressionCell(D, H, TREE), "h1+x1 x2"),
        (es.LSTM(D, H), "f g i o"),
    ],
)
def test_gates_of_a_class_have_the_names_of_its_equation(cell: es.Cell, names: str) -> None:
    assert gates(cell) == names.split()


def test_gates_of_each_name_have_the_values_of_their_equation() -> None:
    torch.manual_seed(0)
    cell = es.SLSTM(D, H, heads=2).double()
    xs = torch.randn(1, 9, D, dtype=torch.float64)
    (found,) = activities(cell, xs)
    h = torch.cat([torch.zeros(1, H, dtype=torch.float64), cell(xs)[0][0, :-1]])
    z, o = (slice(k * H, (k + 1) * H) for k in (0, 3))
    again = torch.cat([h[:, k * 4 : k * 4 + 4] @ cell.weight_hh[k].T for k in range(2)], -1)
    again = again.view(9, 2, 4, 4).transpose(1, 2).reshape(9, 4 * H)  # head, gate, unit -> gate, head, unit
    sums = xs[0] @ cell.weight_ih.T + cell.bias + again
    torch.testing.assert_close(found.gates["o"], sigmoid(sums[:, o]).detach())
    torch.testing.assert_close(found.candidates["z"], tanh(sums[:, z]).detach())


def test_parameters_are_named_with_the_block_that_acts() -> None:
    lines = {" ".join(item.lines[::2]) for item in diagram(es.SLSTM(D, H, heads=2)).items.values()}
    assert {"weight_ih [f] + bias [f]", "weight_hh[1] [f]", "weight_hh[0] [o]"} <= lines
    lines = {item.lines[0] for item in diagram(es.LayerNormGRU(D, H)).items.values()}
    assert {"weight_ih [r, z]", "[r]", "[z]"} <= lines
    lines = {line for item in diagram(es.MLSTM(D, H, heads=2)).items.values() for line in item.lines}
    assert {"weight_ih [q]", "weight_ih [i]", "+ bias [f]"} <= lines
    lines = {line for item in diagram(es.CFN(D, H)).items.values() for line in item.lines}
    assert {"weight_hh [f]", "+ bias_hh [f]", "+ bias_ih [n]"} <= lines


@pytest.mark.parametrize(
    "cell", [es.SLSTM(64, 128), es.MLSTM(64, 128, heads=4), es.NASCell(64, 128), es.TauGRU(64, 128)]
)
def test_no_letters_of_a_graph_stand_on_a_node_that_is_not_theirs(cell: es.Cell) -> None:
    figure = _step(diagram(cell), "title")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    for text in axes.texts:
        extent = text.get_window_extent()
        assert figure.bbox.x0 <= extent.x0 <= extent.x1 <= figure.bbox.x1, text.get_text()
        if text.get_text().startswith("("):
            assert not [box for box in boxes if box.overlaps(extent)], text.get_text()
        for box in boxes:  # what is written in a node stays inside
            if box.contains(*extent.get_points().mean(0)):
                assert box.x0 <= extent.x0 <= extent.x1 <= box.x1, text.get_text()


class Unnamed(es.Cell):
    """A user's cell that declares nothing."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.gates, self.recurrent = nn.Linear(D, 3 * H), nn.Linear(H, 3 * H, bias=False)
        self.shift = nn.Parameter(torch.ones(H))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = (self.gates(x) + self.recurrent(state)).chunk(3, -1)
        h = sigmoid(a) * state + sigmoid(b + self.shift) * tanh(c)
        return h, h


def test_without_names_a_gate_is_called_by_its_parameters_and_its_place() -> None:
    assert gates(Unnamed()) == [f"gates+recurrent {k} of 3" for k in (1, 2, 3)]
    lines = {item.lines[0] for item in diagram(Unnamed()).items.values()}
    assert {"gates.weight [2 of 3]", "recurrent.weight [3 of 3]", "gates+recurrent 1 of 3 = σ"} <= lines


def test_rows_of_odd_sizes_are_numbered() -> None:
    cell = nn.Linear(3, 10)
    assert gate_name(cell, [ParameterRows("weight", 0, 4)]) == "weight 0:4"
    assert gate_name(cell, [ParameterRows("weight", 0, 5)]) == "weight 1 of 2"
    assert gate_name(cell, [ParameterRows("weight", 0, 10)]) == "weight"


def test_what_is_put_together_is_cut_where_it_was_joined() -> None:
    joined = [ParameterRows("a", 0, 4, at=0), ParameterRows("b", 2, 6, at=4), ParameterRows("c", 0, 8)]
    assert narrowed(joined, 8, 4, 8) == {ParameterRows("b", 2, 6), ParameterRows("c", 4, 8)}
    assert narrowed(joined, 8, 2, 6) == {
        ParameterRows("a", 2, 4, at=0),
        ParameterRows("b", 2, 4, at=2),
        ParameterRows("c", 2, 6),
    }
    assert narrowed(joined, 8, 0, 2) == {ParameterRows("a", 0, 2), ParameterRows("c", 0, 2)}
