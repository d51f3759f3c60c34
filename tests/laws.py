"""Who the laws hold for. An exported cell of two sizes joins by itself, and so does an exported wiring of cells and
sizes; another cell or wiring, and one with options worth a law, by one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import sigmoid, tanh

import everstep as es
from everstep import wirings
from everstep.backends.protocol import Backend, Refusal
from everstep.networks.cells_by_name import cell_names

D, H = 3, 4


def refused(
    backend: Backend,
    cell: es.Cell,
    xs: Any,
    lengths: torch.Tensor | None = None,
    resets: torch.Tensor | None = None,
) -> str | None:
    """Why a backend does not take the cell over these inputs; None if it does."""
    found = backend.prepare(cell, xs, lengths, resets)
    return found if isinstance(found, Refusal) else None


class UserCell(es.Cell):
    """A nest of three kinds of leaf, with a learned start: what a user may write."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.linear = torch.nn.Linear(D + H, H)
        self.start = torch.nn.Parameter(torch.randn(H) / 2)

    def initial_state(self, batch: int, like: torch.Tensor) -> dict[str, object]:
        start = self.start.to(like.dtype).expand(batch, H)
        return {"h": start, "deep": (like.new_zeros(batch, 2, 2), like.new_ones(batch))}

    def step(self, x, state):
        matrix, decay = state["deep"]
        h = torch.tanh(self.linear(torch.cat([x, state["h"]], -1))) * decay[:, None]
        matrix = matrix * 0.9 + h.view(-1, 2, 2)
        return h + matrix.flatten(1), {"h": h, "deep": (matrix, decay * 0.99)}


@es.gated("u r", state="h m k")
def ThreeStates(x, h, s):
    """Three states, a gate of x alone and one of h alone."""
    m = s.m + tanh(x.u) * sigmoid(h.r)
    return tanh(m) + s.k, m, 0.5 * s.k + x.u


