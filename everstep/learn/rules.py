"""Rules that change the gradients between `backward()` and `optimizer.step()`.

No rule hides divergence: entries that are not finite stay so, and `fit` then stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from everstep.errors import ConfigError

Rule = Callable[[nn.Module, int], None]
"""`rule(model, step)` changes the gradients of `model` in place."""


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of `model` in the order of `model.parameters()`, once per shared parameter.

    A sparse gradient is coalesced and given by its stored values; changing them in place changes the gradient.
    """
    found = []
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad._values())
        elif parameter.grad is not None:
            found.append(parameter.grad)
    return found


def global_norm(tensors: list[Tensor]) -> Tensor:
    """‖g‖ = √(Σᵢ gᵢ²) over all entries of all tensors, a scalar tensor (0 for no tensors); does not synchronise.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
    """
    return torch.nn.utils.get_total_norm(tensors)


def scale_to_norm(tensors: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """g ← g · min(1, τ / ‖g‖) in place, with `norm` = ‖g‖ and τ = `max_norm`; NaN if ‖g‖ is infinite."""
    _scale(tensors, norm, (max_norm / norm).clamp(max=1.0))


def _scale(tensors: list[Tensor], norm: Tensor, factor: Tensor) -> None:
    if tensors:
        torch._foreach_mul_(tensors, factor + 0 * norm)  # 0·∞ is NaN, so that an infinite norm does not give 0


def clip_by_global_norm(max_norm: float) -> Rule:
    """If ‖g‖ > τ, g ← g · τ / ‖g‖, with g all gradients as one vector; the direction is kept.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1.

    Args:
        max_norm: τ, in the units of the gradient (nats per target per unit of weight).

    Returns:
        A `Rule`.

    Raises:
        ConfigError: τ is not a number above 0.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> model(torch.full((1, 1), 8.0)).sum().backward()
        >>> clip_by_global_norm(2.0)(model, 0)
        >>> model.weight.grad
        tensor([[2.]])
    """
    _positive("clip_by_global_norm", "max_norm", max_norm)

    def rule(model: nn.Module, step: int) -> None:
        del step  # the same at every step
        found = gradients(model)
        scale_to_norm(found, global_norm(found), max_norm)

    return rule


def scale_to_fixed_norm(norm: float) -> Rule:
    """g ← g · τ / ‖g‖ at every step, with g all gradients as one vector; a zero gradient stays zero.

    Every step of plain gradient descent at rate η then has length η·τ, on cliffs and on plateaus alike. Near a minimum
    it does not converge unless η decays.

    Args:
        norm: τ, in the units of the gradient.

    Returns:
        A `Rule`.

    Raises:
        ConfigError: τ is not a number above 0.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> model(torch.full((1, 1), 0.125)).sum().backward()
        >>> scale_to_fixed_norm(2.0)(model, 0)
        >>> model.weight.grad
        tensor([[2.]])
    """
    _positive("scale_to_fixed_norm", "norm", norm)

    def rule(model: nn.Module, step: int) -> None:
        del step
        found = gradients(model)
        length = global_norm(found)
        _scale(found, length, torch.where(length == 0, 1.0, norm / length))

    return rule


def clip_by_value(max_value: float) -> Rule:
    """gᵢ ← gᵢ · M / max(|gᵢ|, M) for every entry i, so that |gᵢ| ≤ M; the direction may change.

    This equals clamp(gᵢ, −M, M). It bounds the gradient, not the update: plain gradient descent at rate η moves a
    weight by Δθ = −η·g, so a bound |Δθ| ≤ M' needs M = M' / η. Optimizers with moment estimates, such as AdamW, make
    steps of another size.

    Known limit: an infinite or NaN entry becomes NaN and stops the training.

    Args:
        max_value: M, in the units of the gradient.

    Returns:
        A `Rule`.

    Raises:
        ConfigError: M is not a number above 0.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model(torch.tensor([[8.0, -0.5]])).sum().backward()
        >>> clip_by_value(2.0)(model, 0)
        >>> model.weight.grad
        tensor([[ 2.0000, -0.5000]])
    """
    _positive("clip_by_value", "max_value", max_value)

    def rule(model: nn.Module, step: int) -> None:
        del step
        for gradient in gradients(model):
            # clamp, because M · (g / |g|) may round to more than M; + 0·g, because clamp would turn ∞ into M
            gradient.copy_(gradient.clamp(-max_value, max_value) + 0 * gradient)

    return rule


def gradient_noise(eta: float, gamma: float = 0.55, seed: int = 0) -> Rule:
    """g ← g + ε, with every entry of ε from N(0, σ_t²), σ_t² = η / (1 + t)^γ, at optimizer step t = 0, 1, ….

    Source: Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach and Martens, "Adding Gradient Noise Improves Learning for
    Very Deep Networks", 2015 (γ = 0.55, η among 0.01, 0.3 and 1).

    The draws depend on `seed` and t alone and leave other generators untouched, so a resumed run draws the same noise.
    In a sparse gradient only stored entries get noise.

    Args:
        eta: η, the variance at the first step, in squared units of the gradient.
        gamma: γ, the decay exponent; 0 for constant variance.
        seed: seed of the draws.

    Returns:
        A `Rule`.

    Raises:
        ConfigError: η is not a number above 0, or γ or the seed is below 0.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> model.weight.grad = torch.zeros(1, 1)
        >>> gradient_noise(0.3)(model, 0)
        >>> bool(model.weight.grad != 0)
        True
    """
    _positive("gradient_noise", "eta", eta)
    if not 0 <= gamma < math.inf:
        raise ConfigError(f"gradient_noise: gamma must be 0 or more, got {gamma}")
    if seed < 0:
        raise ConfigError(f"gradient_noise: seed must be 0 or more, got {seed}")

    def rule(model: nn.Module, step: int) -> None:
        found = gradients(model)
        if not found:
            return
        # hashes (seed, step), so that in practice no two pairs share their draws
        mixed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
        generator = torch.Generator(found[0].device).manual_seed(mixed)
        deviation = math.sqrt(eta / (1 + step) ** gamma)
        for gradient in found:
            drawn = torch.empty_like(gradient).normal_(generator=generator)
            gradient.add_(drawn, alpha=deviation)

    return rule


def _positive(who: str, name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{who}: {name} must be above 0, got {value}")
