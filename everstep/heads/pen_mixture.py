"""A move of a pen: a mixture of correlated Gaussians in the plane, and what the pen does behind it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.heads.head import Head
from everstep.heads.numbers import MOST_LOG
from everstep.heads.sum_over_steps import over_steps

PENS = 3
"""What the pen does behind a move: it draws on to the next point, it is lifted, or the drawing has ended before."""
MOST_CORRELATION = 0.99
"""Largest |ρ|: the spread across a slanted line is at least a seventh of that along it."""


class PenMixture(Head):
    """p(Δ, q | y) = p(q) Σ_k π_k N(Δ; μ_k, Σ_k) of a move Δ = (Δx, Δy) and a pen q ∈ {draw, lift, end} (Graves 2013).

    Σ_k has the deviations σ_kx, σ_ky and the correlation ρ_k. At the end there is no move: p(end) alone counts (Ha &
    Eck 2017, "A neural representation of sketch drawings"). The head has no weights: y, (batch, time, 6 K + 3), holds
    the logits of π, μ_x, μ_y, log σ_x, log σ_y, artanh ρ, K each, and the logits of q. A target is (Δx, Δy, draw, lift,
    end), the last three one-hot. Loss: −log p in nats, by logsumexp over log densities.

    >>> head = PenMixture(2)
    >>> move = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]])
    >>> head.loss(torch.zeros(1, 1, head.size), move).round(decimals=2)  # log 2π + log 3, and a little by `least`
    tensor([2.9600])

    Args:
        components: K ≥ 1.
        least: the smallest σ, which is added to exp(log σ).

    Raises:
        ValueError: `components` is below 1, or `least` is not above 0.

    Known limit: −log p is that of a density, below 0 where moves repeat exactly; `least` bounds it, so that models with
    another `least` are not compared. |ρ| is at most `MOST_CORRELATION`.
    """

    def __init__(self, components: int = 20, least: float = 0.01):
        super().__init__()
        if components < 1 or not least > 0:
            raise ValueError(f"PenMixture: expected components ≥ 1 and least > 0; got {components} and {least}")
        self.components, self.least = components, least
        self.size = 6 * components + PENS

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The distribution of each step, (…, 6 K + 3): log π, μ_x, μ_y, σ_x, σ_y, ρ, K each, and log p(q)."""
        ys = ys.float() if ys.dtype in (torch.float16, torch.bfloat16) else ys
        weight, mean, log_spread, raw, pen = ys.split(self._sizes, -1)
        spread = log_spread.clamp(-MOST_LOG, MOST_LOG).exp() + self.least
        correlation = MOST_CORRELATION * raw.tanh()
        return torch.cat([weight.log_softmax(-1), mean, spread, correlation, pen.log_softmax(-1)], -1)

    @property
    def _sizes(self) -> list[int]:
        k = self.components
        return [k, 2 * k, 2 * k, k, PENS]

    def log_density(self, found: Tensor, moves: Tensor) -> Tensor:
        """log Σ_k π_k N(Δ; μ_k, Σ_k), (…), of what `predict` gives, (…, 6 K + 3), and moves (…, 2)."""
        weight, mean, spread, correlation, _ = found.split(self._sizes, -1)
        x, y = ((moves.repeat_interleave(self.components, -1) - mean) / spread).chunk(2, -1)
        free = (1 - correlation) * (1 + correlation)
        # ((y − ρ x)² / (1 − ρ²) + x²: a sum of squares, which rounding cannot make negative
        squares = x.square() + (y - correlation * x).square() / free
        logs = spread.log().chunk(2, -1)
        inner = weight - squares / 2 - logs[0] - logs[1] - free.log() / 2
        found_density: Tensor = torch.logsumexp(inner, -1) - math.log(2 * math.pi)
        return found_density

    def nats(self, found: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """−log p of the moves and of the pens, (…) each, of what `predict` gives and targets (…, 5)."""
        pen = target[..., 2:]
        move = torch.where(pen[..., -1] > 0.5, 0.0, -self.log_density(found, target[..., :2]))
        return move, -(found[..., -PENS:] * pen).sum(-1)

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t log p(Δ_t, q_t | y_t), (batch,)."""
        move, pen = self.nats(self.predict(ys), target)
        return over_steps(move + pen, lengths)

    def draw(self, found: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """A move and a pen (n, 5) drawn from each of what `predict` gives, (n, 6 K + 3).

        With the temperature τ, π and p(q) are raised to 1/τ and renormalised, and σ is multiplied by √τ (Ha & Eck
        2017); 0: the mean of the likeliest component, and the likeliest pen.
        """
        weight, mean, spread, correlation, pen = found.split(self._sizes, -1)
        chosen = _chosen(weight, temperature, generator)[:, None]
        mean_x, mean_y, spread_x, spread_y, rho = (
            part.gather(1, chosen)[:, 0] for part in (*mean.chunk(2, -1), *spread.chunk(2, -1), correlation)
        )
        noise = torch.randn(len(found), 2, generator=generator, dtype=found.dtype, device=found.device)
        x, free = noise.unbind(1)
        y = rho * x + (1 - rho.square()).sqrt() * free
        wide = math.sqrt(temperature)
        moves = torch.stack([mean_x + wide * spread_x * x, mean_y + wide * spread_y * y], 1)
        pens = F.one_hot(_chosen(pen, temperature, generator), PENS).to(found.dtype)
        return torch.cat([moves * (1 - pens[:, -1:]), pens], 1)


def _chosen(log_p: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One of each row, drawn from p^(1/τ)."""
    if temperature < 1e-6:
        return log_p.argmax(-1)
    return torch.multinomial((log_p / temperature).softmax(-1), 1, generator=generator)[:, 0]
