"""Cells as users write them, which tests copy beside a recipe: an equation, a class, one without state, a function."""

from typing import Any

import torch
from torch import Tensor, nn, sigmoid, tanh

import everstep as es


@es.gated("z n")
def Mine(x: Any, h: Any, s: Any) -> Tensor:
    z = sigmoid(x.z + h.z)
    return (1 - z) * s.h + z * tanh(x.n + h.n)


class Plain(es.Cell):
    """Its second size has a default; its state is a dict."""

    def __init__(self, input_size: int, hidden_size: int = 16, *, scale: float = 1.0):
        super().__init__(input_size, hidden_size)
        self.scale = scale
        self.w = nn.Parameter(torch.randn(hidden_size, input_size + hidden_size) / 3)

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        return {"h": like.new_zeros(batch, self.output_size)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = tanh(self.scale * torch.cat([x, state["h"]], -1) @ self.w.T)
        return h, {"h": h}


class Stateless(es.Cell):
    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.map = nn.Linear(input_size, hidden_size)

    def initial_state(self, batch: int, like: Tensor) -> tuple[()]:
        return ()

    def step(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return tanh(self.map(x)), ()


def both(input_size: int, hidden_size: int) -> es.Stack:
    return es.Stack(Mine(input_size, hidden_size), Plain(hidden_size, hidden_size))
