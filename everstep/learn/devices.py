"""Where a model is put."""

from __future__ import annotations

import torch

from everstep.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is cuda or mps where there is one, else cpu.

    Raises:
        ConfigError: this machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    kind = name.partition(":")[0]
    if not there.get(kind, True):
        found = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ConfigError(f"train.device: expected one of {found}, auto; this machine has no {name}")
    return torch.device(name)
