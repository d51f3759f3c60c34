"""Who the laws hold for. A new cell, wiring or layer joins by one line."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import sigmoid, tanh

import everstep as es

D, H = 3, 4


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
    "Accumulator": lambda: es.Accumulator(D),
    "RNN": lambda: es.RNN(D, H),
    "RNN relu": lambda: es.RNN(D, H, activation=torch.relu),
    "RNN no bias": lambda: es.RNN(D, H, bias=False),
    "RNN softsign": lambda: es.RNN(D, H, activation=torch.nn.functional.softsign),
    "LSTM": lambda: es.LSTM(D, H, bias={"f": 1.0}),
    "LSTM no bias": lambda: es.LSTM(D, H, bias=False),
    "GRU": lambda: es.GRU(D, H),
    "GRU no bias": lambda: es.GRU(D, H, bias=False),
    "GRU prelu": lambda: es.GRU(D, H, activation=torch.nn.PReLU()),
    "GRUBefore": lambda: es.GRUBefore(D, H),
    "MinGRU": lambda: es.MinGRU(D, H),
    "UserCell": UserCell,
    "ThreeStates": lambda: ThreeStates(D, H),
    "Identity": lambda: es.Identity(D),
    "Dropout": lambda: es.Dropout(D, 0.5),
    "Stack": lambda: es.Stack(es.LSTM(D, H), es.Dropout(H, 0.5), es.MinGRU(H, 5), es.GRUBefore(5, H)),
    "Residual": lambda: es.Residual(es.GRU(D, D)),
    "VariationalDropout": lambda: es.VariationalDropout(es.LSTM(D, H), 0.5),
    "Zoneout": lambda: es.Zoneout(es.LSTM(D, H), {"h": 0.1, "c": 0.4}),
    "Zoneout affine": lambda: es.Zoneout(es.MinGRU(D, H), 0.3),
    "nested": lambda: es.Stack(UserCell(), es.Residual(es.Zoneout(es.Stack(es.GRU(H, H), es.RNN(H, H)), 0.2))),
}

LAYERS: dict[str, Callable[[], es.Layer]] = {
    **CELLS,
    "Bidirectional": lambda: es.Bidirectional(es.LSTM(D, H), es.GRUBefore(D, 2)),
    "Bidirectional sum": lambda: es.Bidirectional(es.MinGRU(D, H), UserCell(), "sum"),
    "EncoderStack": lambda: es.EncoderStack(es.Bidirectional(es.LSTM(D, 2), es.LSTM(D, 2), "mean"), es.GRU(2, H)),
}
