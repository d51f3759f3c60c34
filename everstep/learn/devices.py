"""The device a model runs on."""

from __future__ import annotations

import torch

from everstep.errors import ConfigError
from everstep.native import processor


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" picks cuda or mps if present, else cpu.

    Raises:
        ConfigError: this machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind, is_there in there.items() if is_there]
    if name == "auto":
        return torch.device(found[0])
    kind, _, number = name.partition(":")
    known = kind in found and (not number or (kind == "cuda" and _there_is(number)))
    if not known:
        listed = ", ".join(["auto", *found[:-1]])
        raise ConfigError(f"device: expected {listed} or {found[-1]}, which this machine has; got {name}")
    return torch.device(name)


def _there_is(number: str) -> bool:
    return number.isdecimal() and int(number) < torch.cuda.device_count()


def device_name(device: torch.device) -> str:
    """The product name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor.name() if device.type == "cpu" else device.type
