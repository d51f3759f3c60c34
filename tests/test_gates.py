"""Gates and units over a text, against gates computed by hand."""

from __future__ import annotations

import base64
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn import functional as F

import everstep as es
from everstep.errors import DataError
from everstep.look.gates import (
    Activity,
    activities,
    liveliest,
    pick,
    saturation,
    saturation_picture,
    scale_of,
    units_text,
)
from everstep.look.gates_page import gates_html
from everstep.look.over_passages import gate_pictures, unit_pictures
from everstep.look.over_passages.unit_pictures import read
from everstep.runs.pictures import draw_over

D, H, T = 3, 4, 11


def inputs(size: int = D, steps: int = T) -> Tensor:
    return torch.randn(1, steps, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def before(cell: es.Cell, xs: Tensor) -> tuple[Tensor, Any]:
    """x_t of every step as rows, and the state before each, by stepping."""
    state = cell.initial_state(1, xs)
    states = []
    for x in xs.unbind(1):
        states.append(state)
        _, state = cell.step(x, state)
    return xs[0], states


def rows(cell: Any, xs: Tensor, state: Tensor) -> Tensor:
    """W x + b + U h + c, in the blocks of the parameters."""
    return F.linear(xs, cell.weight_ih, cell.bias_ih) + F.linear(state, cell.weight_hh, getattr(cell, "bias_hh", None))


def equal(found: Activity, by_hand: dict[str, Tensor]) -> None:
    for name, value in by_hand.items():
        torch.testing.assert_close(found.parts[name], value.detach(), rtol=1e-12, atol=1e-12)


@es.gated("u k w", state="m")
def Mine(x, h, s):
    """A user's cell: another order, one gate of x alone, a hard sigmoid."""
    keep = F.hardsigmoid(h.k - 0.5 * x.k)
    return keep * s.m + sigmoid(x.u) * tanh(x.w + h.w)


def test_gates_of_an_lstm() -> None:
    cell = es.LSTM(D, H, dtype=torch.float64)
    (found,) = activities(cell, inputs())
    xs, states = before(cell, inputs())
    i, f, g, o = rows(cell, xs, torch.cat([s.h for s in states])).chunk(4, -1)
    assert (list(found.gates), list(found.candidates)) == (["f", "i", "o"], ["g"])
    equal(found, {"i": sigmoid(i), "f": sigmoid(f), "g": tanh(g), "o": sigmoid(o)})
    c = sigmoid(f) * torch.cat([s.c for s in states]) + sigmoid(i) * tanh(g)
    equal(found, {"c": c, "h": sigmoid(o) * tanh(c)})


def test_gates_of_both_grus() -> None:
    for kind in (es.GRU, es.GRUBefore):
        cell = kind(D, H, dtype=torch.float64)
        (found,) = activities(cell, inputs())
        xs, states = before(cell, inputs())
        h = torch.cat(states)
        x_r, x_z, x_n = F.linear(xs, cell.weight_ih, cell.bias_ih).chunk(3, -1)
        h_r, h_z, h_n = F.linear(h, cell.weight_hh, cell.bias_hh).chunk(3, -1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        if kind is es.GRUBefore:
            h_n = F.linear(r * h, cell.weight_hh[2 * H :], cell.bias_hh[2 * H :])
            n = tanh(x_n + h_n)
        else:
            n = tanh(x_n + r * h_n)
        assert (list(found.gates), list(found.candidates)) == (["r", "z"], ["n"])
        equal(found, {"r": r, "z": z, "n": n, "h": (1 - z) * n + z * h})


def test_gates_of_a_coupled_lstm() -> None:
    cell = es.CoupledLSTM(D, H, dtype=torch.float64)
    (found,) = activities(cell, inputs())
    xs, states = before(cell, inputs())
    f, g, o = rows(cell, xs, torch.cat([s.h for s in states])).chunk(3, -1)
    assert (sorted(found.gates), sorted(found.candidates)) == (["f", "o"], ["g"])
    equal(found, {"f": sigmoid(f), "g": tanh(g), "o": sigmoid(o)})


class UnnamedPeepholes(es.PeepholeLSTM):
    gates, blocks = (), {}


def test_gates_of_a_cell_with_peepholes() -> None:
    cell = es.PeepholeLSTM(D, H, dtype=torch.float64)
    unnamed = UnnamedPeepholes(D, H, dtype=torch.float64)
    unnamed.load_state_dict(cell.state_dict())
    xs, states = before(cell, inputs())
    i, f, g, o = rows(cell, xs, torch.cat([s.h for s in states])).chunk(4, -1)
    p_i, p_f, p_o = cell.peephole.chunk(3)
    c = torch.cat([s.c for s in states])
    i, f, g = sigmoid(i + p_i * c), sigmoid(f + p_f * c), tanh(g)
    o = sigmoid(o + p_o * (f * c + i * g))
    (found,) = activities(cell, inputs())
    assert (sorted(found.gates), sorted(found.candidates)) == (["f", "i", "o"], ["g"])
    equal(found, {"i": i, "f": f, "g": g, "o": o})
    (found,) = activities(unnamed, inputs())  # where no names are declared, the rows are the names
    equal(found, {f"hh+ih {k} of 4": value for k, value in enumerate((i, f, g, o), 1)})


def test_gates_of_a_users_equation() -> None:
    cell = Mine(D, H, dtype=torch.float64)
    (found,) = activities(cell, inputs())
    xs, states = before(cell, inputs())
    x_u, x_k, x_w = F.linear(xs, cell.weight_ih, cell.bias_ih).chunk(3, -1)
    h_k, h_w = F.linear(torch.cat(states), cell.weight_hh, cell.bias_hh).chunk(2, -1)
    assert (sorted(found.gates), list(found.candidates)) == (["k", "u"], ["w"])
    equal(found, {"k": F.hardsigmoid(h_k - 0.5 * x_k), "u": sigmoid(x_u), "w": tanh(x_w + h_w)})


class Plain(es.Cell):
    """A class with a step, whose gate is a module."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.keep, self.new = nn.Linear(D + H, H), nn.Linear(D, H)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        keep = sigmoid(self.keep(torch.cat([x, state], -1)))
        h = keep * state + (1 - keep) * self.new(x)
        return h, h


def test_gates_of_a_class_are_named_by_their_modules() -> None:
    cell = Plain().double()
    (found,) = activities(cell, inputs())
    xs, states = before(cell, inputs())
    assert (list(found.gates), list(found.candidates)) == (["keep"], [])
    equal(found, {"keep": sigmoid(cell.keep(torch.cat([xs, torch.cat(states)], -1)))})


def test_more_steps_than_a_trace_has_rows() -> None:
    cell = es.GRU(D, H, dtype=torch.float64)
    (long,) = activities(cell, inputs(steps=1100))
    (short,) = activities(cell, inputs(steps=1100)[:, :20])
    assert long.gates["z"].shape == (1100, H)
    equal(long, {"h": cell(inputs(steps=1100))[0][0]})
    torch.testing.assert_close(long.gates["z"][:20], short.gates["z"])


def test_layers_within_wirings() -> None:
    lstm, gru, rnn = (kind(D, D, dtype=torch.float64) for kind in (es.LSTM, es.GRU, es.RNN))
    cell = es.Stack(es.VariationalDropout(lstm, 0.5), es.Residual(gru), es.Dropout(D, 0.5), es.Zoneout(rnn, 0.2))
    found = activities(cell.train(), inputs())
    assert [activity.name for activity in found] == ["layer 1 LSTM", "layer 2 GRU", "layer 3 RNN"]
    assert cell.training
    assert cell.layers[0].training
    below = lstm(inputs())[0]
    equal(found[0], activities(lstm, inputs())[0].parts)
    equal(found[1], activities(gru, below)[0].parts)
    zoned, _ = es.Zoneout(rnn, 0.2).eval()(below + gru(below)[0])
    equal(found[2], {"h": zoned[0]})


def test_both_directions_and_one_cell_twice() -> None:
    ahead, back = (es.LSTM(D, H, dtype=torch.float64) for _ in range(2))
    found = activities(es.Bidirectional(ahead, back), inputs())
    assert [activity.name for activity in found] == ["LSTM", "LSTM, right to left"]
    pairs = [es.Bidirectional(es.LSTM(size, H), es.LSTM(size, H)) for size in (D, 2 * H)]
    called = [activity.name for activity in activities(es.EncoderStack(*pairs), inputs().float())]
    assert called == [f"layer {number} LSTM{turned}" for number in (1, 2) for turned in ("", ", right to left")]
    turned = activities(back, inputs().flip(1))[0]
    equal(found[1], {name: value.flip(0) for name, value in turned.parts.items()})
    twice = es.GRU(D, D, dtype=torch.float64)
    lower, upper = activities(es.Stack(twice, twice), inputs())
    equal(lower, activities(twice, inputs())[0].parts)
    equal(upper, activities(twice, twice(inputs())[0])[0].parts)


def test_a_matrix_memory_and_a_state_to_start_from() -> None:
    (found,) = activities(es.MLSTM(D, H, heads=2), inputs().float())
    assert found.state["C"].shape == (T, 2 * 2 * 2)
    cell = es.LSTM(D, H, dtype=torch.float64)
    xs = inputs()
    _, state = cell(xs[:, :5])
    whole, rest = activities(cell, xs)[0], activities(cell, xs[:, 5:], state)[0]
    equal(rest, {name: value[5:] for name, value in whole.parts.items()})


class Steers(es.Cell):
    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state + x if float(x.sum()) > 0 else state
        return state, state


def test_what_has_no_gates_says_so() -> None:
    (found,) = activities(es.RNN(D, H), inputs().float())
    with pytest.raises(ValueError, match=r"RNN has no gates: .*Look at its state \(h\) or at a, or take a gated cell"):
        saturation(found)
    with pytest.raises(ValueError, match="RNN has no gates"):
        saturation_picture([found], Path("never.png"))
    (found,) = activities(Steers(D), inputs())
    equal(found, {"h": Steers(D)(inputs())[0][0]})
    with pytest.raises(ValueError, match=r"Steers has no gates that are known: .*value.*Look at its state \(h\)"):
        saturation(found)


def test_wrong_asks() -> None:
    found = activities(es.Stack(es.LSTM(D, H), es.GRU(H, H)), inputs().float())
    with pytest.raises(ValueError, match=r"layer 3 was asked for, .* are 1 \(layer 1 LSTM\), 2 \(layer 2 GRU\)"):
        pick(found, 3)
    with pytest.raises(ValueError, match=r"layer 1 LSTM: no gate or state 'z'; there are h, c, f, i, o, g"):
        pick(found, 1).unit("z", 0)
    with pytest.raises(ValueError, match=r"f has units 0 … 3, but 4 was asked for"):
        pick(found, 1).unit("f", 4)
    with pytest.raises(ValueError, match="expected a token for each of the 11 steps, but got 3"):
        units_text("abc", found[0], [("c", 0)], Path("never.png"))
    with pytest.raises(ValueError, match="all gates, or all none"):
        units_text("a" * T, found[0], [("c", 0), ("f", 0)], Path("never.png"))
    with pytest.raises(ValueError, match="expected one sequence"):
        activities(es.GRU(D, H), inputs().float().expand(2, -1, -1))
    with pytest.raises(ValueError, match="Identity has no state"):
        activities(es.Identity(D), inputs().float())
    with pytest.raises(ValueError, match="at most 4000 tokens, but got 4001"):
        gates_html("a" * 4001, found, Path("never.html"))


# ------------------------------------------------------------------------------------------------------------- pictures


def test_saturation_counts_the_steps() -> None:
    gate = torch.tensor([[0.05, 0.95, 0.5], [0.05, 0.95, 0.95], [0.5, 0.95, 0.05], [0.95, 0.1, 0.9]])
    left, right = saturation(Activity("mine", {"f": gate}, {}, {}))["f"]
    assert left.tolist() == [0.5, 0.0, 0.25]
    assert right.tolist() == [0.25, 0.75, 0.25]


def test_the_liveliest_units() -> None:
    assert liveliest(torch.tensor([[0.0, 1.0, 5.0], [0.0, 2.0, -5.0]]), 2) == [2, 1]


def test_colours_reach_as_far_as_the_values() -> None:
    for top, limit in ((0.0, 1.0), (0.4, 1.0), (1.0, 1.0), (1.2, 2.0), (14.0, 20.0), (0.03, 0.05), (50.0, 50.0)):
        scale, _ = scale_of(torch.full((10, 2), -top), gate=False)
        assert (scale.vmin, scale.vmax) == (-limit, limit)
    scale, _ = scale_of(torch.full((10, 2), 0.01), gate=True)
    assert (scale.vmin, scale.vmax) == (0, 1)


TEXT = "To be, or\nnot <b>"


def test_pictures_are_drawn_and_the_same_again(tmp_path: Path) -> None:
    found = activities(es.Stack(es.LSTM(D, H), es.GRU(H, H)), inputs(steps=len(TEXT)).float())
    for name in ("a", "b"):
        units_text(TEXT, found[0], [("c", 1), ("c", 3)], tmp_path / f"{name}-c.png")
        units_text(TEXT, found[0], [("f", 1)], tmp_path / f"{name}-f.png")
        saturation_picture(found, tmp_path / f"{name}-s.png")
        gates_html(TEXT, found, tmp_path / f"{name}-p.html")
    for what in ("c.png", "f.png", "s.png", "p.html"):
        assert (tmp_path / f"a-{what}").read_bytes() == (tmp_path / f"b-{what}").read_bytes()
    assert (tmp_path / "a-c.png").read_bytes() != (tmp_path / "a-f.png").read_bytes()
    image = plt.imread(tmp_path / "a-s.png")
    assert image.shape[1] == 1200


def test_the_page_holds_the_text_and_every_value(tmp_path: Path) -> None:
    found = activities(es.LSTM(D, H), inputs(steps=len(TEXT)).float())
    gates_html(TEXT, found, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "http" not in page
    spans = page.partition('<pre id="text">')[2].partition("</pre>")[0]
    assert unescape(re.sub(r"</?span>", "", spans)).replace("↵", "") == TEXT
    assert spans.count("<span>") == len(TEXT)
    found_data = re.search(r"const data = (\[.*\]);", page)
    assert found_data is not None
    data = {part["name"]: part for part in json.loads(found_data[1])}
    assert list(data) == ["LSTM, h", "LSTM, c", "LSTM, gate f", "LSTM, gate i", "LSTM, gate o", "LSTM, g"]
    for name, values in (("LSTM, gate f", found[0].gates["f"]), ("LSTM, c", found[0].state["c"])):
        part = data[name]
        levels = torch.tensor(list(base64.b64decode(part["values"])), dtype=torch.float64).view(H, len(TEXT)).T
        read = part["low"] + (part["high"] - part["low"]) * levels / 255
        step = (part["high"] - part["low"]) / 255
        inside = values.double().clamp(part["low"], part["high"])
        torch.testing.assert_close(read, inside, rtol=0, atol=step / 2 + 1e-9)


def test_a_page_of_too_many_units_shows_those_that_vary_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.look.gates_page.VALUES", 12 * len(TEXT))
    (found,) = activities(es.LSTM(D, H), inputs(steps=len(TEXT)).float())
    gates_html(TEXT, [found], tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "The 2 of 4 units that vary most." in page
    assert json.dumps(sorted(liveliest(found.gates["f"], 2))) in page


# --------------------------------------------------------------------------------------------------- pictures of a run

SMALL = ("train.max_steps=1", "train.batch_size=4", "model.hidden_size=6", "model.layers=2", "model.embedding_size=4")


@pytest.fixture(scope="module")
def passage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_text("Où est la clé ?\nShe (he) says: “no”.\n" * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(passage: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("run") / "run"
    return es.train("text-bytes", out, overrides=[f"data.train={passage}", *SMALL, "model.cell=LSTM"])


def test_a_run_is_read_character_by_character(run: Any, passage: Path) -> None:
    text = passage.read_text(encoding="utf-8")[:200]
    given = run.task.passage(run.model, text, 200)
    tokens, found = read(given)
    assert text.startswith("".join(tokens))
    assert len(tokens) > 150
    assert [activity.name for activity in found] == ["layer 1 LSTM", "layer 2 LSTM"]
    tokenizer = run.task.tokenizer
    ids = [tokenizer.begin_id, *map(int, tokenizer.encode(text, line_end=False))]
    state, by_hand = run.model.initial_state(1), []
    for token in ids:
        _, state = run.model.step(torch.tensor([token]), state)
        by_hand.append([layer.c[0] for layer in state if hasattr(layer, "c")])
    # after its last byte ("Où" is three bytes); one token stands before the first
    for place, step in ((0, 1), (1, 3), (2, 4)):
        for layer in (0, 1):
            torch.testing.assert_close(found[layer].state["c"][place], by_hand[step][layer])


def test_pictures_of_a_run(run: Any, passage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CHARACTERS", 60), ("EXCERPT", 40)):
        monkeypatch.setattr(gate_pictures, name, value)
    for name, value in (("CHARACTERS", 400), ("SHOWN_CHARACTERS", 60)):
        monkeypatch.setattr(unit_pictures, name, value)
    text = passage.read_text(encoding="utf-8")
    drawn = [*draw_over(gate_pictures, run, tmp_path / "p", text), *draw_over(unit_pictures, run, tmp_path / "p", text)]
    assert [path.name for path, _ in drawn] == [
        *("units.png", "units.html", "gates.png", "saturation.png", "properties.md", "property.png", "property.html")
    ]
    assert all(path.stat().st_size > 500 for path, _ in drawn)
    table = (tmp_path / "p" / "properties.md").read_text(encoding="utf-8")
    assert "| inside quotes | layer " in table
    assert "| depth of brackets | layer " in table


def test_a_run_without_gates_or_text(run: Any, passage: Path, tmp_path: Path) -> None:
    plain = es.train("text-bytes", tmp_path / "rnn", overrides=[f"data.train={passage}", *SMALL, "model.cell=RNN"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_pictures, "EXCERPT", 20)
        patch.setattr(gate_pictures, "CHARACTERS", 40)
        assert [path.name for path, _ in draw_over(gate_pictures, plain, tmp_path / "p")] == ["units.png", "units.html"]
    with pytest.raises(DataError, match="empty"):
        draw_over(gate_pictures, run, tmp_path, "\n\n")

    class Silent:
        task = object()  # a job that shows no passages

    assert draw_over(unit_pictures, Silent(), tmp_path) == []  # type: ignore[arg-type]
