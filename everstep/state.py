"""Nests, the structure of a state.

A nest is a tensor, or a tuple, named tuple, list or dict of nests; `()` holds nothing. Every leaf is `(batch, ...)`.
Entries of dicts are matched by key, whatever their order. State is always passed from call to call and never stored on
a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any
"""A nest of tensors. `Any`, because Python's type system cannot express a recursive nest with named tuples."""


def map_state(fn: Callable[..., Any], nest: State, *others: State) -> State:
    """Apply `fn` to the leaves of `nest` (and of `others`, which have the same structure) and keep the structure.

    >>> map_state(lambda a, b: a + b, (torch.ones(1), {"c": torch.ones(1)}), (torch.ones(1), {"c": torch.ones(1)}))
    (tensor([2.]), {'c': tensor([2.])})
    """
    if isinstance(nest, dict):
        return {key: map_state(fn, value, *(o[key] for o in others)) for key, value in nest.items()}
    if isinstance(nest, tuple | list):
        return _sequence(nest, [map_state(fn, value, *(o[i] for o in others)) for i, value in enumerate(nest)])
    return fn(nest, *others)


def leaves(nest: State, path: str = "") -> list[tuple[str, Tensor]]:
    """The leaves with their names, in a fixed order: `("0.h", tensor)`, or `("state", tensor)` for a lone tensor.

    Dicts are traversed in sorted key order, so that dicts with the same keys give their leaves in the same order.

    >>> [name for name, _ in leaves((torch.ones(1), {"c": torch.ones(1)}))]
    ['0', '1.c']
    """
    if isinstance(nest, Tensor):
        return [(path or "state", nest)]
    if isinstance(nest, dict):
        children: Iterator[tuple[Any, Any]] = ((key, nest[key]) for key in _keys(nest))
    elif isinstance(nest, tuple | list):
        children = zip(getattr(nest, "_fields", range(len(nest))), nest, strict=True)
    else:
        return [(path or "state", nest)]
    found: list[tuple[str, Tensor]] = []
    for key, value in children:
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Tensor):
            found.append((name, value))
        else:
            found += leaves(value, name)
    return found


def unflatten(like: State, values: Sequence[Any]) -> State:
    """The nest of `like` with its leaves replaced by `values`, in the order of `leaves`.

    Raises:
        ValueError: there are not as many values as leaves.
    """
    remaining = iter(values)
    try:
        nest, rest = _filled(like, remaining), list(remaining)
    except StopIteration:
        rest = None
    if rest or rest is None:
        raise ValueError(f"unflatten: the nest has {len(leaves(like))} leaves, but got {len(values)} values")
    return nest


def _filled(like: State, values: Iterator[Any]) -> State:
    """The nest with the next values as leaves."""
    if isinstance(like, dict):
        found = {key: _filled(like[key], values) for key in _keys(like)}
        return {key: found[key] for key in like}
    if isinstance(like, tuple | list):
        parts = [next(values) if isinstance(value, Tensor) else _filled(value, values) for value in like]
        return _sequence(like, parts)
    return next(values)


def _keys(nest: dict[Any, Any]) -> list[Any]:
    """The keys in an order that is the same for all dicts with these keys."""
    return sorted(nest, key=lambda key: (str(key), type(key).__name__))


def _sequence(like: tuple[Any, ...] | list[Any], parts: list[Any]) -> State:
    """The parts as a tuple, named tuple or list, whichever `like` is."""
    if isinstance(like, list):
        return parts
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def like_nest(nest: State, like: State) -> State:
    """The same leaves in the nest of `like`: a plain tuple becomes its named tuple, keys take its order."""
    return unflatten(like, [leaf for _, leaf in leaves(nest)])


def detach(nest: State) -> State:
    """The same values, detached from the graph: where truncated BPTT stops."""
    return map_state(lambda leaf: leaf.detach(), nest)


def select(nest: State, rows: Tensor) -> State:
    """The rows `rows` (index or mask over the batch) of every leaf."""
    if rows.dtype == torch.bool or torch.is_grad_enabled():
        return map_state(lambda leaf: leaf[rows], nest)
    return map_state(lambda leaf: leaf.index_select(0, rows), nest)  # copies whole rows


