"""What happens to the gradients between `backward()` and `optimizer.step()`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from everstep.errors import ConfigError

Rule = Callable[[nn.Module, int], None]
"""`rule(model, step)` changes the gradients of `model` in place."""


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients that `model` has, each shared parameter's once, in the order of `model.parameters()`."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def global_norm(tensors: list[Tensor]) -> Tensor:
    """‖g‖ = √(Σᵢ gᵢ²) over all entries of all tensors: a scalar tensor, 0 if there are none. Nothing is synchronised.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
    """
    return torch.nn.utils.get_total_norm(tensors)


def scale_to_norm(tensors: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """g ← g · min(1, τ / ‖g‖) in place, with `norm` = ‖g‖ already known and τ = `max_norm`."""
    if tensors:
        torch._foreach_mul_(tensors, (max_norm / norm).clamp(max=1.0))


def clip_by_global_norm(max_norm: float) -> Rule:
    """Where ‖g‖ > τ, g ← g · τ / ‖g‖, with g all gradients taken as one vector: its direction is kept.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1.

    Args:
        max_norm: τ, in the units of the gradient (nats per target per unit of weight).

    Returns:
        A `Rule`.

    Raises:
        ConfigError: τ is not above 0.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> model(torch.full((1, 1), 8.0)).sum().backward()
        >>> clip_by_global_norm(2.0)(model, 0)
        >>> model.weight.grad
        tensor([[2.]])
    """
    if not max_norm > 0:
        raise ConfigError(f"clip_by_global_norm: max_norm must be above 0, got {max_norm}")

    def rule(model: nn.Module, step: int) -> None:
        del step  # the same at every step
        found = gradients(model)
        scale_to_norm(found, global_norm(found), max_norm)

    return rule
