"""Published cells against the package torchrecurrent, and against the paper's formula where the two differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, sigmoid, tanh
from torch.func import functional_call

import everstep as es

theirs = pytest.importorskip(
    "torchrecurrent", reason="torchrecurrent is not installed: pip install torchrecurrent==0.2.5"
)

D, H, B, T = 3, 4, 3, 6
F64 = torch.float64
REFERENCE = {"backend": "reference"}  # the equation itself; that other backends equal it is a law
Weights = dict[str, Tensor]


class HardSigmoid(torch.nn.Module):
    """For theirs, whose own is PyTorch's, of slope 1/6: that of Theano, as in other code of the paper's time."""

    def forward(self, v: Tensor) -> Tensor:
        return (0.2 * v + 0.5).clamp(0, 1)


def same(p: Weights) -> Weights:
    return p


def stacked(p: Weights, extra: str, bias: bool = True) -> Weights:
    """The rows of one more of their recurrent matrices below ours; its bias 0 if they have none."""
    more = p[f"bias_{extra}"] if bias else p["bias_hh"].new_zeros(len(p[f"weight_{extra}"]))
    return {
        "weight_ih": p["weight_ih"],
        "bias_ih": p["bias_ih"],
        "weight_hh": torch.cat([p["weight_hh"], p[f"weight_{extra}"]]),
        "bias_hh": torch.cat([p["bias_hh"], more]),
    }


def one_bias(p: Weights, **renamed: str) -> Weights:
    """Their two biases as our one, and their names as ours."""
    new = {renamed.get(name, name): value for name, value in p.items() if not name.startswith("bias")}
    return {**new, "bias_ih": p["bias_ih"] + p["bias_hh"]}


def vectors(p: Weights, **renamed: str) -> Weights:
    return one_bias(p, weight_hh="vector_hh", vector_u="vector_hh", **renamed)


def bistable(p: Weights) -> Weights:
    bias = p["bias_ih"] + torch.cat([p["bias_hh"], p["bias_hh"].new_zeros(H)])
    return {"weight_ih": p["weight_ih"], "vector_hh": p["weight_hh"], "bias_ih": bias}


def gated_antisymmetric(p: Weights) -> Weights:
    bias = p["bias_ih"] + torch.cat([p["bias_hh"].new_zeros(H), p["bias_hh"]])
    return {"weight_ih": p["weight_ih"], "weight_hh": p["weight_hh"], "bias_ih": bias}


def fast_gated(p: Weights) -> Weights:
    bias_z, bias_n = (p["bias_ih"] + p["bias_hh"]).chunk(2)
    return {**{n: p[n] for n in ("weight_ih", "weight_hh", "zeta", "nu")}, "bias_z": bias_z, "bias_n": bias_n}


def without_beta(p: Weights) -> Weights:
    return {name: value for name, value in p.items() if name != "beta"}


def content_without_bias(p: Weights) -> Weights:
    return {**p, "bias_ih": torch.cat([p["bias_ih"].new_zeros(H), p["bias_ih"]])}


def delayed(p: Weights) -> Weights:
    def reorder(value: Tensor) -> Tensor:
        u, z, g, a = value.chunk(4)
        return torch.cat([u, g, a, z])

    return {name: reorder(value) for name, value in one_bias(p).items()}


def previous(p: Weights) -> Weights:
    return one_bias(p, weight_hh="weight_previous")


EQUAL: dict[str, tuple[Callable[[], es.Cell], dict[str, Any], Callable[[Weights], Weights]]] = {
    "ATR": (lambda: es.ATR(D, H), {}, same),
    "AntisymmetricRNN": (
        lambda: es.AntisymmetricRNN(D, H, step_size=0.3, diffusion=0.2),
        {"epsilon": 0.3, "gamma": 0.2},
        one_bias,
    ),
    "BR": (lambda: es.BRC(D, H), {}, bistable),
    "CFN": (lambda: es.CFN(D, H), {}, same),
    "DSGU": (
        lambda: es.DSGU(D, H),
        {"gate_nonlinearity": HardSigmoid()},
        lambda p: stacked(p, "ho", bias=False),
    ),
    "FastGRNN": (lambda: es.FastGRNN(D, H), {"nonlinearity": "sigmoid"}, fast_gated),
    "FastRNN": (lambda: es.FastRNN(D, H), {}, one_bias),
    "GatedAntisymmetricRNN": (
        lambda: es.GatedAntisymmetricRNN(D, H, step_size=0.3, diffusion=0.2),
        {"epsilon": 0.3, "gamma": 0.2},
        gated_antisymmetric,
    ),
    "IndRNN": (lambda: es.IndRNN(D, H), {"nonlinearity": "relu"}, vectors),
    "IntersectionRNN": (lambda: es.IntersectionRNN(H), {}, one_bias),
    "JANET": (lambda: es.JANET(D, H, beta=0.7), {"beta": 0.7}, without_beta),
    "LiGRU": (lambda: es.LiGRU(D, H), {}, same),
    "LightRU": (lambda: es.LightRU(D, H), {}, same),
    "MCLSTM": (lambda: es.MCLSTM(D, H), {}, one_bias),
    "MGU": (lambda: es.MGU(D, H), {}, same),
    "MUT1": (lambda: es.MUT1(D, H), {}, same),
    "MUT2": (lambda: es.MUT2(D, H), {}, same),
    "MUT3": (lambda: es.MUT3(D, H), {}, same),
    "MiRU1": (lambda: es.MiRU1(D, H, keep=0.8), {"update_coefficient": 0.8}, same),
    "MiRU2": (
        lambda: es.MiRU2(D, H, keep=0.8, reset=0.3),
        {"update_coefficient": 0.8, "reset_coefficient": 0.3},
        same,
    ),
    "MinimalRNN": (lambda: es.MinimalRNN(D, H), {}, lambda p: stacked(p, "mm", bias=False)),
    "MultiplicativeLSTM": (lambda: es.MultiplicativeLSTM(D, H), {}, lambda p: stacked(p, "mh")),
    "NBR": (lambda: es.NBRC(D, H), {}, same),
    "OriginalLSTM": (lambda: es.NoForgetLSTM(D, H), {}, same),
    "PeepholeLSTM": (lambda: es.PeepholeLSTM(D, H), {}, lambda p: one_bias(p, weight_ph="peephole")),
    "RAN": (lambda: es.RAN(D, H), {}, content_without_bias),
    "ResLSTM": (
        lambda: es.ResLSTM(D, H),
        {},
        lambda p: one_bias(p, weight_ph="peephole", weight_proj="weight_ho", weight_res="weight_io"),
    ),
    "SGRN": (lambda: es.SGRN(D, H), {}, same),
    "SGU": (lambda: es.SGU(D, H), {"gate_nonlinearity": HardSigmoid()}, same),
    "STAR": (lambda: es.STAR(D, H), {}, same),
    "TGRU": (lambda: es.TGRU(D, H), {}, previous),
    "TLSTM": (lambda: es.TLSTM(D, H), {}, previous),
    "TRNN": (lambda: es.TRNN(D, H), {}, same),
    "UGRNN": (lambda: es.UGRNN(D, H), {}, same),
    "UnICORNN": (
        lambda: es.UnICORNN(D, H, dt=0.2, alpha=0.9),
        {"dt": 0.2, "alpha": 0.9, "recurrent_bias": True},
        lambda p: vectors(p, weight_ch="rate"),
    ),
    "WMCLSTM": (lambda: es.WMCLSTM(D, H), {}, lambda p: stacked(p, "mh")),
    "coRNN": (
        lambda: es.CoRNN(D, H, dt=0.2, gamma=1.3, epsilon=0.7),
        {"dt": 0.2, "gamma": 1.3, "epsilon": 0.7},
        lambda p: stacked(p, "ch"),
    ),
    "tauGRU": (lambda: es.TauGRU(D, H, delay=2), {"delay": 2}, delayed),
}
DIFFERENT = {"LEM", "NAS", "SCRN"}
"""Where theirs departs from the authors' code; the tests below name the file."""


