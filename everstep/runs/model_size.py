"""A check that a model fits into memory, before it is created."""

from __future__ import annotations

import os
from typing import Any

import torch

from everstep.errors import ConfigError
from everstep.runs.task import Task


def check_fits(task: Task[Any]) -> None:
    """Refuse a model whose weights do not fit into this machine's memory, which would kill the process.

    The model is created on the meta device to count its tensors. If that fails, nothing is checked.

    Raises:
        ConfigError: it does not fit.
    """
    try:
        with torch.device("meta"):
            model = task.model()
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        count = sum(tensor.numel() for tensor in model.parameters())
    except NotImplementedError:
        return
    except RuntimeError as error:
        if "overflow" not in str(error):
            return
        raise ConfigError(f"model: more parameters than any memory holds. {_ADVICE}") from None
    if size > memory():
        raise ConfigError(
            f"model: {count:,} parameters, {size / 2**30:,.1f} GiB of weights, do not fit into this machine's "
            f"{memory() / 2**30:,.1f} GiB of memory. {_ADVICE}"
        )


def memory() -> int:
    """Physical memory in bytes; if unknown, a number larger than any machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 1 << 42


_ADVICE = "Lower model.hidden_size, model.layers or model.embedding_size"
