"""`F.linear` by weights that are packed once, for many steps of a few rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from everstep.native import toolchain
from everstep.native.plain_memory import plain, watched
from everstep.native.products import Packed

_Key = tuple[int, torch.Size, tuple[int, ...]]


class PackedLinears(TorchFunctionMode):
    """Within the block, `F.linear` multiplies by parameters of a module, and by parts of them, that it has packed.

    Parameters must not change as long as this object is used. Everything else is PyTorch's: products with gradients,
    under autocast, on other devices, where operations are observed or nothing can be compiled.

    >>> layer = nn.Linear(3, 2)
    >>> with torch.no_grad(), PackedLinears(layer):
    ...     layer(torch.zeros(1, 3)).equal(layer.bias[None])
    True
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        given = [parameter for parameter in module.parameters() if parameter.is_cpu and plain(parameter)]
        self._known = {parameter.untyped_storage().data_ptr() for parameter in given}
        self._packed: dict[_Key, Packed] = {}
        if toolchain.compiler() is None:
            self._known.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and not kwargs and self._takes(*args[:2]):
            return self._product(*args)
        return func(*args, **(kwargs or {}))

    def _takes(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the product is one of the packed ones."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or watched() or not plain(x, weight):
            return False
        fits = x.is_cpu and weight.dim() == 2 and x.dim() > 0 and x.shape[-1] == weight.shape[1]
        same = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
        return fits and same and weight.untyped_storage().data_ptr() in self._known

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        key = weight.data_ptr(), weight.shape, weight.stride()
        packed = self._packed.get(key)
        if packed is None:
            packed = self._packed[key] = Packed(weight.t())
        found = packed(x.reshape(-1, weight.shape[1])).view(*x.shape[:-1], len(weight))
        return found if bias is None else found.add_(bias)
