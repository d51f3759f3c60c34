"""The simple recurrent network."""

from __future__ import annotations

import torch
from torch import tanh

from everstep.equation import gated

_KERNELS = {torch.tanh: "rnn_tanh", torch.relu: "rnn_relu"}


@gated("a", state="h", vendor=lambda options: _KERNELS.get(options["activation"]))
def RNN(x, h, s, *, activation=tanh):
    """Elman's network (Elman 1990, "Finding structure in time"); equal to `torch.nn.RNN`.

    h_t = φ(W_xa x_t + b_xa + W_ha h_{t-1} + b_ha), with φ = `activation`: any elementwise function or module.

    >>> ys, h = RNN(3, 5, activation=torch.relu)(torch.zeros(2, 7, 3))

    Known limit: with tanh, gradients vanish over a few tens of steps (Bengio 1994).
    """
    return activation(x.a + h.a)
