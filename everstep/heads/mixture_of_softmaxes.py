"""Several softmaxes, whose mixture is not limited by the rank of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.cross_entropy import row_nats
from everstep.heads.head import VocabularyHead


class MixtureOfSoftmaxes(VocabularyHead):
    """p(k | y) = Σ_m π_m softmax(W h_m + b)_k, π = softmax(V y), h_m = tanh(P_m y) (Yang 2018).

    The logarithms of one softmax over contexts form a matrix of rank at most D + 1; those of a mixture do not.

    >>> head = MixtureOfSoftmaxes(8, 10, mixtures=3)
    >>> head.loss(torch.zeros(2, 7, 8), torch.zeros(2, 7, dtype=torch.int64)).shape
    torch.Size([2])

    Args:
        input_size: features D of y.
        classes: K.
        mixtures: M.
        tied: an embedding's weight (K, E) to use as W; h_m then has E features, else D.

    Parameters: `prior` V (M, D); `latent` (M E, D), the P_m, and `latent_bias` (M E,); `weight` W (K, E), `bias` (K,).
    Matrices initially uniform in ±1/√(columns), biases zero.

    Raises:
        ValueError: fewer than one softmax, or a tied weight of another number of rows.

    Known limit: M times the work and memory of a full softmax.
    """

    def __init__(self, input_size: int, classes: int, *, mixtures: int = 10, tied: Tensor | None = None):
        super().__init__()
        if mixtures < 1:
            raise ValueError(f"MixtureOfSoftmaxes: expected at least one softmax, got {mixtures}")
        if tied is not None and tied.shape[0] != classes:
            raise ValueError(f"MixtureOfSoftmaxes: a tied weight should have {classes} rows, but has {tied.shape[0]}")
        self.input_size, self.classes, self.mixtures = input_size, classes, mixtures
        features = input_size if tied is None else tied.shape[1]
        self.prior = _uniform(mixtures, input_size)
        self.latent = _uniform(mixtures * features, input_size)
        self.latent_bias = nn.Parameter(torch.zeros(mixtures * features))
        self.weight = _uniform(classes, features) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(classes))

    def _parts(self, ys: Tensor) -> tuple[Tensor, Tensor]:
        """log π, (…, M), and h, (…, M, E)."""
        log_pi = F.linear(ys, self.prior).float().log_softmax(-1)
        latent = torch.tanh(F.linear(ys, self.latent, self.latent_bias))
        return log_pi, latent.view(*ys.shape[:-1], self.mixtures, self.weight.shape[1])

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, classes), in float32."""
        log_pi, latent = self._parts(ys)
        log_p = F.linear(latent, self.weight, self.bias).float().log_softmax(-1)
        return (log_pi[..., None] + log_p).logsumexp(-2)

    def nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p(target | y) of outputs (n, D) and targets (n,): (n,)."""
        log_pi, latent = self._parts(ys)
        each = row_nats(latent.flatten(0, 1), self.weight, self.bias, target.repeat_interleave(self.mixtures))
        return -(log_pi - each.view_as(log_pi)).logsumexp(-1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mixtures={self.mixtures}"


def _uniform(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns).uniform_(-(columns**-0.5), columns**-0.5))