CELLS: dict[str, Callable[[], es.Cell]] = {
    **{name: partial(getattr(es, name), D, H) for name in cell_names()},
    "Accumulator": lambda: es.Accumulator(D),
    "RNN relu": lambda: es.RNN(D, H, activation=torch.relu),
    "RNN no bias": lambda: es.RNN(D, H, bias=False),
    "RNN softsign": lambda: es.RNN(D, H, activation=torch.nn.functional.softsign),
    "LSTM": lambda: es.LSTM(D, H, bias={"f": 1.0}),
    "LSTM no bias": lambda: es.LSTM(D, H, bias=False),
    "GRU no bias": lambda: es.GRU(D, H, bias=False),
    "GRU prelu": lambda: es.GRU(D, H, activation=torch.nn.PReLU()),
    "IntersectionRNN": lambda: es.IntersectionRNN(D),
    "ProjectedLSTM": lambda: es.ProjectedLSTM(D, H, 2),
    "MogrifierLSTM low rank": lambda: es.MogrifierLSTM(D, H, rounds=4, rank=2),
    "RHN": lambda: es.RHN(D, H, depth=2),
    "SCRN": lambda: es.SCRN(D, H, context_size=2),
    "TauGRU": lambda: es.TauGRU(D, H, delay=2),
    "RHN uncoupled": lambda: es.RHN(D, H, depth=2, coupled=False),
    "ExpressionCell": lambda: es.ExpressionCell(D, H, es.random_tree(1)),
    "ExpressionCell no memory": lambda: es.ExpressionCell(D, H, es.random_tree(2, leaves=3, memory=False)),
    "ActivationLSTM": lambda: es.ActivationLSTM(D, H, forget_gate=tanh, squash=torch.nn.PReLU()),
    "LeakyRNN": lambda: es.LeakyRNN(D, H, alpha=es.time_scales(H, 1, 50)),
    "LeakyRNN learned": lambda: es.LeakyRNN(D, H, alpha=0.7, learned=True),
    "ClockworkRNN": lambda: es.ClockworkRNN(D, H, periods=(1, 3)),
    "BatchNormLSTM": lambda: es.BatchNormLSTM(D, H, steps=5),
    "AffineSRU": lambda: es.AffineSRU(D, H, highway_bias=-1.0),
    "AffineSRU square": lambda: es.AffineSRU(D, D),
    "RGLRU": lambda: es.RGLRU(D),
    "SLSTM": lambda: es.SLSTM(D, H, heads=2),
    "SLSTM exp": lambda: es.SLSTM(D, H, forget="exp"),
    "MLSTM": lambda: es.MLSTM(D, H, heads=2),
    "MLSTM exp": lambda: es.MLSTM(D, H, forget="exp"),
    "UserCell": UserCell,
    "ThreeStates": lambda: ThreeStates(D, H),
    "Identity": lambda: es.Identity(D),
    "Dropout": lambda: es.Dropout(D, 0.5),
    "Stack": lambda: es.Stack(es.LSTM(D, H), es.Dropout(H, 0.5), es.MinGRU(H, 5), es.GRUBefore(5, H)),
    "Residual": lambda: es.Residual(es.GRU(D, D)),
    "VariationalDropout": lambda: es.VariationalDropout(es.LSTM(D, H), 0.5),
    "Zoneout": lambda: es.Zoneout(es.LSTM(D, H), {"h": 0.1, "c": 0.4}),
    "Zoneout affine": lambda: es.Zoneout(es.MinGRU(D, H), 0.3),
    "RecurrentDropout": lambda: es.RecurrentDropout(es.ActivationLSTM(D, H), 0.25),
    "StateDropout": lambda: es.StateDropout(es.LSTM(D, H), 0.5),
    "StateDropout before": lambda: es.StateDropout(es.GRUBefore(D, H), 0.5),
    "WeightDrop": lambda: es.WeightDrop(es.LSTM(D, H), 0.5),
    "Checkpointed": lambda: es.Checkpointed(es.Stack(es.LSTM(D, H), es.Residual(es.GRU(H, H))), 4),
    "TimeSkip": lambda: es.TimeSkip(es.LSTM(D, H), 3),
    "TimeSkip beside": lambda: es.TimeSkip(es.GRU(D + H, H), 2, beside=True),
    "Window": lambda: es.Window(D, 3),
    "Window QRNN": lambda: es.Stack(es.Window(D, 2), es.QRNN(2 * D, H)),
    "FeedForward": lambda: es.FeedForward(D, 5, H, linear_output=True),
    "TimeDistributed": lambda: es.TimeDistributed(torch.nn.Sequential(torch.nn.Linear(D, H), torch.nn.Tanh())),
    "DTRNN": lambda: es.DTRNN(D, H),
    "DTRNN shortcut": lambda: es.DTRNN(D, H, depth=3, shortcut=True, activation=sigmoid),
    "DeepTransition": lambda: es.DeepTransition(es.LSTM(D, H), es.LSTM(1, H), es.PeepholeLSTM(2, H)),
    "SkipStack": lambda: es.SkipStack(es.LSTM(D, 2), es.GRUBefore(D + 2, H), es.MinGRU(D + H, 3)),
    "Feedback": lambda: es.Feedback(es.Stack(es.GRU(D + 2, H), es.FeedForward(H, 2, linear_output=True))),
    "Feedback Jordan": lambda: es.Feedback(es.FeedForward(D + 2, H, 2)),
    "Conditioned start": lambda: es.Conditioned(UserCell(), 2),
    "Conditioned": lambda: es.Conditioned(es.LSTM(D + 2, H), 2, "both"),
    "Attend": lambda: es.Attend(es.LSTM(D + 2, H), es.AdditiveAttention(H, 2, 3)),
    "Attend feeding": lambda: es.Attend(
        es.GRU(D + H, H), es.GeneralAttention(H, 2), "after", output="mixed", input_feeding=True
    ),
    "Attend after": lambda: es.Attend(
        es.Stack(es.LSTM(D, 3), es.GRU(3, H)), es.MultiHeadAttention(H, 2, 4, heads=2), "after", output="both"
    ),
    "Attend coverage": lambda: es.Attend(es.GRU(D, H), es.CoverageAttention(H, 2, 3), "after"),
    "Passing": lambda: es.Passing(es.GRU(D, 2), 1, residual=True),
    "NTM": lambda: es.NTM(es.LSTM(D + 2, H), 5, 2),
    "NTM many heads": lambda: es.NTM(es.GRU(D + 3, H), 5, 3, reads=1, writes=2, shift=2),
    "DNC": lambda: es.DNC(es.GRU(D + 4, H), 4, 2, reads=2),
    "Reservoir": lambda: es.Reservoir(D, H, connections=2, leak=(0.3, 0.5, 1.0, 0.9), bias_scaling=0.2),
    "Parallel reservoirs": lambda: es.Parallel(
        es.SkipStack(es.Reservoir(D, 9), es.Reservoir(D + 9, H)), es.Identity(D)
    ),
    "EchoState": lambda: es.EchoState(es.Reservoir(D, H), 2),
    "EchoState feedback": lambda: es.EchoState(es.Reservoir(D + 2, H), 2, feedback=True),
    "nested": lambda: es.Stack(UserCell(), es.Residual(es.Zoneout(es.Stack(es.GRU(H, H), es.RNN(H, H)), 0.2))),
}

