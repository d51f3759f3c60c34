"""A memory of N places of W numbers: where heads look, and what they leave there."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-8  # added to squared lengths: the cosine of an empty place is 0, and has a gradient
_TINY = 1e-16  # weights count as this much at least when their logarithm is taken


def by_content(keys: Tensor, strengths: Tensor, memory: Tensor) -> Tensor:
    """Weights of the places that resemble a key: softmax over i of β cos(k, M[i]) (Graves 2014, equations 5 and 6).

    Args:
        keys: k, (batch, heads, W).
        strengths: β > 0, (batch, heads, 1).
        memory: M, (batch, N, W).

    Returns:
        (batch, heads, N), which sum to 1.
    """
    dots = keys @ memory.transpose(1, 2)
    lengths = (keys.square().sum(-1, keepdim=True) + _LEAST).sqrt()
    sizes = (memory.square().sum(-1) + _LEAST).sqrt().unsqueeze(1)
    return (strengths * dots / (lengths * sizes)).softmax(-1)


def shifted(weights: Tensor, shares: Tensor) -> Tensor:
    """Weights moved around the ring of places: Σ_d s(d) w(i − d), d = −S … S (Graves 2014, equation 8).

    Args:
        weights: w, (batch, heads, N).
        shares: s, (batch, heads, 2S + 1), which sum to 1; the first is the share of d = −S.
    """
    reach = shares.shape[-1] // 2
    moved = shares[..., :1] * torch.roll(weights, -reach, -1)
    for k in range(1, shares.shape[-1]):
        moved = moved + shares[..., k : k + 1] * torch.roll(weights, k - reach, -1)
    return moved


def sharpened(weights: Tensor, powers: Tensor) -> Tensor:
    """w(i)^γ ÷ Σ_j w(j)^γ (Graves 2014, equation 9), as softmax of γ ln w, whose gradient is finite where w is 0.

    Args:
        weights: w ≥ 0, (batch, heads, N).
        powers: γ ≥ 1, (batch, heads, 1).
    """
    return (powers * weights.clamp_min(_TINY).log()).softmax(-1)


def revised(memory: Tensor, weights: Tensor, erased: Tensor, added: Tensor) -> Tensor:
    """M[i] ∘ (1 − w(i) e) + w(i) a for one head after another (Graves 2014, equations 3 and 4).

    Args:
        memory: M, (batch, N, W).
        weights: w, (batch, heads, N).
        erased: e in 0 … 1, (batch, heads, W).
        added: a, (batch, heads, W).
    """
    for k in range(weights.shape[1]):
        w = weights[:, k, :, None]
        memory = memory * (1 - w * erased[:, k, None]) + w * added[:, k, None]
    return memory
