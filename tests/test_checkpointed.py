"""Back-propagation through time in little memory equals the plain one, and needs little memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import CELLS, D, H
from learn_toy import Toy, objective, pieces, run
from torch import Tensor, nn

import everstep as es
from everstep.data.batches import TokenBatch
from everstep.data.lanes import Lanes
from everstep.data.text.corpus import Corpus
from everstep.learn import checkpointed
from everstep.native import memory_pool
from everstep.networks.likelihood import likelihood
from everstep.networks.token_model import TokenModel, TokenModelSection
from everstep.state import detach, leaves, map_state

F64 = torch.float64
TIME = 30


def build(name: str) -> es.Cell:
    torch.manual_seed(3)
    return CELLS[name]().double()


def sequence(cell: es.Layer, time: int = TIME) -> dict[str, Any]:
    """Inputs, a carried state, ragged rows (one of them empty) and resets."""
    torch.manual_seed(4)
    xs = torch.randn(3, time, cell.input_size, dtype=F64)
    state = map_state(lambda leaf: (leaf + torch.randn_like(leaf) / 3).detach(), cell.initial_state(3, xs))
    return {
        "xs": xs,
        "state": state,
        "lengths": torch.tensor([time, 0, time // 2 + 1]),
        "resets": torch.rand(3, time) < 0.1,
    }


def everything(layer: es.Layer, given: dict[str, Any], backend: str = "auto", twice: bool = False) -> list[Tensor]:
    """Outputs, final state and every gradient; with `twice` also a gradient of the gradients."""
    xs = given["xs"].clone().requires_grad_()
    state = map_state(lambda leaf: leaf.clone().requires_grad_(), given["state"])
    ys, final = es.scan(layer, xs, state, lengths=given["lengths"], resets=given["resets"], backend=backend)
    outs = [ys, *(leaf for _, leaf in leaves(final))]
    total = sum((out.square() * torch.linspace(-1, 2, out.numel(), dtype=F64).view_as(out)).sum() for out in outs)
    wanted = [xs, *(leaf for _, leaf in leaves(state)), *layer.parameters()]
    how = {"allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad(total, wanted, create_graph=twice, **how)
    again = torch.autograd.grad(sum(g.square().sum() for g in grads), wanted, **how) if twice else ()
    return [value.detach() for value in (*outs, *grads, *again)]


def assert_equal(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(got, want, strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("every", [1, 7, TIME + 5, None])
@pytest.mark.parametrize("name", ["LSTM", "UserCell", "nested", "BatchNormLSTM", "Window QRNN", "ClockworkRNN"])
def test_gradients_are_those_of_plain_bptt(name: str, every: int | None) -> None:
    cell = build(name).train(name == "BatchNormLSTM")
    given = sequence(cell)
    for backend in ("auto", "reference"):
        assert_equal(everything(es.Checkpointed(cell, every), given, backend), everything(cell, given, backend), 1e-10)


def test_two_levels_and_second_derivatives() -> None:
    cell = build("Stack").eval()
    given = sequence(cell)
    want = everything(cell, given, "reference", twice=True)
    assert_equal(everything(es.Checkpointed(cell, 7), given, twice=True), want)
    assert_equal(everything(es.Checkpointed(es.Checkpointed(cell, 3), 10), given, twice=True), want)


class Watched(es.Cell):
    """Notes the bits of every run, outputs and final state, and whether gradients flow."""

    def __init__(self, cell: es.Cell):
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell
        self.runs: list[list[Tensor]] = []
        self.flows: list[bool] = []

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return self.cell.initial_state(batch, like)

    def unroll(self, xs: Any, state: Any, lengths: Any, resets: Any, backend: str) -> tuple[Tensor, Any]:
        ys, final = es.scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        self.flows.append(ys.requires_grad)
        self.runs.append([leaf.detach().clone() for _, leaf in leaves((ys, final))])
        return ys, final


@pytest.mark.instructions
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: es.LSTM(8, 300),  # another backend is faster without gradients
        lambda: es.GRU(8, 16),
        lambda: es.Stack(es.LSTM(8, 12), es.Dropout(12, 0.5), es.GRU(12, 12)),
        lambda: es.Zoneout(es.LSTM(8, 12), 0.3),
        lambda: es.RecurrentDropout(es.ActivationLSTM(8, 12), 0.3),
        lambda: es.BatchNormLSTM(8, 12, steps=5),
    ],
)
def test_recomputed_states_are_bit_for_bit(make: Callable[[], es.Cell], short: bool) -> None:
    torch.manual_seed(0)
    watched = Watched(make())
    xs = torch.randn(5, 40, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=short):
        ys, _ = es.Checkpointed(watched, 9)(xs, lengths=torch.tensor([40, 3, 0, 17, 40]))
    random, buffers = torch.get_rng_state(), [b.clone() for b in watched.buffers()]
    first = watched.runs
    watched.runs = []
    ys.float().square().sum().backward()
    assert len(first) == 5
    assert len(watched.runs) == 4  # all but the last, where backward starts
    for before, after in zip(first, reversed(watched.runs), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # running again leaves no trace
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, watched.buffers(), strict=True))


def test_backward_again_and_of_a_part() -> None:
    cell = es.Stack(es.LSTM(3, 6), es.Dropout(6, 0.5), es.GRU(6, 4)).double()
    xs = torch.randn(2, 30, 3, dtype=F64, requires_grad=True)
    torch.manual_seed(4)
    ys, _ = es.Checkpointed(cell, 7)(xs)
    wanted = [xs, *cell.parameters()]
    once = torch.autograd.grad(ys.square().sum(), wanted, retain_graph=True)
    assert_equal(list(torch.autograd.grad(ys.square().sum(), wanted, retain_graph=True)), list(once), 1e-14)
    # what comes after step 10 has no say, and nothing else is asked for
    (part,) = torch.autograd.grad(ys[:, :10].square().sum(), [xs])
    assert float(part[:, 10:].abs().max()) == 0 < float(part[:, :10].abs().min())


def test_what_is_frozen_costs_nothing() -> None:
    watched = Watched(es.GRU(3, 4).requires_grad_(False))
    model = es.Stack(watched, es.GRU(4, 2))
    es.Checkpointed(model, 5)(torch.zeros(1, 20, 3))[0].sum().backward()
    assert watched.flows == (4 + 3) * [False]
    ys, _ = es.Checkpointed(watched, 5)(torch.zeros(1, 20, 3))
    assert not ys.requires_grad


class Growing(es.Cell):
    """Against the contract: the state grows from call to call."""

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return like.new_zeros(batch, 1)

    def unroll(self, xs: Any, state: Any, lengths: Any, resets: Any, backend: str) -> tuple[Tensor, Any]:
        return xs * state.sum(), torch.cat([state, state], 1)


def test_a_state_of_changing_size_is_refused() -> None:
    xs = torch.zeros(2, 9, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"state leaf 'state' should have shape"):
        es.Checkpointed(Growing(3, 3), 3)(xs)


def test_masks_are_those_of_the_first_run() -> None:
    cell = es.Stack(es.LSTM(3, 6), es.Dropout(6, 0.5), es.Zoneout(es.GRU(6, 6), 0.3)).double()
    xs = torch.randn(4, 20, 3, dtype=F64)

    def by_hand() -> Tensor:
        state, ys = None, []
        for piece in xs.split(6, 1):
            y, state = cell(piece, state)
            ys.append(y)
        return torch.cat(ys, 1)

    found = []
    for run_ in (by_hand, lambda: es.Checkpointed(cell, 6)(xs)[0]):
        torch.manual_seed(5)
        ys = run_()
        torch.manual_seed(99)  # what is drawn before backward has no say
        found.append([ys.detach(), *torch.autograd.grad(ys.square().sum(), list(cell.parameters()))])
    assert_equal(found[1], found[0], 1e-12)


@pytest.mark.parametrize(
    "around",
    [
        lambda cell, names: es.WeightDrop(cell, 0.5, names),
        lambda cell, names: es.VariationalDropout(cell, 0.5),
    ],
)
def test_masks_of_a_sequence_go_around(around: Callable[..., es.Cell]) -> None:
    cell = build("LSTM")
    given = sequence(cell)
    found = []
    for layer in (around(cell, ["weight_hh"]), around(es.Checkpointed(cell, 7), ["cell.weight_hh"])):
        torch.manual_seed(6)
        found.append(everything(layer, given))
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("name", ["WeightDrop", "VariationalDropout", "RecurrentDropout", "StateDropout"])
def test_masks_of_a_sequence_inside_are_refused_in_training(name: str) -> None:
    inner: dict[str, es.Cell] = {
        "WeightDrop": es.WeightDrop(es.LSTM(D, H), 0.5),
        "VariationalDropout": es.VariationalDropout(es.GRU(D, H), 0.5),
        "RecurrentDropout": es.RecurrentDropout(es.GRU(D, H), 0.5, once=True),
        "StateDropout": es.StateDropout(es.GRU(D, H), 0.5),
    }
    cell = es.Checkpointed(es.Stack(inner[name], es.GRU(H, H)), 2)
    with pytest.raises(ValueError, match=rf"{name} inside draws one mask.*WeightDrop\(Checkpointed\(cell\)"):
        cell(torch.zeros(1, 4, D))
    assert cell.eval()(torch.zeros(1, 4, D))[0].shape == (1, 4, H)
    with pytest.raises(ValueError, match="draws one mask"):
        next(checkpointed(objective)(cell.train(), batch(), None))


def kept(run_: Callable[[], Tensor], *own: Tensor) -> tuple[int, int]:
    """Bytes that autograd keeps for the result of `run_`, besides the tensors `own`, and operations in its graph."""
    saved: list[weakref.ref[Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        held = tensor.detach()  # the tensor itself would hold the graph that holds it
        saved.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run_()
    alive = [tensor for ref in saved if (tensor := ref()) is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    for tensor in own:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    nodes, stack = set(), [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += [other for other, _ in node.next_functions]
    return sum(storages.values()), len(nodes)


def kept_by(layer: es.Layer, xs: Tensor, backend: str = "auto") -> tuple[int, int]:
    return kept(lambda: es.scan(layer, xs, backend=backend)[0], xs, *layer.parameters())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_is_kept_grows_with_the_root_of_time(backend: str) -> None:
    for cell, time in ((es.LSTM(3, 8), 100), (es.LSTM(3, 8), 900), (es.GRU(3, 16), 100)):
        xs = torch.randn(2, time, 3)
        pieces_ = round(time**0.5)
        bytes_, nodes = kept_by(es.Checkpointed(cell, pieces_), xs, backend)
        state = 2 * 2 * 8 * 4  # rows, leaves, units, float32
        lent = state if backend == "reference" else 0  # the first step of a piece gets a copy, which it may write over
        assert bytes_ == (pieces_ - 1) * state + kept_by(cell, xs[:, -pieces_:], backend)[0] + lent
        assert nodes < 10
        assert kept_by(cell, xs, backend)[0] > time * 2 * 3 * 8 * 4


def test_pieces_by_default_are_of_the_order_of_the_root_of_time() -> None:
    for time, sizes in ((30, [30]), (900, [450, 450])):
        watched = Watched(es.GRU(3, 4))
        es.Checkpointed(watched)(torch.zeros(1, time, 3))
        assert [ys.shape[1] for ys, *_ in watched.runs] == sizes


def test_without_gradients_it_runs_at_once() -> None:
    watched = Watched(es.GRU(3, 4))
    with torch.no_grad():
        es.Checkpointed(watched, 2)(torch.zeros(1, 9, 3))
    assert len(watched.runs) == 1
    xs = torch.randn(1, 9, 3)

    def loss(layer: es.Layer) -> Callable[[Tensor], Tensor]:
        return lambda xs: layer(xs)[0].square().sum()

    plain = torch.func.grad(loss(watched.cell))(xs)
    assert torch.allclose(torch.func.grad(loss(es.Checkpointed(watched.cell, 2)))(xs), plain)


def test_budget() -> None:
    memory_pool.clear()  # what lies there unused may be larger than what is asked for
    cell = es.LSTM(3, 32)
    xs = torch.randn(4, 2000, 3)
    state = 2 * 4 * 32 * 4
    plain = kept_by(cell, xs)[0]
    for budget in (plain // 20, plain // 5):
        watched = Watched(cell)
        es.Checkpointed(watched, budget=budget)(xs)
        sizes = [ys.shape[1] for ys, *_ in watched.runs[2:]]  # the first two measured
        needed = len(sizes) * state + kept_by(cell, xs[:, : sizes[0]])[0]
        # it holds, and is made use of
        assert 0.8 * budget < needed <= 1.02 * budget
    watched = Watched(cell)
    es.Checkpointed(watched, budget=2 * plain)(xs)
    assert len(watched.runs) == 3
    with pytest.raises(ValueError, match=r"2000 steps of 4 rows need a budget of [\d,]+ bytes .* but it is 9,999"):
        es.Checkpointed(cell, budget=9_999)(xs)


def test_asking_for_the_budget_leaves_no_trace() -> None:
    cell = es.Stack(es.BatchNormLSTM(3, 4, steps=3), es.Dropout(4, 0.5))
    xs = torch.randn(4, 50, 3)
    found = []
    for layer in (es.Checkpointed(cell, 50), es.Checkpointed(cell, budget=1 << 30)):
        before = {name: b.clone() for name, b in cell.named_buffers()}
        torch.manual_seed(1)
        ys, _ = layer(xs)
        found.append([ys.detach(), torch.get_rng_state(), *(b.clone() for b in cell.buffers())])
        for name, b in cell.named_buffers():
            b.copy_(before[name])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "every should be"),
        ({"every": 2, "budget": 3}, ValueError, "not both"),
        ({"budget": 0}, ValueError, "budget should be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        es.Checkpointed(es.LSTM(3, 4), **arguments)


def test_acausal_layers_are_refused() -> None:
    with pytest.raises(TypeError, match="Bidirectional is no Cell: it sees the future"):
        es.Checkpointed(es.Bidirectional(es.LSTM(3, 4), es.LSTM(3, 4)))  # type: ignore[arg-type]


# -- objectives


def batch(time: int = 23) -> TokenBatch:
    torch.manual_seed(8)
    tokens = torch.randint(11, (3, time + 1))
    return TokenBatch(tokens[:, :-1], tokens[:, 1:], torch.tensor([time, 4, 0]), torch.rand(3, time) < 0.1, 0, time)


SHORT = 1e-5  # the head sums in float32


def losses(goal: Any, model: nn.Module, batch: TokenBatch, state: Any) -> list[Tensor]:
    model.zero_grad()
    (loss,) = goal(model, batch, state)
    loss.total.sum().backward()
    return [loss.total.detach(), loss.reported, *(v.detach() for _, v in leaves(loss.state))] + [
        p.grad.clone() for p in model.parameters() if p.grad is not None
    ]


def language_model() -> TokenModel:
    torch.manual_seed(2)
    config = TokenModelSection(cell="LSTM", embedding_size=6, hidden_size=8, layers=2, tied=True, dropout=0.0)
    return TokenModel(11, config, label_smoothing=0.1).double()


@pytest.mark.parametrize("every", [1, 5, 100, None])
def test_objective_in_pieces(every: int | None) -> None:
    model = language_model()
    whole, cut = likelihood(), checkpointed(likelihood(), every)
    assert_equal(losses(cut, model, batch(), None), losses(whole, model, batch(), None), SHORT)
    state = detach(next(whole(model, batch(), None)).state)
    assert_equal(losses(cut, model, batch(), state), losses(whole, model, batch(), state), SHORT)


def test_objective_with_context_carries_the_state_of_the_next_batch() -> None:
    model = language_model()
    lanes = Lanes(Corpus(np.arange(200) % 11, np.array([0])), batch_size=2, k1=4, k2=10)
    batches = [lanes.batch(0, index) for index in range(4)]
    assert batches[2].context > 0
    assert batches[2].advance < batches[2].inputs.shape[1]
    states: list[Any] = [None, None]
    for one in batches:
        found = [
            losses(goal, model, one, s)
            for goal, s in zip((likelihood(10), checkpointed(likelihood(10), 3)), states, strict=True)
        ]
        assert_equal(found[1], found[0], SHORT)
        states = [
            detach(next(goal(model, one, s)).state)
            for goal, s in zip((likelihood(10), checkpointed(likelihood(10), 3)), states, strict=True)
        ]


def test_objective_that_cuts_the_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="should yield one Loss for a batch, but yields 2"):
        next(checkpointed(pieces, 4)(Toy(dropout=0), batch(), None))
    for every in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="every should be a whole number of at least 1"):
            checkpointed(objective, every)  # type: ignore[arg-type]


def test_fit_in_pieces(tmp_path: Path) -> None:
    models = []
    for name, goal in (("whole", objective), ("pieces", checkpointed(objective, 2))):
        model = Toy(dropout=0)
        run(tmp_path / name, model=model, objective=goal)
        models.append(model)
    whole, cut = models
    assert int(cut.seen) == int(whole.seen) > 0  # running again counts nothing twice
    assert_equal([p.detach() for p in cut.parameters()], [p.detach() for p in whole.parameters()], 1e-5)


def test_memory_of_the_objective_is_that_of_the_states() -> None:
    model = language_model()

    def bytes_(goal: Any, time: int) -> int:
        one = TokenBatch(*torch.randint(11, (2, 2, time)), None, None, 0, time)
        return kept(lambda: next(goal(model, one, None)).total.sum(), one.inputs, one.targets, *model.parameters())[0]

    state = 2 * 2 * 2 * 8 * 8  # layers, leaves, rows, units, float64
    losses = 2 * 2 * 8  # rows, loss and nats, float64
    for time, size in ((100, 10), (900, 30)):
        limit = size * (state + losses) + bytes_(likelihood(), size)
        assert bytes_(checkpointed(likelihood(), size), time) <= limit < bytes_(likelihood(), time) / 3
        assert bytes_(likelihood(), time) > time * state
