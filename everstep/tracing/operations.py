"""PyTorch's operations below autograd: names, kinds, and output shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv"}
_REDUCTIONS = {
    *("sum", "mean", "var", "var_mean", "amax", "amin", "any", "all"),
    *("native_layer_norm", "_softmax", "_log_softmax"),
}
VIEWS = {
    *("t", "transpose", "permute", "view", "_unsafe_view", "expand", "squeeze", "unsqueeze", "slice"),
    *("select", "split", "split_with_sizes", "unbind", "diagonal", "cat", "stack", "clone", "alias", "detach"),
    *("unsafe_split", "flip", "getitem", "_to_copy"),
    *("ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like", "new_empty"),
}
_LARGE = 1 << 12
"""Numbers of a tensor whose shape is found without computing it."""
_EXTRA_POINTWISE = {"_prelu_kernel", "leaky_relu", "log_sigmoid_forward"}  # lack the tag, some only in torch 2.11


@lru_cache(1024)
def operation_name(target: Any) -> str:
    """PyTorch's name of an operation, without the overload."""
    return str(getattr(target, "__name__", target)).split(".")[0]


@lru_cache(1024)
def kind_of(target: Any) -> str | None:
    """The kind of an operation: "product", "reduction", "view" or "pointwise"; None if unknown."""
    name = operation_name(target)
    if name in _PRODUCTS:
        return "product"
    if name in _REDUCTIONS:
        return "reduction"
    if name in VIEWS:
        return "view"
    return "pointwise" if torch.Tag.pointwise in getattr(target, "tags", ()) or name in _EXTRA_POINTWISE else None


def value_of(target: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation on meta tensors, on the meta device.

    Views and unknown operations run on the meta device. Others run on real tensors with arbitrary values, because many
    have Python code for the meta device that imports PyTorch's compiler.
    """
    if target.is_view or (kind_of(target) is None and target._schema.arguments and tensors_of(args, kwargs)):
        return target(*args, **kwargs)
    if operation_name(target) in _PRODUCTS:
        *others, left, right = args
        if min(left.dim(), right.dim()) > 1 and left.shape[-1] == right.shape[-2]:
            args = *others, left[..., :0], right[..., :0, :]  # empty sums have the same shape and take no time
    large = _large_pointwise(target, args, kwargs)
    if large is not None:
        return large
    if any(argument.name == "device" for argument in target._schema.arguments):
        kwargs = {**kwargs, "device": "cpu"}
    stand = _one_row if operation_name(target) in ("sum", "mean", "amax", "amin") else _standing
    args, kwargs = replaced(stand, (args, kwargs))
    return replaced(on_meta, target(*args, **kwargs))


def computed(target: Any, args: Any, kwargs: Any) -> Any:
    """What an operation makes of zeros of these shapes, on the meta device: places among them are there."""
    args, kwargs = replaced(lambda like: torch.zeros(like.shape, dtype=like.dtype), (args, kwargs))
    return replaced(on_meta, target(*args, **kwargs))


def _large_pointwise(target: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The result for tensors in order that make a large one, which take time to compute: its dtype is that of nothing.

    None for all others.
    """
    tensors = tensors_of(args, kwargs)
    if kind_of(target) != "pointwise" or not tensors or not all(t.is_contiguous() for t in tensors):
        return None
    shape = _broadcast([t.shape for t in tensors])
    if shape is None or math.prod(shape) < _LARGE:
        return None

    def nothing(like: Tensor) -> Tensor:
        return torch.empty([n if n == 1 else 0 for n in like.shape], dtype=like.dtype, device="cpu")

    args, kwargs = replaced(nothing, (args, kwargs))
    found = target(*args, **kwargs)
    return torch.empty(shape, dtype=found.dtype, device="meta") if isinstance(found, Tensor) else None


def _broadcast(shapes: list[torch.Size]) -> tuple[int, ...] | None:
    """The common shape, None if they do not fit together; `torch.broadcast_shapes` would import a compiler."""
    found = []
    for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        others = {size for size in sizes if size != 1}
        if len(others) > 1:
            return None
        found.append(others.pop() if others else 1)
    return tuple(reversed(found))


def _one_row(like: Tensor) -> Tensor:
    """`_standing`, of a large tensor in order one row, which is read for all."""
    if like.numel() < _LARGE or not like.is_contiguous():
        return _standing(like)
    return torch.zeros(like.shape[1:], dtype=like.dtype, device="cpu").expand(like.shape)


def _standing(like: Tensor) -> Tensor:
    """A real tensor with arbitrary values; untouched memory costs nothing."""
    if like.is_floating_point():
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    reach = sum((n - 1) * stride for n, stride in zip(like.shape, like.stride(), strict=True)) + 1
    ones = torch.ones(reach if like.numel() else 0, dtype=like.dtype, device="cpu")
    return ones.as_strided(like.shape, like.stride())


def on_meta(like: Tensor) -> Tensor:
    """The tensor on the meta device."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among an operation's arguments."""
    return [value for value in flattened((args, kwargs)) if isinstance(value, Tensor)]


def flattened(nest: Any) -> list[Any]:
    """What lists, tuples and dictionaries hold, in order."""
    if isinstance(nest, dict):
        nest = nest.values()
    elif not isinstance(nest, list | tuple):
        return [nest]
    return [value for part in nest for value in flattened(part)]


def replaced(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """The nest of `flattened` with `function` of each tensor in its place."""
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, list):
        return [replaced(function, part) for part in nest]
    if isinstance(nest, tuple):
        return tuple([replaced(function, part) for part in nest])
    return {key: replaced(function, part) for key, part in nest.items()} if isinstance(nest, dict) else nest
