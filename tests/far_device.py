"""A stand-in for an accelerator: tensors that say they are on "cuda" or "mps", but lie in this machine's memory.

What was moved there, and all that is computed of it, is remembered by its memory. As on a GPU, an operation on tensors
here and there is an error, unless one is a scalar or an index, and NumPy sees only what is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HERE = torch.device("cpu")
_CROSSING = {
    "copy_",
    "__getitem__",
    "__setitem__",
    "_has_compatible_shallow_copy_type",
    "__set__",
    "__get__",
    "backward",
}
_PACKED = {"lstm", "gru", "rnn_tanh", "rnn_relu", "_pack_padded_sequence", "_pad_packed_sequence"}
"""Operations whose sizes of steps, or lengths, are here."""


class FarDevice(TorchFunctionMode):
    """Within it, there is a device of that kind; "mps" has no float64."""

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.kind, self.device = kind, torch.device(kind, 0)
        self._kept: dict[int, Any] = {}  # kept alive, so that no address is used again

    def is_far(self, tensor: Tensor) -> bool:
        """Whether the tensor is there."""
        with torch._C.DisableTorchFunction():
            return _plain(tensor).untyped_storage().data_ptr() in self._kept

    def _send(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            storage = _plain(tensor).untyped_storage()
            if self.kind == "mps" and tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
            if address := storage.data_ptr():
                self._kept[address] = storage
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        far: list[Tensor] = []
        near: list[Tensor] = []
        for tensor in _tensors((args, kwargs)):
            (far if self.is_far(tensor) else near).append(tensor)
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if owner is Tensor.device:
            return self.device if far else HERE
        if owner is Tensor.is_cpu:
            return not far
        if owner in (Tensor.is_cuda, Tensor.is_mps):
            return bool(far) and (owner is Tensor.is_cuda) == (self.kind == "cuda")
        if name == "numpy" and far and kwargs.get("force"):
            return self._moved((args[0].detach().resolve_conj().resolve_neg(), HERE), {}).numpy()
        if name in ("numpy", "__array__") and far:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")
        if func is Tensor.cpu:
            return self._moved((args[0], HERE), {})
        if func is Tensor.to:
            return self._moved(args, kwargs)
        if func is torch.autograd.grad:  # each is where what it is a gradient of is
            return self._gradients(args, kwargs)
        here = [tensor for tensor in near if tensor.dim() and tensor.numel()] if far else []
        if name in _PACKED:
            here = [tensor for tensor in here if tensor.is_floating_point()]
        if far and here and name not in _CROSSING:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but found {self.device} and cpu"
            )
        device = kwargs.get("device")
        sent = bool(far)
        if device is not None:
            sent = torch.device(device).type == self.kind
            kwargs["device"] = HERE
        result = func(*args, **kwargs)
        if sent and name not in ("copy_", "__setitem__"):
            for tensor in _tensors(result):
                self._send(tensor)
        return result

    def _gradients(self, args: Any, kwargs: dict[str, Any]) -> Any:
        inputs = _tensors(args[1] if len(args) > 1 else kwargs["inputs"])
        found = torch.autograd.grad(*args, **kwargs)
        for one, gradient in zip(inputs, found, strict=True):
            if gradient is not None and self.is_far(one):
                self._send(gradient)
        return found

    def _moved(self, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """`Tensor.to`, of a device, a dtype, or another tensor."""
        tensor, *others = args
        to: list[Any] = [self.device if isinstance(one, Tensor) and self.is_far(one) else one for one in others]
        if others and isinstance(others[0], Tensor):
            to = [self.device if self.is_far(others[0]) else HERE, others[0].dtype, *others[1:]]
        device = kwargs.pop("device", None)
        named = [torch.device(one) for one in [device, *to] if isinstance(one, str | torch.device)]
        rest = [one for one in to if isinstance(one, torch.dtype)]
        there = named[0].type == self.kind if named else self.is_far(tensor)
        moves = there != self.is_far(tensor)
        with torch._C.DisableTorchFunction():
            result: Tensor = tensor.to(HERE, *rest, **{**kwargs, "copy": True} if moves else kwargs)
        return self._send(result) if there else result


def _tensors(value: Any) -> Iterator[Tensor]:
    """All in a nest."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _plain(tensor: Tensor) -> Tensor:
    """The memory behind what `vmap` and its kin wrap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def far_tensors(mode: FarDevice, module: torch.nn.Module) -> Iterator[bool]:
    """Of each parameter and buffer, whether it is there."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield mode.is_far(tensor)
