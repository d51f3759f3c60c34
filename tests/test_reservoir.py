"""Reservoirs: the matrix, its radius, the recurrence, and the compiled loop."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor

import everstep as es
from everstep.native import build, kernels, toolchain
from everstep.state import leaves
from everstep.wirings.reservoir import loop, spectral_radius

F64 = torch.float64
compiled = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


def dense_loop(cell: es.Reservoir, xs: Tensor) -> Tensor:
    """The equation, with W as a dense matrix."""
    w, h, hs = cell.matrix(), xs.new_zeros(len(xs), cell.units), []
    for x in xs.unbind(1):
        fresh = torch.tanh(x @ cell.weight_ih.t() + cell.bias + h @ w.t())
        h = (1 - cell.leak) * h + cell.leak * fresh
        hs.append(h)
    return torch.stack(hs, 1)


def largest(matrix: Tensor) -> float:
    return float(np.abs(np.linalg.eigvals(matrix.double().numpy())).max())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("batch", [1, 2, 8, 17])
@pytest.mark.parametrize("units", [5, 16, 61])
def test_the_recurrence_is_the_equation(units: int, batch: int, backend: str) -> None:
    leak = torch.linspace(0.1, 1, units)
    cell = es.Reservoir(3, units, connections=4, leak=leak, bias_scaling=0.4, input_scaling=(1, 0.1, 2), dtype=F64)
    xs = torch.randn(batch, 12, 3, dtype=F64)
    ys, h = cell(xs, backend=backend)
    torch.testing.assert_close(ys, dense_loop(cell, xs), rtol=0, atol=1e-10)
    assert torch.equal(h, ys[:, -1])
    single = cell.float()
    torch.testing.assert_close(single(xs.float())[0], ys.float(), rtol=0, atol=1e-5)


@compiled
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("long_columns", [False, True])
@pytest.mark.parametrize("long_weights", [False, True])
def test_every_storage_of_the_matrix(dtype: torch.dtype, long_columns: bool, long_weights: bool) -> None:
    units = 70_000 if long_columns else 50
    places = np.random.default_rng(0).permutation(units)
    values = np.full(units, 0.3 if long_weights else 0.25)
    matrix = scipy.sparse.csr_array((values, places, np.arange(units + 1)), shape=(units, units))
    cell = es.Reservoir(2, units, matrix=matrix, radius=None, dtype=dtype)
    packed = loop._pack(cell)
    assert packed.columns.dtype == (torch.int32 if long_columns else torch.uint16)
    assert packed.weights.dtype == (dtype if long_weights else torch.bfloat16)
    for batch in (1, 3):
        xs = torch.randn(batch, 4, 2, dtype=dtype)
        want = cell(xs, backend="reference")[0]
        torch.testing.assert_close(cell(xs)[0], want, rtol=0, atol=1e-12 if dtype == F64 else 1e-6)


@compiled
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_compiled_loop_equals_the_reference(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    run = loop.run
    monkeypatch.setattr(loop, "run", lambda *a: ran.append(1) or run(*a))
    cell = es.Reservoir(3, 29, leak=0.4, bias_scaling=0.3, seed=2, dtype=dtype)
    for batch in (1, 2, 9):
        xs, state = torch.randn(batch, 15, 3, dtype=dtype), torch.randn(batch, 29, dtype=dtype)
        before = state.clone()
        how = {"lengths": torch.randint(0, 16, (batch,)), "resets": torch.rand(batch, 15) < 0.2}
        for chosen in ({}, {"lengths": how["lengths"]}, {"resets": how["resets"]}, how, {**how, "reverse": True}):
            got, want = (es.scan(cell, xs, state, backend=b, **chosen) for b in ("auto", "reference"))
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12 if dtype == F64 else 1e-5)
        assert torch.equal(state, before)
    assert len(ran) == 15


@compiled
def test_long_sequences_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_BLOCK", 1)  # sixteen steps at a time
    cell, xs = es.Reservoir(2, 11, leak=0.4, bias_scaling=0.3, dtype=F64), torch.randn(3, 50, 2, dtype=F64)
    how = {"lengths": torch.tensor([50, 16, 33]), "resets": torch.rand(3, 50) < 0.1}
    for chosen in ({}, how):
        for got, want in zip(cell(xs, **chosen), cell(xs, backend="reference", **chosen), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@compiled
@pytest.mark.parametrize("units", [3, 29, 64])
@pytest.mark.parametrize("batch", [1, 3, 9, 20])
def test_threads_change_nothing(units: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few rows they share units, with many they own rows; three are more than there are slices of 3 units."""
    monkeypatch.setattr(loop, "_WAIT", 0)
    cell = es.Reservoir(2, units, leak=0.4, bias_scaling=0.3, seed=3, dtype=F64)
    model = es.EchoState(es.Reservoir(3, units, leak=0.4, seed=4, dtype=F64), 2, feedback=True)
    torch.nn.init.normal_(model.readout.weight, std=0.1)
    how = {"lengths": torch.randint(0, 41, (batch,)), "resets": torch.rand(batch, 40) < 0.1}
    xs, found = torch.randn(batch, 40, 2, dtype=F64), []
    with torch.no_grad():
        for threads in (1, 2, 3):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert loop._share(batch, 40, cell.weights.numel()) == (
                (threads, True) if threads > -(-batch // 8) else (min(threads, -(-batch // 8)), False)
            )
            outs = [*cell(xs, **how), *cell(xs)]
            for given in ({}, how):
                ys, state = model(xs[:, :, :1], **given)
                outs += [ys, *(leaf for _, leaf in leaves(state))]
            found.append(outs)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@compiled
def test_gradients_are_those_of_the_dense_loop() -> None:
    cell = es.Reservoir(3, 20, leak=0.5, seed=0, dtype=F64)
    xs = torch.randn(2, 6, 3, dtype=F64, requires_grad=True)
    got, want = (torch.autograd.grad(f.square().sum(), xs)[0] for f in (cell(xs)[0], dense_loop(cell, xs)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert not list(cell.parameters())
    xs = xs.detach()
    cell.weight_ih.requires_grad_()
    got, want = (torch.autograd.grad(f.square().sum(), cell.weight_ih)[0] for f in (cell(xs)[0], dense_loop(cell, xs)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_no_compiler_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs = es.Reservoir(2, 30, seed=0, dtype=F64), torch.randn(2, 9, 2, dtype=F64)
    model = es.EchoState(cell, 2).fit(xs, xs, washout=2, ridge=0.1)
    want, free = cell(xs)[0], model.generate(5, xs)
    monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    monkeypatch.setattr(loop, "run", None)
    torch.testing.assert_close(cell(xs)[0], want, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.generate(5, xs), free, rtol=0, atol=1e-10)


@compiled
def test_a_compiler_that_fails_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*arguments: object) -> None:
        raise toolchain.BuildError("it broke")

    cell, xs = es.Reservoir(2, 30, seed=0), torch.randn(1, 3, 2)
    want = cell(xs)[0]
    monkeypatch.setattr(build, "load", fails)
    monkeypatch.setattr(toolchain, "_noticed", set())
    kernels._loops.cache_clear()
    try:
        torch.testing.assert_close(cell(xs)[0], want)
        cell(xs)
    finally:
        kernels._loops.cache_clear()
    told = ["reservoirs run without their compiled loop, slowly: it broke"]
    assert [text for text in caplog.messages if not text.startswith("Reservoir runs step by step")] == told


# ----------------------------------------------------------------------------------------------------------- the matrix


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(("units", "connections"), [(1, 1), (7, 3), (100, 10), (310, 5), (310, 50)])
def test_the_radius_is_reached(units: int, connections: int, dtype: torch.dtype) -> None:
    cell = es.Reservoir(1, units, radius=1.3, connections=connections, seed=units, dtype=dtype)
    assert largest(cell.matrix()) == pytest.approx(1.3, rel=1e-6)
    assert ((cell.matrix() != 0).sum(1) == min(connections, units)).all()


@pytest.mark.parametrize("seed", range(4))
def test_radius_by_iteration_is_that_of_all_eigenvalues(seed: int) -> None:
    matrix = es.Reservoir(1, 310, radius=None, connections=4, seed=seed, dtype=F64).matrix()
    assert spectral_radius(scipy.sparse.csr_array(matrix.numpy())) == pytest.approx(largest(matrix), rel=1e-8)


def test_where_iteration_fails_all_eigenvalues_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise scipy.sparse.linalg.ArpackNoConvergence("no", [], [])

    monkeypatch.setattr(scipy.sparse.linalg, "eigs", fails)
    matrix = np.diag(np.linspace(0.1, 0.7, 310))
    assert spectral_radius(matrix) == pytest.approx(0.7)


def test_radius_of_known_matrices() -> None:
    turn = np.array([[0.0, -2.0], [2.0, 0.0]])  # eigenvalues ± 2i
    assert spectral_radius(turn) == pytest.approx(2.0)
    assert spectral_radius(np.zeros((3, 3))) == 0
    assert spectral_radius(np.triu(np.ones((40, 40)), 1)) == 0  # nilpotent
    for wrong, message in ((np.ones((2, 3)), "square"), (np.array([[np.nan]]), "NaN")):
        with pytest.raises(ValueError, match=message):
            spectral_radius(wrong)


def test_the_same_seed_makes_the_same_numbers() -> None:
    first, again, other = (es.Reservoir(3, 40, seed=s, bias_scaling=1.0, dtype=F64) for s in (5, 5, 6))
    for (name, a), (_, b) in zip(first.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.weights, other.weights)
    # on every machine
    assert first.columns[0].tolist() == SEED_5_COLUMNS
    assert first.weights[0, :4].tolist() == SEED_5_WEIGHTS
    assert float(first.scale) == pytest.approx(SEED_5_SCALE, rel=1e-10)
    torch.manual_seed(3)
    a = es.Reservoir(3, 40)
    b = es.Reservoir(3, 40)
    torch.manual_seed(3)
    assert torch.equal(es.Reservoir(3, 40).weights, a.weights)
    assert not torch.equal(a.weights, b.weights)


SEED_5_COLUMNS = [0, 2, 10, 16, 18, 20, 23, 25, 27, 38]
SEED_5_WEIGHTS = [-0.8125, 0.87109375, -0.26953125, -0.6484375]
SEED_5_SCALE = 0.4968999685037194


def test_a_matrix_of_ones_own() -> None:
    w = np.array([[0.0, 0.5, 0.0], [0.0, 0.0, 0.3], [0.2, 0.7, 0.0]])
    for matrix in (w, scipy.sparse.csc_array(w)):
        cell = es.Reservoir(2, 3, matrix=matrix, radius=None, dtype=F64)
        torch.testing.assert_close(cell.matrix(), torch.from_numpy(w), rtol=0, atol=0)
    scaled = es.Reservoir(2, 3, matrix=w, radius=0.5, dtype=F64).matrix()
    assert largest(scaled) == pytest.approx(0.5)
    torch.testing.assert_close(scaled / scaled[0, 1], torch.from_numpy(w / w[0, 1]))


def test_no_connections_at_all() -> None:
    for radius in (None, 0.0):
        cell = es.Reservoir(2, 3, connections=0, radius=radius, bias_scaling=0.0, dtype=F64)
        xs = torch.randn(1, 4, 2, dtype=F64)
        torch.testing.assert_close(cell(xs)[0], torch.tanh(xs @ cell.weight_ih.t()), rtol=0, atol=1e-12)
        torch.testing.assert_close(cell(xs, backend="reference")[0], cell(xs)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connections": 0}, "spectral radius 0.9 cannot be reached: with connections=0 .zero density. W is zero"),
        ({"matrix": np.triu(np.ones((4, 4)), 1)}, "cannot be reached: W is nilpotent"),
        ({"matrix": np.ones((3, 4))}, r"4 × 4 .*shape \(3, 4\)"),
        ({"matrix": np.full((4, 4), np.inf)}, "NaN or infinity"),
        ({"matrix": np.full((4, 4), np.inf), "radius": None}, "NaN or infinity"),
        ({"connections": -1}, "connections should be a whole number"),
        ({"connections": 0.1}, "connections should be a whole number"),
        ({"radius": -0.5}, "radius should be a finite number"),
        ({"radius": float("nan")}, "radius should be a finite number"),
        ({"leak": 0.0}, r"leak should lie in \(0, 1\]"),
        ({"leak": 1.5}, r"leak should lie in \(0, 1\]"),
        ({"leak": [0.1, 0.2]}, "leak should be one number or 4, one a unit"),
        ({"input_scaling": [1.0, 2.0, 3.0]}, "input_scaling should be one number or 2, one an input"),
        ({"noise": -1.0}, "noise should be a finite number"),
        ({"bias_scaling": float("inf")}, "bias_scaling should be a finite number"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        es.Reservoir(2, 4, **options)


def test_inputs_of_another_dtype() -> None:
    with pytest.raises(TypeError, match=r"xs is torch.float64, but the buffers are torch.float32"):
        es.Reservoir(2, 4)(torch.zeros(1, 3, 2, dtype=F64))


# --------------------------------------------------------------------------------------------------------- what it does


@compiled
def test_changed_weights_are_seen() -> None:
    cell, xs = es.Reservoir(2, 20, seed=0, dtype=F64), torch.randn(1, 5, 2, dtype=F64)
    other, before = es.Reservoir(2, 20, seed=1, dtype=F64), cell(xs)[0]
    cell.load_state_dict(other.state_dict())
    assert torch.equal(cell(xs)[0], other(xs)[0])
    assert not torch.equal(cell(xs)[0], before)
    cell.weights.mul_(0.3)
    torch.testing.assert_close(cell(xs)[0], dense_loop(cell, xs), rtol=0, atol=1e-12)
    torch.testing.assert_close(cell.float()(xs.float())[0], dense_loop(cell, xs.float()), rtol=0, atol=1e-6)
    assert torch.equal(copy.deepcopy(cell)(xs.float())[0], cell(xs.float())[0])


def test_noise_is_of_training_and_of_the_sequence() -> None:
    cell = es.Reservoir(2, 200, noise=0.1, radius=0.0, bias_scaling=0.0, seed=0, dtype=F64)
    xs = torch.zeros(4, 30, 2, dtype=F64)
    torch.manual_seed(1)
    noisy = cell(xs)[0]
    assert 0.095 < torch.atanh(noisy).std() < 0.105
    torch.manual_seed(1)
    graph = cell(xs.clone().requires_grad_())[0]
    torch.testing.assert_close(graph.detach(), noisy, rtol=0, atol=1e-12)
    assert not cell.eval()(xs)[0].any()


def test_it_may_start_a_network_that_is_learned() -> None:
    cell, xs = es.Reservoir(3, 15, leak=torch.linspace(0.2, 1, 15), bias_scaling=0.5, dtype=F64), torch.randn(2, 8, 3)
    rnn = cell.to_rnn()
    torch.testing.assert_close(rnn(xs.double())[0], cell(xs.double())[0], rtol=0, atol=1e-10)
    rnn(xs.double())[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in rnn.parameters())


def test_side_by_side_and_deep() -> None:
    a, b = es.Reservoir(2, 10, leak=0.1, dtype=F64), es.Reservoir(2, 12, dtype=F64)
    xs = torch.randn(3, 7, 2, dtype=F64)
    ys, state = es.Parallel(a, b, es.Identity(2))(xs)
    assert torch.equal(ys, torch.cat([a(xs)[0], b(xs)[0], xs], -1))
    assert torch.equal(state[1], b(xs)[1])
    upper = es.Reservoir(12, 5, dtype=F64)
    deep = es.SkipStack(a, upper)(xs)[0]
    assert torch.equal(deep, torch.cat([a(xs)[0], upper(torch.cat([xs, a(xs)[0]], -1))[0]], -1))


def test_side_by_side_refuses() -> None:
    with pytest.raises(ValueError, match=r"cells of one input_size, but those of 2 cells are \[2, 3\]"):
        es.Parallel(es.RNN(2, 3), es.RNN(3, 3))
    with pytest.raises(ValueError, match="there is none"):
        es.Parallel()
    with pytest.raises(TypeError, match="Bidirectional is no Cell"):
        es.Parallel(es.Bidirectional(es.RNN(2, 3), es.RNN(2, 3)))


def test_explain_tells_of_its_own_loop() -> None:
    cell = es.Reservoir(3, 20, connections=5)
    told = str(es.explain(cell, torch.zeros(2, 7, 3)))
    own = "a compiled loop over 100 connections"
    assert (own in told) == (toolchain.compiler() is not None)
    assert "reference" in str(es.explain(cell.to(torch.bfloat16), torch.zeros(2, 7, 3, dtype=torch.bfloat16)))
