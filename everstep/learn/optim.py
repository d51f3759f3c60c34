"""PyTorch optimizers, with weight decay on matrices only, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, AdamW, Optimizer, RMSprop

from everstep.errors import ConfigError, RunError
from everstep.learn.rowwise_adam import RowwiseAdamW
from everstep.learn.settings import FitSettings

_SEPARATOR = "/"  # between the optimizer's name of a tensor and the parameter's name, which contains dots
_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name; a shared one once, without frozen ones (`requires_grad` False)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to parameters of two or more dimensions that are not biases."""
    return parameter.ndim >= 2 and "bias" not in name.rsplit(".", 1)[-1]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: with weight decay and without; an empty group is omitted."""
    parameters = trainable(model)
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in parameters.items() if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if not decays(name, p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


MakeOptimizer: TypeAlias = Callable[[list[dict[str, Any]]], Optimizer]
"""A function from parameter groups, each with `weight_decay`, to an optimizer: any class of `torch.optim`."""


def make_optimizer(model: nn.Module, settings: FitSettings, make: MakeOptimizer | None = None) -> Optimizer:
    """The optimizer that `settings` names, or that `make` makes, over the trainable parameters of `model`.

    AdamW runs as one fused kernel where all parameters are float32 on a CPU or a CUDA device. Where a module has sparse
    gradients (`torch.nn.Embedding(sparse=True)`, heads that sample), it is `RowwiseAdamW`.

    Raises:
        ConfigError: the model has nothing to learn, or sparse gradients, which the optimizer does not take.

    Example:
        >>> type(make_optimizer(nn.Linear(2, 2), FitSettings(max_steps=1, optimizer="sgd"))).__name__
        'SGD'
    """
    groups = parameter_groups(model, settings.weight_decay)
    if not groups:
        raise ConfigError(f"{type(model).__name__} has no trainable parameter (requires_grad is False for all)")
    if make is not None:
        return _made(make, groups)
    rate = settings.learning_rate
    sparse = sparse_gradients(model, settings)
    if settings.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=settings.momentum)
    if settings.optimizer == "rmsprop":
        return RMSprop(groups, lr=rate, momentum=settings.momentum)
    if settings.optimizer == "adagrad":
        return Adagrad(groups, lr=rate)
    fused = all(p.dtype == torch.float32 and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    kind = RowwiseAdamW if sparse else AdamW
    return kind(groups, lr=rate, betas=settings.betas, fused=fused)


def sparse_gradients(model: nn.Module, settings: FitSettings) -> bool:
    """Whether a module of the model has sparse gradients: an attribute `sparse` that is True.

    Raises:
        ConfigError: one has, and the settings name what has no meaning for rows alone.
    """
    found = [name or "it" for name, module in model.named_modules() if getattr(module, "sparse", False) is True]
    if found:
        _check_sparse(settings, found[0])
    return bool(found)


def _check_sparse(settings: FitSettings, name: str) -> None:
    """Refuse what has no meaning for rows alone.

    Raises:
        ConfigError: the settings name it.
    """
    who = f"the gradients of {name} are sparse"
    if settings.optimizer not in ("adamw", "sgd"):
        raise ConfigError(f"optimizer: expected adamw or sgd, because {who}; got {settings.optimizer}")
    for key in ("momentum", "weight_decay"):
        if settings.optimizer == "sgd" and (value := getattr(settings, key)):
            raise ConfigError(f"{key}: expected 0 beside sgd, because {who}; got {value:g}")
    if settings.l2:
        raise ConfigError(f"l2: expected 0, because {who}; got {settings.l2:g}; weight_decay of adamw takes them")


def _made(make: MakeOptimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """The user's optimizer, if `fit` can step it.

    Raises:
        ConfigError: it is not an optimizer, or its step needs a closure.
    """
    expected = "optimizer: expected what makes one of parameters, such as torch.optim.RAdam or functools.partial of it"
    if not callable(make):
        raise ConfigError(f"{expected}; got {type(make).__name__}, made already" if isinstance(make, Optimizer) else
                          f"{expected}; got {type(make).__name__}")  # fmt: skip
    made: Any = make(groups)
    if not isinstance(made, Optimizer):
        raise ConfigError(f"{expected}; it made {type(made).__name__}")
    if isinstance(made, LBFGS):
        raise ConfigError(
            f"{expected}; {type(made).__name__} computes the loss several times a step, which fit does not"
        )
    return made


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group of `optimizer`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of `optimizer` as tensors named `"exp_avg/layer.weight"`; a Python number as `"step:int/…"`.

    Raises:
        RunError: the state holds something else, which a checkpoint cannot store.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}{_SEPARATOR}{name}"] = value
            elif (kind := type(value)) in _NUMBERS:
                tensors[f"{key}:{kind.__name__}{_SEPARATOR}{name}"] = torch.tensor(value, dtype=_NUMBERS[kind])
            elif value is not None:
                raise RunError(
                    f"{type(optimizer).__name__} keeps a {kind.__name__} ({key}) in its state, which a checkpoint "
                    "cannot hold: expected tensors and numbers; take another optimizer"
                )
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned.

    Raises:
        RunError: the tensors belong to another model.
    """
    states: dict[str, dict[str, Any]] = {}
    for full, tensor in tensors.items():
        key, name = full.split(_SEPARATOR, 1)
        key, _, kind = key.partition(":")
        states.setdefault(name, {})[key] = tensor.item() if kind else tensor
    names = {id(parameter): name for name, parameter in trainable(model).items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    unknown = set(states) - set(order)
    if unknown:
        raise RunError(
            f"the checkpoint's optimizer has a state for {sorted(unknown)[0]!r}, which the model does not train; "
            "resume with the model the run was started with"
        )
    if type(optimizer) in (AdamW, RowwiseAdamW, SGD, RMSprop, Adagrad):
        _check_alike(states, trainable(model))
    indexed = {index: states[name] for index, name in enumerate(order) if name in states}
    optimizer.load_state_dict({"state": indexed, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_alike(states: dict[str, dict[str, Any]], parameters: dict[str, nn.Parameter]) -> None:
    """Refuse a state that no optimizer of `FitSettings` has: every parameter must have the same entries.

    Raises:
        RunError: an entry is missing or has another shape; the message names it.
    """
    keys = sorted({key for state in states.values() for key in state})
    for name, state in states.items():
        for key in keys:
            if key not in state:
                raise RunError(
                    f"the checkpoint's optimizer lacks {key}{_SEPARATOR}{name}, which it has of other weights"
                )
            value, shape = state[key], parameters[name].shape
            if key == "step" and isinstance(value, Tensor) and value.shape == shape[:1]:
                continue  # one count a row
            if isinstance(value, Tensor) and value.dim() and value.shape != shape:
                raise RunError(
                    f"the checkpoint's optimizer has {key}{_SEPARATOR}{name} of shape {tuple(value.shape)}, but the "
                    f"weight has {tuple(shape)}"
                )
