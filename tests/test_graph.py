"""The drawn graph: what is in it, where it stands, and that it is valid SVG."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.cli.graphing import graph
from everstep.look import layout
from everstep.look.cell_graph import draw_graph
from everstep.look.diagram import Diagram, step_diagram
from everstep.tracing.refusals import Untraceable


def diagram(cell: es.Cell) -> Diagram:
    return step_diagram(cell, torch.zeros(1, cell.input_size))


def formula(found: Diagram, key: str) -> str:
    """A node written out with what goes into it."""
    item = found.items[key]
    before = sorted(formula(found, a) for a, b in found.edges if b == key)
    text = " ".join(item.lines)
    return f"{text}<{'; '.join(before)}>" if before else text


def outputs(found: Diagram) -> dict[str, str]:
    return {found.items[key].lines[0]: formula(found, key) for key in found.kind("output")}


X, H, C = r"$\mathit{x}_{t}$", r"$\mathit{h}_{t-1}$", r"$\mathit{c}_{t-1}$"


def gate(name: str, activation: str) -> str:
    products = (f"weight_hh [{name}] 4 × 4 + bias_hh [{name}]<{H}>; weight_ih [{name}] 4 × 3 + bias_ih [{name}]<{X}>",)
    return f"{name} = {activation}<+<{products[0]}>>"


def test_an_lstm_reads_as_in_a_textbook() -> None:
    found = diagram(es.LSTM(3, 4))
    c = f"+<∘<{gate('f', 'σ')}; {C}>" if gate("f", "σ") < C else f"+<∘<{C}; {gate('f', 'σ')}>"
    c = f"{c}; ∘<{gate('g', 'tanh')}; {gate('i', 'σ')}>>"
    h = f"∘<{gate('o', 'σ')}; tanh<{c}>>"
    y, c_t = r"$\mathit{y}_{t}$ = $\mathit{h}_{t}$", r"$\mathit{c}_{t}$"
    assert outputs(found) == {y: f"{y}<{h}>", c_t: f"{c_t}<{c}>"}
    assert {found.items[key].lines[0] for key in found.kind("gate")} == {"i = σ", "f = σ", "g = tanh", "o = σ"}
    assert len(found.kind("product", "pointwise", "gate")) == 8 + 4 + 4 + 5
    assert {found.items[key].shape for key in found.kind("input")} == {"(B, 3)", "(B, 4)"}
    back = {(found.items[a].lines[0], found.items[b].lines[0]) for a, b in found.delays}
    assert back == {(y, H), (c_t, C)}


class Blocks(es.PeepholeLSTM):
    gates = ("i", "f", "g", "o")


def test_blocks_that_are_cut_late_read_as_gates_too() -> None:
    found = diagram(Blocks(3, 4))
    names = {found.items[key].lines[0] for key in found.kind("gate")}
    assert names == {"i = σ", "f = σ", "g = tanh", "o = σ"}
    products = [found.items[key].lines for key in found.kind("product")]
    assert ("weight_ih [f]", "4 × 3", "+ bias_ih [f]") in products
    assert ("weight_hh [o]", "4 × 4") in products
    assert len(products) == 8


def test_scalars_are_written_where_they_act() -> None:
    labels = [item.lines[0] for item in diagram(es.Zoneout(es.GRU(3, 4), 0.25)).items.values()]
    assert "1 −" in labels
    assert "× 0.25" in labels
    assert "× 0.75" in labels


def test_every_cell_of_the_catalogue_has_a_graph() -> None:
    cells = [es.RNN(3, 4), es.GRUBefore(3, 4), es.LayerNormLSTM(3, 4), es.NASCell(3, 4), es.SLSTM(3, 4, heads=2)]
    cells += [es.MLSTM(3, 4, heads=2), es.RHN(3, 4), es.QRNN(3, 4), es.BRC(3, 4), es.MGU(3, 4), es.CoRNN(3, 4)]
    cells += [es.TimeSkip(es.RNN(3, 4), 3), es.Residual(es.RNN(4, 4)), es.Stack(es.RNN(3, 4), es.GRU(4, 5))]
    for cell in cells:
        found = diagram(cell)
        inputs, ends = found.kind("input"), found.kind("output")
        assert {b for _, b in found.delays} == set(inputs[1:]), type(cell).__name__
        reached = set(ends)
        for a, b in reversed(found.edges):
            reached |= {a} if b in reached else set()
        for key, item in found.items.items():
            assert key in reached or item.kind == "input", f"{type(cell).__name__}: {item} leads nowhere"
        for key in found.kind("pointwise", "gate", "product", "output"):
            assert any(b == key for _, b in found.edges), (
                f"{type(cell).__name__}: {found.items[key]} comes from nothing"
            )


# --------------------------------------------------------------------------------------------------------------- layout

SIZES = {key: (1.0 + 0.1 * k, 0.5) for k, key in enumerate("abcdefg")}
EDGES = [("a", "c"), ("b", "c"), ("c", "d"), ("a", "e"), ("d", "f"), ("e", "f"), ("b", "g"), ("a", "f")]


def test_a_layout_goes_right_and_nothing_overlaps() -> None:
    found = layout.place(SIZES, EDGES, "ab", "fg")
    assert found == layout.place(SIZES, EDGES, "ab", "fg")
    for a, b in EDGES:
        assert found.centres[a][0] < found.centres[b][0]
    for k, (a, (x, y)) in enumerate(found.centres.items()):
        for b, (u, v) in list(found.centres.items())[k + 1 :]:
            apart = abs(x - u) >= (SIZES[a][0] + SIZES[b][0]) / 2 - 1e-3
            assert apart or abs(y - v) >= (SIZES[a][1] + SIZES[b][1]) / 2 - 1e-3
    assert len({round(found.centres[key][0], 2) for key in "fg"}) == 1
    for (a, b), curve in zip(EDGES, found.curves, strict=True):
        assert len(curve) % 3 == 1
        for key, point in ((a, curve[0]), (b, curve[-1])):
            (x, y), (width, height) = found.centres[key], SIZES[key]
            assert abs(point[0] - x) <= width / 2 + 0.1
            assert abs(point[1] - y) <= height / 2 + 0.1


def test_our_layout_crosses_no_node_and_no_line_that_it_need_not() -> None:
    sizes = dict.fromkeys("abcdef", (1.0, 0.5))
    crossed = [("a", "e"), ("b", "d"), ("c", "f"), ("a", "f")]
    found = layout.place(sizes, crossed, "abc", "def")
    order = [sorted(keys, key=lambda key: found.centres[key][1]) for keys in ("abc", "def")]
    crossings = sum(
        (order[0].index(a) - order[0].index(c)) * (order[1].index(b) - order[1].index(d)) < 0
        for k, (a, b) in enumerate(crossed)
        for c, d in crossed[k + 1 :]
    )
    assert crossings == 0
    found = layout.place(SIZES, EDGES, "ab", "fg")
    for edge, curve in zip(EDGES, found.curves, strict=True):
        for key, (x, y) in found.centres.items():
            if key not in edge:
                level = [(p, q) for p, q in pairwise(curve) if p[1] == q[1]]
                for (left, height), (right, _) in level:
                    inside = left < x + SIZES[key][0] / 2 and right > x - SIZES[key][0] / 2
                    assert not (inside and abs(height - y) < SIZES[key][1] / 2), (edge, key)


# ------------------------------------------------------------------------------------------------------------- pictures


def words(path: Path) -> list[str]:
    """The texts of an SVG, as they are read."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("}text")]