def where(mask: Tensor, new: State, old: State) -> State:
    """Row by row: `new` where `mask` (batch,) is true, `old` elsewhere."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

    return map_state(pick, new, old)


def flip(xs: Any, lengths: Tensor | None) -> Any:
    """Reverse the valid part of every row (batch, time, ...) in time; padding stays where it is."""
    if lengths is None:
        return map_state(lambda leaf: leaf.flip(1), xs)

    def turn(leaf: Tensor) -> Tensor:
        steps = torch.arange(leaf.shape[1], device=leaf.device)
        places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
        return leaf.gather(1, places.view(*places.shape, *[1] * (leaf.dim() - 2)).expand_as(leaf))

    return map_state(turn, xs)


def valid(lengths: Tensor, time: int) -> Tensor:
    """(batch, time) bool: whether a step is within its row's length (batch,).

    >>> valid(torch.tensor([2, 0]), 3).tolist()
    [[True, True, False], [False, False, False]]
    """
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def as_large(initial: State, state: State) -> State:
    """`initial`, with each free size (0 in `initial`) replaced by that of `state`.

    >>> as_large(torch.zeros(2, 0, 3), torch.ones(2, 5, 3)).shape
    torch.Size([2, 5, 3])
    """
    if isinstance(initial, Tensor) and initial.numel():  # the usual case
        return initial
    if all(leaf.numel() for _, leaf in leaves(initial)):
        return initial
    try:
        given = leaves(like_nest(state, initial))
    except (TypeError, ValueError, LookupError):  # a different nest, which `check_nest` reports
        return initial
    found = []
    for (_, leaf), (_, other) in zip(leaves(initial), given, strict=True):
        free = isinstance(other, Tensor) and other.dim() == leaf.dim() and 0 in leaf.shape[1:]
        sizes = [n or m for n, m in zip(leaf.shape[1:], other.shape[1:], strict=True)] if free else leaf.shape[1:]
        found.append(leaf.new_zeros(len(leaf), *sizes) if free else leaf)
    return unflatten(initial, found)


def renewed(initial: State, state: State) -> State:
    """`initial`, with the leaves of a free size (0 in `initial`) of `state`: what a reset makes of a state.

    >>> renewed((torch.zeros(2, 3), torch.zeros(2, 0)), (torch.ones(2, 3), torch.ones(2, 1)))[1].tolist()
    [[1.0], [1.0]]
    """
    return map_state(lambda leaf, now: now if 0 in leaf.shape[1:] else leaf, initial, state)


def check_nest(who: str, state: State, expected: State) -> None:
    """Raise if `state` is not the same nest as `expected`, with the same shapes, dtypes and devices.

    Raises:
        TypeError: a different nest (a tuple where a tensor was expected, other keys, another length); the message says
            where. A list is accepted for a tuple.
        ValueError: a leaf of another shape, dtype or device; the message names the leaf.
    """
    _check_structure(who, state, expected, "state")
    for (name, leaf), (_, like) in zip(leaves(state), leaves(expected), strict=True):
        for what, got, want in (
            ("shape", tuple(leaf.shape), tuple(like.shape)),
            ("dtype", leaf.dtype, like.dtype),
            ("device", leaf.device, like.device),
        ):
            if got != want:
                raise ValueError(f"{who}: state leaf {name!r} should have {what} {want}, but has {got}")


def _check_structure(who: str, got: State, want: State, path: str) -> None:
    if isinstance(want, dict):
        if not isinstance(got, dict) or got.keys() != want.keys():
            keys = sorted(map(str, got)) if isinstance(got, dict) else type(got).__name__
            raise TypeError(f"{who}: {path} should be a dict with keys {sorted(map(str, want))}, but is {keys}")
        for key, value in want.items():
            _check_structure(who, got[key], value, f"{path}.{key}")
    elif isinstance(want, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(want):
            kinds = ["list" if isinstance(nest, list) else "tuple" for nest in (want, got)]
            came = f"a {kinds[1]} of {len(got)}" if isinstance(got, tuple | list) else type(got).__name__
            raise TypeError(f"{who}: {path} should be a {kinds[0]} of {len(want)}, but is {came}")
        for name, a, b in zip(getattr(want, "_fields", range(len(want))), got, want, strict=True):
            _check_structure(who, a, b, f"{path}.{name}")
    elif not isinstance(got, Tensor):
        raise TypeError(f"{who}: {path} should be a tensor, but is {type(got).__name__}")
