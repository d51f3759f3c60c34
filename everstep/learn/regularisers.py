"""Penalties: on weights (`l2`, a rule), on outputs and on how fast they change (AR and TAR, terms of the loss)."""

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
    """g_w ← g_w + λ·w for the parameters w that `names` choose: the gradient of λ/2 · Σ w².

    Unlike the `weight_decay` of AdamW, which shrinks a weight apart from its gradient, this goes through the
    averages of the optimizer as the gradient does; and it is for any parameters, biases included.

    Args:
        strength: λ, in nats per target per squared unit of weight.
        names: names of parameters as in `model.named_parameters()`; * stands for anything: "body.*.weight_hh".

    Returns:
        A `Rule`. Frozen parameters are left alone.

    Raises:
        ConfigError: λ is below 0; when the rule first runs: a name that chooses no trainable parameter.

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
            # not in place, so that it is right for a sparse gradient too
            penalty = strength * parameter.detach()
            parameter.grad = penalty if parameter.grad is None else penalty + parameter.grad

    return rule


def chosen(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """The trainable parameters whose names match one of `names`, each once.

    Raises:
        ConfigError: a name that matches none.
    """
    parameters = trainable(model)
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ConfigError(f"l2: no trainable parameter is called {pattern!r}; there are {', '.join(parameters)}")
    return [p for name, p in parameters.items() if any(fnmatchcase(name, pattern) for pattern in names)]


def activation_penalty(ys: Tensor, lengths: Tensor | None = None) -> Tensor:
    """AR of every row: Σ_t ‖y_t‖² / H over its valid steps, with y_t the outputs *after* their dropout.

    Source: Merity, McCann and Socher, "Revisiting Activation Regularization for Language RNNs", 2017. As `fit` divides
    the sum of `Loss.total` by the number of targets, α times this comes to α times the mean square, as in the program
    of its authors (α = 2 there); Σ_t ‖y_t‖² is H times this.

    Args:
        ys: (batch, time, H).
        lengths: (batch,); steps at or beyond count nothing.

    Returns:
        (batch,), in squared units of y.

    Example:
        >>> activation_penalty(torch.full((2, 3, 4), 2.0), torch.tensor([3, 1]))
        tensor([12.,  4.])
    """
    return _sum(_wide(ys).square().mean(-1), lengths)


def change_penalty(ys: Tensor, lengths: Tensor | None = None, resets: Tensor | None = None) -> Tensor:
    """TAR of every row: Σ_{t≥1} ‖y_t − y_{t−1}‖² / H over its valid steps, with y_t the outputs *before* their dropout.

    Source: as `activation_penalty` (there β = 1). The first step of the window has no difference, nor has a step before
    which the state is reset: what stands on both sides of it has nothing to do with one another.

    Args:
        ys: (batch, time, H).
        lengths: (batch,); steps at or beyond count nothing.
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
    """Σ_t of (batch, time), without what lies at or beyond each row's length."""
    if lengths is not None:
        live = valid(lengths, values.shape[1])
        values = torch.where(live, values, 0)
    return values.sum(1)
