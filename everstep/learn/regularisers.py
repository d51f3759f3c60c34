"""Penalties on weights (`l2`, a rule), and on outputs and their changes (AR and TAR, terms of the loss)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from everstep.errors import ConfigError
from everstep.learn.optim import trainable
from everstep.learn.rules import Rule
from everstep.state import valid


def l2(strength: float, names: Sequence[str] = ("*",)) -> Rule:
    """g_w ← g_w + λ·w for the parameters w that match `names`: the gradient of λ/2 · Σ w².

    Unlike the decoupled `weight_decay` of AdamW, this penalty passes through the optimizer's moment estimates like any
    gradient. It applies to any parameters, biases included.

    Args:
        strength: λ, in nats per target per squared unit of weight.
        names: patterns for the names of `model.named_parameters()`; * matches anything: "body.*.weight_hh".

    Returns:
        A `Rule`. Frozen parameters are left alone.

    Raises:
        ConfigError: λ is below 0; when the rule first runs: a name matches no trainable parameter.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> model.weight.data.fill_(4.0)
        tensor([[4.]])
        >>> l2(0.5, ["weight"])(model, 0)
        >>> model.weight.grad, model.bias.grad
        (tensor([[2.]]), None)
    """
    if not 0 <= strength < math.inf:
        raise ConfigError(f"l2: strength must be 0 or more, got {strength}")
    patterns = (names,) if isinstance(names, str) else tuple(names)

    @torch.no_grad()
    def rule(model: nn.Module, step: int) -> None:
        del step  # the same at every step
        for parameter in chosen(model, patterns):
            # not in place, which sparse gradients would not allow
            penalty = strength * parameter.detach()
            parameter.grad = penalty if parameter.grad is None else penalty + parameter.grad

    return rule


def chosen(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """The trainable parameters whose names match one of `names`, each once.

    Raises:
        ConfigError: a name matches none.
    """
    parameters = trainable(model)
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ConfigError(f"l2: no trainable parameter is called {pattern!r}; there are {', '.join(parameters)}")
    return [p for name, p in parameters.items() if any(fnmatchcase(name, pattern) for pattern in names)]


def activation_penalty(ys: Tensor, lengths: Tensor | None = None) -> Tensor:
    """AR of every row: Σ_t ‖y_t‖² / H over its valid steps, with y_t the outputs *after* their dropout.

    Source: Merity, McCann and Socher, "Revisiting Activation Regularization for Language RNNs", 2017. Since `fit`
    divides the sum of `Loss.total` by the number of targets, adding α times this penalty adds α times the mean square,
    as the authors' code does with α = 2.

    Args:
        ys: (batch, time, H).
        lengths: (batch,); later steps are ignored.

    Returns:
        (batch,), in squared units of y.

    Example:
        >>> activation_penalty(torch.full((2, 3, 4), 2.0), torch.tensor([3, 1]))
        tensor([12.,  4.])
    """
    return _sum(_wide(ys).square().mean(-1), lengths)


def change_penalty(ys: Tensor, lengths: Tensor | None = None, resets: Tensor | None = None) -> Tensor:
    """TAR of every row: Σ_{t≥1} ‖y_t − y_{t−1}‖² / H over its valid steps, with y_t the outputs *before* their dropout.

    Source: as `activation_penalty` (β = 1 there). The first step of the window contributes nothing, nor does a step
    with a reset before it, since the two sides are unrelated.

    Args:
        ys: (batch, time, H).
        lengths: (batch,); later steps are ignored.
        resets: (batch, time) bool.

    Returns:
        (batch,), in squared units of y.

    Example:
        >>> change_penalty(torch.tensor([[[1.0], [3.0], [0.0]]]), resets=torch.tensor([[False, False, True]]))
        tensor([4.])
    """
    ys = _wide(ys)
    squares = (ys[:, 1:] - ys[:, :-1]).square().mean(-1)
    if resets is not None:
        squares = torch.where(resets[:, 1:], 0, squares)
    return _sum(squares, None if lengths is None else lengths - 1)


def _wide(ys: Tensor) -> Tensor:
    return ys.float() if ys.dtype == torch.bfloat16 else ys


def _sum(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The sum of (batch, time) over each row's valid steps: (batch,)."""
    if lengths is not None:
        live = valid(lengths, values.shape[1])
        values = torch.where(live, values, 0)
    return values.sum(1)