LAYERS: dict[str, Callable[[], es.Layer]] = {
    **CELLS,
    "Bidirectional": lambda: es.Bidirectional(es.LSTM(D, H), es.GRUBefore(D, 2)),
    "Bidirectional sum": lambda: es.Bidirectional(es.MinGRU(D, H), UserCell(), "sum"),
    "Delay": lambda: es.Delay(es.LSTM(D, H), 2),
    "Delay stack": lambda: es.EncoderStack(es.Delay(UserCell(), 3), es.Delay(es.Stack(es.GRU(H, H), es.RNN(H, 2)), 1)),
    "EncoderStack": lambda: es.EncoderStack(es.Bidirectional(es.LSTM(D, 2), es.LSTM(D, 2), "mean"), es.GRU(2, H)),
}

APART = {"Online": "its gradient is another: test_online.py", "TimeAveraged": "it needs ends: test_time_averaged.py"}
"""Exported wirings that some laws do not hold for."""


def example(kind: type[es.Layer]) -> es.Layer:
    """A wiring, of what the annotations of its constructor ask for.

    Cells have D features in and out; `input_size` and `size` are D, other whole numbers 2, and shares 0.5.
    """
    given: list[Any] = []
    for name, parameter in list(inspect.signature(kind).parameters.items()):
        if parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
            continue
        asked = str(parameter.annotation)
        if asked.startswith(("Cell", "Gated", "Layer")):
            cells = [es.ActivationLSTM(D, D), es.LSTM(D, D)]
            given += cells if parameter.kind is parameter.VAR_POSITIONAL else cells[:1]
        elif asked in ("int", "float"):
            given.append(D if name in ("input_size", "size") else 2 if asked == "int" else 0.5)
        else:
            raise TypeError(f"{kind.__name__}({name}: {asked}): give it a line of LAYERS in tests/laws.py")
    return kind(*given)


_listed = {name.split()[0] for name in LAYERS} | {*APART}
_exported = {name: getattr(wirings, name, None) for name in es.__all__ if name not in _listed}
JOINED = {name: kind for name, kind in _exported.items() if isinstance(kind, type) and issubclass(kind, es.Layer)}
CELLS |= {name: partial(example, kind) for name, kind in JOINED.items() if issubclass(kind, es.Cell)}  # type: ignore[arg-type]
LAYERS |= {name: partial(example, kind) for name, kind in JOINED.items()}

WIRINGS = [name for name in LAYERS if list(LAYERS).index(name) >= list(LAYERS).index("Identity")]
"""What is made of other cells, or has an `unroll` of its own."""
PLAIN = ["Accumulator", "LSTM", "GRU", "RNN", "MinGRU", "BatchNormLSTM", "UserCell"]
"""Cells of every kind that backends tell apart."""
LONG = [*PLAIN, "MLSTM", "SLSTM", "Checkpointed", "Stack", "Parallel reservoirs"]
"""Those that are run over hundreds of steps too: what is kept, cut into pieces or summed over steps in other ways."""
OWN_DERIVATIVES = [*PLAIN, "Checkpointed", "EchoState", "Feedback", "MLSTM", "Reservoir", "Zoneout"]
"""Those whose derivatives step by step are held against differences too; of all others the compiled loop's are, which
are the same to first order."""
