"""The simple recurrent network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import tanh

from everstep.equation import Gated

_KERNELS = {torch.tanh: "rnn_tanh", torch.relu: "rnn_relu"}


def simple_kernel(options: Mapping[str, Any]) -> str | None:
    """PyTorch's kernel for a simple network with that `activation`, if it has one."""
    return _KERNELS.get(options["activation"])


class RNN(Gated, gates="a", vendor=simple_kernel):
    """Elman's network (Elman 1990, "Finding structure in time"); equal to `torch.nn.RNN`.

    h_t = φ(W_xa x_t + b_xa + W_ha h_{t-1} + b_ha), with φ = `activation`: any elementwise function or module.

    >>> ys, h = RNN(3, 5, activation=torch.relu)(torch.zeros(2, 7, 3))

    Known limit: with tanh, gradients vanish over a few tens of steps (Bengio 1994).
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        return activation(x.a + h.a)
