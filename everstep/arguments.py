"""Checks of the arguments of a call on a sequence, before anything runs: shapes, dtypes, devices, ranges."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.state import State, leaves

_WHOLE = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
"""Integer dtypes that PyTorch can compute with."""


def check_sequence(who: str, layer: nn.Module, xs: Tensor, lengths: Tensor | None, resets: Tensor | None) -> None:
    """Raise if the layer, which needs `input_size` and `output_size`, cannot run on these; `who` begins the message.

    Raises:
        TypeError: another type or dtype, or a layer without its sizes.
        ValueError: another shape, device or range.
    """
    if not (hasattr(layer, "input_size") and hasattr(layer, "output_size")):
        missing = [size for size in ("input_size", "output_size") if not hasattr(layer, size)]
        raise TypeError(f"{who}: {' and '.join(missing)} not set; give them to Cell.__init__ or set them there")
    if not isinstance(xs, Tensor) or xs.dim() != 3 or xs.shape[2] != layer.input_size:
        came = f"shape {tuple(xs.shape)}" if isinstance(xs, Tensor) else type(xs).__name__
        raise ValueError(f"{who}: xs should be (batch, time, input_size={layer.input_size}), but got {came}")
    if not xs.is_floating_point():
        raise TypeError(f"{who}: xs should be floating point, but is {xs.dtype}; embed tokens first")
    parameter = _first_parameter(layer)
    if parameter is not None and parameter.device != xs.device:
        raise ValueError(f"{who}: xs is on {xs.device}, but the parameters are on {parameter.device}")
    if parameter is not None and parameter.dtype != xs.dtype and not torch.is_autocast_enabled(xs.device.type):
        raise TypeError(f"{who}: xs is {xs.dtype}, but the parameters are {parameter.dtype}")
    if lengths is not None:
        check_lengths(who, xs, lengths)
    if resets is not None:
        _check_tensor(who, "resets", resets, tuple(xs.shape[:2]), xs.device)
        if resets.dtype != torch.bool:
            raise TypeError(f"{who}: resets should be bool, but is {resets.dtype}")


def check_lengths(who: str, xs: Tensor, lengths: Tensor) -> None:
    """Raise if these are not lengths of the rows of xs (batch, time, ...), as `check_sequence` does."""
    batch, time = xs.shape[:2]
    _check_tensor(who, "lengths", lengths, (batch,), xs.device)
    if lengths.dtype not in _WHOLE:
        raise TypeError(f"{who}: lengths should be whole numbers (int64), but is {lengths.dtype}")
    known = type(lengths) is Tensor and not lengths.is_meta  # else it may have no numbers, as where it is traced
    values = lengths.tolist() if known else []
    if values and (min(values) < 0 or max(values) > time):
        row, value = next((row, value) for row, value in enumerate(values) if not 0 <= value <= time)
        raise ValueError(f"{who}: lengths should lie in 0 … {time} (time), but row {row} has {value}")


def check_leaves(layer: nn.Module, initial: State) -> None:
    """Raise a TypeError if a leaf of the initial state is not a tensor."""
    for name, leaf in leaves(initial):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{type(layer).__name__}.initial_state: leaf {name!r} is a {type(leaf).__name__}; a state is a tensor, "
                "or a tuple, named tuple, list or dict of states"
            )


def _first_parameter(module: nn.Module) -> Tensor | None:
    """`next(module.parameters(), None)` without its cost."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    found = (_first_parameter(child) for child in module._modules.values() if child is not None)
    return next((parameter for parameter in found if parameter is not None), None)


def _check_tensor(who: str, name: str, value: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{who}: {name} should be a tensor of shape {shape}, but is {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{who}: {name} should have shape {shape}, but has {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{who}: {name} should be on {device} like xs, but is on {value.device}")