def their_layer(name: str, size: int = D, **options: Any) -> tuple[torch.nn.Module, Weights]:
    """One of their layers with every parameter drawn afresh, and its parameters by their names."""
    layer = getattr(theirs, name)(size, H, batch_first=True, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.8, 0.8)
        for key, value in options.items():  # scalars that are learned there, and constants here
            if isinstance(getattr(layer.cells[0], key, None), torch.nn.Parameter):
                getattr(layer.cells[0], key).fill_(value)
    return layer, {n.removeprefix("cells.0."): p for n, p in layer.named_parameters()}


@pytest.mark.parametrize("name", EQUAL)
def test_outputs_and_gradients_equal(name: str) -> None:
    make, options, ours = EQUAL[name]
    cell = make().double()
    layer, weights = their_layer(name, cell.input_size, **options)
    xs = torch.randn(B, T, cell.input_size, dtype=F64, requires_grad=True)
    assert {n: p.shape for n, p in cell.named_parameters()} == {n: p.shape for n, p in ours(weights).items()}
    ys, _ = functional_call(cell, ours(weights), (xs,), REFERENCE)
    want, _ = layer(xs)
    torch.testing.assert_close(ys, want, rtol=0, atol=1e-10)
    scale = torch.linspace(-1, 1, ys.numel(), dtype=F64).view_as(ys)
    named = {"xs": xs, **{n: p for n, p in weights.items() if name != "JANET" or n != "beta"}}
    got, expected = (torch.autograd.grad((scale * out).sum(), list(named.values())) for out in (ys, want))
    for which, a, b in zip(named, got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=lambda m, n=which: f"{n}: {m}")


