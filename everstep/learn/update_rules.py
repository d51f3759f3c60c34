"""The gradient rules named by the settings."""

from __future__ import annotations

from torch import nn

from everstep.learn.regularisers import chosen, l2
from everstep.learn.rules import Rule, clip_by_value, gradient_noise, scale_to_fixed_norm
from everstep.learn.settings import FitSettings


def update_rules(model: nn.Module, settings: FitSettings, seed: int) -> list[Rule]:
    """The rules between backward and `clip_norm`, in this order: l2, clip_value, fixed_norm, gradient_noise.

    Raises:
        ConfigError: a name in `l2_on` matches no trainable parameter of the model.
    """
    rules: list[Rule] = []
    if settings.l2:
        names = (settings.l2_on,) if isinstance(settings.l2_on, str) else settings.l2_on
        chosen(model, names)
        rules.append(l2(settings.l2, names))
    if settings.clip_value is not None:
        rules.append(clip_by_value(settings.clip_value))
    if settings.fixed_norm is not None:
        rules.append(scale_to_fixed_norm(settings.fixed_norm))
    if settings.gradient_noise:
        rules.append(gradient_noise(settings.gradient_noise, settings.gradient_noise_decay, seed))
    return rules