def test_the_svg_is_valid_says_what_it_shows_and_is_the_same_again(tmp_path: Path) -> None:
    cell = es.LSTM(64, 128)
    for name in "ab":
        draw_graph(cell, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    shown = words(tmp_path / "a.svg")
    for text in ("f = σ", "i = σ", "g = tanh", "o = σ", "weight_ih [f]", "128 × 64", "(B, 64)", "one step later"):
        assert text in shown
    assert shown.count("one step later") == 2
    assert any(text.startswith("One step of LSTM") for text in shown)


def test_a_stack_is_boxes_with_delays(tmp_path: Path) -> None:
    stack = es.Stack(es.LSTM(6, 8), es.Dropout(8, 0.5), es.Residual(es.GRU(8, 8)))
    draw_graph(stack, tmp_path / "stack.svg")
    shown = words(tmp_path / "stack.svg")
    assert [text for text in shown if text in ("LSTM", "Dropout", "Residual(GRU)")] == [
        "LSTM",
        "Dropout",
        "Residual(GRU)",
    ]
    assert shown.count("one step later") == 2
    for text in ("(B, 6)", "h (B, 8)", "c (B, 8)"):
        assert text in shown


def test_unfolded_there_is_a_copy_for_each_step(tmp_path: Path) -> None:
    draw_graph(es.Stack(es.LSTM(6, 8), es.GRU(8, 5)), tmp_path / "u.svg", unfolded=4)
    shown = [re.sub(r"\s+", "", text) for text in words(tmp_path / "u.svg")]
    assert shown.count("LSTM") == shown.count("GRU") == 4
    assert shown.count("(B,6)") == 4
    for step in range(1, 5):
        assert f"x{step}" in shown
        assert f"y{step}" in shown
    for step in range(5):  # the first comes in, the last goes out
        assert f"c{step}(B,8)" in shown
        assert f"h{step}(B,5)" in shown


class Steers(es.Cell):
    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return (x, x) if float(x.sum()) > 0 else (state, state)


def test_what_cannot_be_drawn_says_so(tmp_path: Path) -> None:
    with pytest.raises(Untraceable, match="its step decides by the value of a tensor"):
        draw_graph(Steers(3), tmp_path / "s.svg")
    draw_graph(Steers(3), tmp_path / "s.svg", unfolded=2)
    assert "Steers" in words(tmp_path / "s.svg")
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png, but got 'x.pdf'"):
        draw_graph(es.RNN(3, 4), tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="expected 2 to 12 steps, but got 1"):
        draw_graph(es.RNN(3, 4), tmp_path / "x.svg", unfolded=1)
    with pytest.raises(TypeError, match="Bidirectional is acausal"):
        draw_graph(es.Bidirectional(es.RNN(3, 4), es.RNN(3, 4)), tmp_path / "x.svg")


# --------------------------------------------------------------------------------------------------------- command line


def run(*arguments: str) -> tuple[int, str]:
    verbs = typer.Typer(cls=app.info.cls)
    verbs.command("graph")(graph)
    verbs.callback()(lambda: None)
    result = CliRunner().invoke(verbs, ["graph", *arguments])
    return result.exit_code, result.output


def test_the_verb(tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "gru.svg"
    assert run("GRU", "--sizes", "5,7", "--out", str(out)) == (0, f"{out}\n")
    assert "(B, 7)" in words(out)
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import everstep as es\nclass Steers(es.Cell):\n"
        "    def step(self, x, h):\n        return (x, x) if x.sum() > 0 else (h, h)\n"
    )
    code, said = run(f"{mine}:Steers", "--sizes", "3", "--out", str(out))
    assert code == 2
    assert "has no graph of operations: its step decides by the value of a tensor" in said
    assert run(f"{mine}:Steers", "--sizes", "3", "--out", str(out), "--unfolded", "3")[0] == 0
    for arguments, message in (
        (("lstm", "--out", "x.svg"), "graph: everstep has no 'lstm'; did you mean LSTM?"),
        (("Xyz", "--out", "x.svg"), "graph: everstep has no 'Xyz'\n"),
        (("runs/nowhere", "--out", "x.svg"), "runs/nowhere does not exist: expected the folder of a run"),
        (("LSTM", "--out", "x.svg", "--sizes", "0,4"), "LSTM(0, 4) fails: LSTM: input_size should be a whole number"),
        (("Bidirectional", "--out", "x.svg"), "Bidirectional(64, 128) fails"),
        (("LSTM", "--out", "x.pdf"), "ends in .svg or .png"),
        (("LSTM", "--out", "x.svg", "--unfolded", "99"), "expected 2 to 12"),
        (("Bidirectional", "--out", "x.svg", "--sizes", "a"), "--sizes should be whole numbers"),
        (("Categorical", "--out", "x.svg", "--sizes", "3,4"), "should be a cell, but is Categorical"),
    ):
        code, said = run(*arguments)
        assert code == 2
        assert message in said