def test_every_cell_of_theirs_is_here() -> None:
    assert {n for n in theirs.__all__ if f"{n}Cell" in theirs.__all__} == EQUAL.keys() | DIFFERENT


def loop(step: Callable[..., tuple[Tensor, ...]], xs: Tensor, states: int = 2) -> Tensor:
    """A formula as the paper writes it, run from zeros; the first state is the output."""
    state: tuple[Tensor, ...] = (xs.new_zeros(B, H),) * states
    ys = []
    for x in xs.unbind(1):
        state = step(x, *state)
        ys.append(state[0])
    return torch.stack(ys, 1)


def equals_the_paper_not_theirs(ys: Tensor, paper: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(ys, paper, rtol=0, atol=1e-10)
    assert (ys - other).abs().max() > 1e-3


def test_lem_reads_the_new_z() -> None:
    """tk-rusch/LEM, src/adding/network.py."""
    layer, p = their_layer("LEM", dt=0.7)
    xs = torch.randn(B, T, D, dtype=F64)
    v1, v2, vz, vy = p["weight_ih"].chunk(4)
    b1, b2, bz, by = p["bias_ih"].chunk(4)
    w1, w2, wz = p["weight_hh"].chunk(3)
    c1, c2, cz = p["bias_hh"].chunk(3)

    def step(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        slow = 0.7 * sigmoid(x @ v1.T + b1 + y @ w1.T + c1)
        fast = 0.7 * sigmoid(x @ v2.T + b2 + y @ w2.T + c2)
        z = (1 - fast) * z + fast * tanh(x @ vz.T + bz + y @ wz.T + cz)
        y = (1 - slow) * y + slow * tanh(x @ vy.T + by + z @ p["weight_ch"].T + p["bias_ch"])
        return y, z

    ys, _ = functional_call(es.LEM(D, H, dt=0.7).double(), stacked(p, "ch"), (xs,), REFERENCE)
    equals_the_paper_not_theirs(ys, loop(step, xs), layer(xs)[0])


def test_nas_multiplies_in_its_fourth_branch() -> None:
    """tensorflow/contrib/rnn/python/ops/rnn_cell.py and tensorflow_addons/rnn/nas_cell.py."""
    layer, p = their_layer("NAS")
    xs = torch.randn(B, T, D, dtype=F64)

    def step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        u = (x @ p["weight_ih"].T + p["bias_ih"]).chunk(8, -1)
        v = (h @ p["weight_hh"].T + p["bias_hh"]).chunk(8, -1)
        a = [u[k] * v[k] if k == 3 else u[k] + v[k] for k in range(8)]
        first = tanh(sigmoid(a[0]) * torch.relu(a[1]))
        second = tanh(sigmoid(a[2]) + torch.relu(a[3]))
        third = tanh(tanh(a[4]) * sigmoid(a[5]))
        fourth = sigmoid(tanh(a[6]) + sigmoid(a[7]))
        c = tanh(first + c) * second
        return tanh(c * tanh(third + fourth)), c

    ys, _ = functional_call(es.NASCell(D, H).double(), p, (xs,), REFERENCE)
    equals_the_paper_not_theirs(ys, loop(step, xs), layer(xs)[0])


def test_scrn_feeds_its_hidden_layer_back() -> None:
    """facebookarchive/SCRNNs, mfactory.lua: the comment, whose P s_t is the paper's; below it stands P s_{t-1}."""
    layer, p = their_layer("SCRN", alpha=0.9)
    xs = torch.randn(B, T, D, dtype=F64)
    b, a = p["weight_ih"].chunk(2)
    r, u = p["weight_hh"].chunk(2)
    q, v = p["weight_ch"].chunk(2)
    with torch.no_grad():
        for name in ("bias_ih", "bias_hh", "bias_ch"):  # the paper has none
            p[name].zero_()

    def step(x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = 0.1 * x @ b.T + 0.9 * s
        return sigmoid(s @ q.T + x @ a.T + h @ r.T), s

    values = {"weight_ih": torch.cat([b, a]), "weight_hh": torch.cat([q, r], 1)}
    ys, (h, s) = functional_call(es.SCRN(D, H, alpha=0.9).double(), values, (xs,), REFERENCE)
    assert torch.equal(ys[:, -1], torch.cat([h, s], -1))
    out = tanh(ys @ torch.cat([u, v], 1).T)
    torch.testing.assert_close(out[:, :1], layer(xs)[0][:, :1], rtol=0, atol=1e-10)  # the first step agrees
    equals_the_paper_not_theirs(ys[..., :H], loop(step, xs), layer(xs)[0])


def test_fastgrnn_has_a_sigmoid_for_its_gate() -> None:
    """microsoft/EdgeML, pytorch/edgeml_pytorch/graph/rnn.py; the starts of its scalars are from there too."""
    cell = es.FastGRNN(D, H)
    assert (cell.zeta.item(), cell.nu.item()) == (1, -4)
    assert (es.FastRNN(D, H).alpha.item(), es.FastRNN(D, H).beta.item()) == (-3, 3)
    layer, p = their_layer("FastGRNN")
    xs = torch.randn(B, T, D, dtype=F64)
    ys, _ = functional_call(es.FastGRNN(D, H).double(), fast_gated(p), (xs,), REFERENCE)
    assert (ys - layer(xs)[0]).abs().max() > 1e-3
    ys, _ = functional_call(es.FastGRNN(D, H, gate=tanh).double(), fast_gated(p), (xs,), REFERENCE)
    torch.testing.assert_close(ys, layer(xs)[0], rtol=0, atol=1e-10)


def test_the_hard_sigmoid_of_sgu_has_slope_one_fifth() -> None:
    v = torch.linspace(-4, 4, 9, dtype=F64)
    want = torch.tensor([0, 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1, 1], dtype=F64)
    for make, read in ((es.SGU, math.log(2)), (es.DSGU, 0.5)):  # softplus(0), σ(0)
        cell = make(1, 9).double()
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.zero_()
            cell.gate_rows(cell.bias_ih, "z", cell.input_gates).copy_(v)
        ys, _ = cell(torch.zeros(1, 1, 1, dtype=F64), backend="reference")
        torch.testing.assert_close(ys[0, 0], want * read, rtol=0, atol=1e-10)


@pytest.mark.parametrize("coupled", [True, False])
def test_recurrent_highway_follows_its_paper(coupled: bool) -> None:
    cell = es.RHN(D, H, depth=3, coupled=coupled).double()
    xs = torch.randn(B, T, D, dtype=F64)
    gates = 2 if coupled else 3
    w = cell.weight_ih.view(gates, H, D)
    r, b = cell.weight_hh.view(3, gates, H, H), cell.bias_hh.view(3, gates, H)

    def step(x: Tensor, s: Tensor) -> tuple[Tensor]:
        for layer in range(3):
            a = [(x @ w[k].T if layer == 0 else 0) + s @ r[layer, k].T + b[layer, k] for k in range(gates)]
            t = sigmoid(a[1])
            s = tanh(a[0]) * t + s * (1 - t if coupled else sigmoid(a[2]))
        return (s,)

    torch.testing.assert_close(cell(xs, backend="reference")[0], loop(step, xs, states=1), rtol=0, atol=1e-10)


def test_mut1_and_mut2_can_take_x_itself_as_in_the_paper() -> None:
    xs = torch.randn(B, T, H, dtype=F64)
    for make, gate in ((es.MUT1, "n"), (es.MUT2, "r")):
        cell = make(H, H).double()
        with torch.no_grad():
            cell.gate_rows(cell.weight_ih, gate, cell.input_gates).copy_(torch.eye(H))
            cell.gate_rows(cell.bias_ih, gate, cell.input_gates).zero_()

        def rows(kind: str, gate: str, v: Tensor, cell: es.Cell = cell) -> Tensor:
            gates = cell.input_gates if kind == "ih" else cell.hidden_gates
            weight, bias = (cell.gate_rows(getattr(cell, f"{n}_{kind}"), gate, gates) for n in ("weight", "bias"))
            return v @ weight.T + bias

        def first(x: Tensor, h: Tensor, rows: Any = rows) -> tuple[Tensor]:
            z, r = sigmoid(rows("ih", "z", x)), sigmoid(rows("ih", "r", x) + rows("hh", "r", h))
            return (tanh(rows("hh", "n", r * h) + tanh(x)) * z + h * (1 - z),)

        def second(x: Tensor, h: Tensor, rows: Any = rows) -> tuple[Tensor]:
            z, r = sigmoid(rows("ih", "z", x) + rows("hh", "z", h)), sigmoid(x + rows("hh", "r", h))
            return (tanh(rows("hh", "n", r * h) + rows("ih", "n", x)) * z + h * (1 - z),)

        paper = loop(first if make is es.MUT1 else second, xs, states=1)
        torch.testing.assert_close(cell(xs, backend="reference")[0], paper, rtol=0, atol=1e-10)
