"""Remedies for vanishing and exploding gradients, one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from everstep.cell import Cell
from everstep.cells import (
    GRU,
    IRNN,
    LSTM,
    RNN,
    AntisymmetricRNN,
    ClockworkRNN,
    CoRNN,
    IndRNN,
    LeakyRNN,
    init_bias,
    init_chrono,
    init_orthogonal,
    time_scales,
)
from everstep.data.batches import TokenBatch
from everstep.lab.synthetic import Adding, CopyMemory, Predictor, Problem, TemporalOrder, objective
from everstep.lab.synthetic.predictor import losses
from everstep.learn.objective import Loss, Objective
from everstep.learn.omega import omega
from everstep.learn.rules import Rule
from everstep.state import State
from everstep.wirings import Stack, TimeSkip
from everstep.wirings.orthogonal import ModReLU, Orthogonal

CLIP = 1.0


@dataclass(frozen=True)
class Remedy:
    """One way to bridge a lag.

    Attributes:
        name: unique name in tables and records.
        about: a description with its source.
        cell: makes the cell for D features, H units and a lag; initialised with PyTorch's generator.
        clip: τ of clipping by the global gradient norm, or None.
        rules: further rules, before clipping.
        objective: the objective, including any regulariser.
    """

    name: str
    about: str
    cell: Callable[[int, int, int], Cell]
    clip: float | None = CLIP
    rules: tuple[Rule, ...] = ()
    objective: Objective[TokenBatch] = objective


@dataclass(frozen=True)
class Exam:
    """A problem at any lag, and the held-out error below which it counts as solved.

    Attributes:
        problem: makes the problem for a lag.
        goal: upper bound of `HeldOutScore.error`.
        measure: a description of that error.
    """

    problem: Callable[[int], Problem]
    goal: float
    measure: str


TASKS = {
    "adding": Exam(Adding, 0.01, "squared error"),
    "order": Exam(TemporalOrder, 0.01, "share of wrong answers"),
    "copy": Exam(CopyMemory, 0.01, "share of wrong symbols"),
}


def _orthogonal(features: int, units: int, lag: int) -> Cell:
    cell = RNN(features, units)
    init_orthogonal(cell)
    return cell


def _kept_orthogonal(features: int, units: int, lag: int) -> Cell:
    cell = RNN(features, units, activation=ModReLU(units))
    nn.init.kaiming_normal_(cell.get_parameter("weight_ih"))
    init_bias(cell, "a", 0.0)
    return Orthogonal(cell)


def _clockwork(features: int, units: int, lag: int) -> Cell:
    periods = [2**k for k in range(8) if 2**k <= lag]
    while units % len(periods):
        periods.pop()
    return ClockworkRNN(features, units, periods=periods)


def _lstm_chrono(features: int, units: int, lag: int) -> Cell:
    cell = LSTM(features, units)
    init_chrono(cell, max(3, lag))
    return cell


def _gru_chrono(features: int, units: int, lag: int) -> Cell:
    cell = GRU(features, units)
    init_chrono(cell, max(3, lag), forget="z", input=None)
    return cell


def _independent(features: int, units: int, lag: int) -> Cell:
    cells = IndRNN(features, units), IndRNN(units, units)
    for cell in cells:
        nn.init.uniform_(cell.vector_hh, 0, 1)
    return Stack(*cells)


def omega_objective(strength: float) -> Objective[TokenBatch]:
    """The loss plus λ Ω / T, with λ = `strength` and Ω of Pascanu 2013, eq. 9.

    The authors' code (trainingRNNs, RNN.py) uses λ = 2 and a mean over steps too, but squares both norms as in eq. 10,
    which is four times as strong near a ratio of 1. The paper uses λ = 4 for temporal order (section 4.1.1).
    """

    def objective(model: nn.Module, batch: TokenBatch, state: State | None) -> Iterator[Loss]:
        assert isinstance(model, Predictor)
        assert isinstance(model.layer, Cell)

        def error(ys: Tensor) -> Tensor:
            return losses(model, batch, model.read(ys, batch)).sum(1)

        found, penalty, _ = omega(model.layer, batch.inputs, error, lengths=batch.lengths, immediate=True)
        yield Loss(found + strength * penalty / batch.inputs.shape[1], found.detach(), ())

    return objective


REMEDIES = (
    Remedy("tanh", "Elman 1990, nothing done about it", lambda d, h, lag: RNN(d, h), clip=None),
    Remedy("tanh, clipped", "the global norm of its gradient at most 1 (Pascanu 2013)", lambda d, h, lag: RNN(d, h)),
    Remedy("tanh, orthogonal", "starts with an orthogonal recurrent matrix (Saxe 2014)", _orthogonal),
    Remedy("orthogonal, kept", "modReLU, its matrix stays orthogonal (expRNN: Lezcano-Casado 2019)", _kept_orthogonal),
    Remedy(
        "tanh, Ω",
        "a penalty on errors that grow or shrink on their way back (Pascanu 2013), λ = 2 a step as in their code",
        lambda d, h, lag: RNN(d, h),
        objective=omega_objective(2.0),
    ),
    Remedy("IRNN", "ReLU, starts as the identity (Le 2015)", lambda d, h, lag: IRNN(d, h)),
    Remedy("IRNN, 0.9 I", "the same, of 0.9 times the identity", lambda d, h, lag: IRNN(d, h, scale=0.9)),
    Remedy(
        "leaky",
        "time constants from 1 to 2 lags (Mozer 1992; Jaeger 2007)",
        lambda d, h, lag: LeakyRNN(d, h, alpha=time_scales(h, 1, 2 * lag)),
    ),
    Remedy("clockwork", "modules of periods 1, 2, 4, … 128 (Koutník 2014)", _clockwork),
    Remedy(
        "time skip",
        "tanh, with a shortcut from lag/10 steps before (Lin 1996)",
        lambda d, h, lag: TimeSkip(RNN(d + h, h), max(2, lag // 10), beside=True),
    ),
    Remedy("IndRNN", "two layers of units with a weight each, from 0 to 1 at first (Li 2018)", _independent),
    Remedy("antisymmetric", "a stable differential equation (Chang 2019)", lambda d, h, lag: AntisymmetricRNN(d, h)),
    Remedy(
        "coRNN",
        "coupled oscillators (Rusch & Mishra 2021), with Δt, γ and ε of their code for adding",
        lambda d, h, lag: CoRNN(d, h, dt=0.06, gamma=66.0, epsilon=15.0),
    ),
    Remedy("LSTM", "all biases near 0 (Hochreiter & Schmidhuber 1997)", lambda d, h, lag: LSTM(d, h)),
    Remedy("LSTM, forget 1", "forget bias 1 (Gers 2000)", lambda d, h, lag: LSTM(d, h, bias={"f": 1.0})),
    Remedy("LSTM, chrono", "gate biases for times up to the lag (Tallec & Ollivier 2018)", _lstm_chrono),
    Remedy("GRU", "all biases near 0 (Cho 2014)", lambda d, h, lag: GRU(d, h)),
    Remedy("GRU, chrono", "gate biases for times up to the lag (Tallec & Ollivier 2018)", _gru_chrono),
)
