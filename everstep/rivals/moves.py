"""Baselines of drawings: one distribution of all moves, and one given the last move."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = Sequence[NDArray[Any]]
ADDED = 0.5
"""What each count of a pen begins with (Krichevsky & Trofimov 1981)."""
MOST = 50_000
"""Most moves from which a mixture is fitted."""
STEPS = 40
"""Steps of EM."""
BEGIN = 3
"""The pen before the first move."""


def move_rivals(train: Rows, held_out: Rows, components: int, least: float) -> Iterator[tuple[str, float, float]]:
    """Names of baselines, and −log p of a point in nats: of its move, and of its pen, the end of a drawing included.

    "one mixture": K correlated Gaussians and frequencies of pens, the same for all moves, fitted by EM (Dempster 1977).
    "given the last move": a Gaussian whose mean is linear in the last move, and frequencies of pens, both apart for
    what the pen did behind the last move, and for the first.

    Args:
        train, held_out: drawings (T + 1, 5) as `with_pens` gives them.
        components: K.
        least: added to the smallest deviations, as the network's.
    """
    now, last, pens = _stacked(train)
    asked, asked_last, asked_pens = _stacked(held_out)
    points = sum(len(one) - 1 for one in held_out)
    moved, asked_moved = now[:, 4] < 1, asked[:, 4] < 1
    mixture = fitted_mixture(now[moved, :2], components, least)
    alone = -float(_log_frequencies(now[:, 2:].sum(0)) @ asked[:, 2:].sum(0))
    yield "one mixture", -float(mixture_log_p(asked[asked_moved, :2], *mixture).sum()) / points, alone / points
    nats = pen_nats = 0.0
    for pen in np.unique(asked_pens):
        part, of = pens == pen, asked_pens == pen
        pen_nats -= float(_log_frequencies(now[part, 2:].sum(0)) @ asked[of, 2:].sum(0))
        a, b = part & moved, of & asked_moved
        if not a.any():  # the training has no such move: those of all
            a = moved
        nats += _linear_nats(now[a, :2], last[a], asked[b, :2], asked_last[b], least)
    yield "given the last move", nats / points, pen_nats / points


def _stacked(drawings: Rows) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """All rows, the move before each (0 before the first), and the pen behind that."""
    rows = np.concatenate(list(drawings)).astype(np.float64)
    before = np.roll(rows, 1, axis=0)
    pens = before[:, 2:].argmax(1)
    first = np.cumsum([0, *map(len, drawings[:-1])])
    before[first], pens[first] = 0, BEGIN
    return rows, before[:, :2], pens


def _log_frequencies(counts: Floats) -> Floats:
    found: Floats = np.log((counts + ADDED) / (counts.sum() + ADDED * len(counts)))
    return found


def _linear_nats(moves: Floats, last: Floats, asked: Floats, asked_last: Floats, least: float) -> float:
    """−log p of moves by a Gaussian of the residuals of least squares."""
    inputs, asked_inputs = (np.column_stack([one, np.ones(len(one))]) for one in (last, asked_last))
    weights = np.linalg.lstsq(inputs, moves, rcond=None)[0]
    rest = moves - inputs @ weights
    spread = _widened(rest.T @ rest / len(rest), least)
    one = mixture_log_p(asked - asked_inputs @ weights, np.zeros(1), np.zeros((1, 2)), spread[None])
    return -float(one.sum())


def fitted_mixture(moves: Floats, components: int, least: float) -> tuple[Floats, Floats, Floats]:
    """log weights (K,), means (K, 2) and covariances (K, 2, 2) of a mixture of Gaussians, by EM from drawn moves."""
    random = np.random.default_rng(1)
    moves = moves[random.permutation(len(moves))[:MOST]]
    means = moves[random.integers(len(moves), size=components)] + random.normal(0, 0.05, (components, 2))
    spread = np.tile(_widened(np.cov(moves.T, bias=True).reshape(2, 2), least), (components, 1, 1))
    weights = np.full(components, -math.log(components))
    for _ in range(STEPS):
        each = _log_parts(moves, weights, means, spread)
        share = np.exp(each - each.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        mass = share.sum(0) + 1e-9
        weights, means = np.log(mass / mass.sum()), (share.T @ moves) / mass[:, None]
        for k in range(components):
            apart = moves - means[k]
            spread[k] = _widened((share[:, k, None] * apart).T @ apart / mass[k], least)
    return weights, means, spread


def mixture_log_p(moves: Floats, weights: Floats, means: Floats, spread: Floats) -> Floats:
    """log Σ_k π_k N(move; μ_k, Σ_k) of each move."""
    each = _log_parts(moves, weights, means, spread)
    top = each.max(1, keepdims=True)
    found: Floats = top[:, 0] + np.log(np.exp(each - top).sum(1))
    return found


def _log_parts(moves: Floats, weights: Floats, means: Floats, spread: Floats) -> Floats:
    apart = moves[:, None] - means
    squares = np.einsum("nki,kij,nkj->nk", apart, np.linalg.inv(spread), apart)
    found: Floats = weights - squares / 2 - np.linalg.slogdet(spread)[1] / 2 - math.log(2 * math.pi)
    return found


def _widened(covariance: Floats, least: float) -> Floats:
    """A covariance whose deviations are `least` at least."""
    found: Floats = covariance + least**2 * np.eye(2)
    return found
