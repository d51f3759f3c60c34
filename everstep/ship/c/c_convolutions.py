"""Write convolutions and pools in C++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from everstep.ship.c.c_values import Number, Value
from everstep.ship.c.c_writer import CWriter
from everstep.ship.sizes import NotExported

Handler = Callable[..., Any]


def _planes(sizes: Sequence[Number]) -> list[Number]:
    """(n, channels, height, width) of images, or of sequences, whose height is 1."""
    if len(sizes) not in (3, 4):
        raise NotExported("it uses a convolution of more than two dimensions, which C++ has no loop for here")
    return list(sizes) if len(sizes) == 4 else [*sizes[:2], 1, sizes[2]]


def _pair(values: Sequence[int], dims: int, usual: int) -> str:
    """A number for the height and one for the width."""
    whole = list(values) * (dims if len(values) == 1 else 1)
    return ", ".join(map(str, whole if dims == 2 else [usual, *whole]))


def _convolution(
    w: CWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Value:
    if transposed:
        raise NotExported("it uses a transposed convolution, which C++ has no loop for here")
    value, kernel, out = w.packed(w.value(x)), w.packed(w.value(weight)), w.new(w.kind(node), w.sizes(node))
    shift = "nullptr" if bias is None else w.packed(w.value(bias)).at
    dims = len(value.sizes) - 2
    sizes = [", ".join(map(str, _planes(one.sizes))) for one in (value, kernel, out)]
    how = f"{_pair(stride, dims, 1)}, {_pair(padding, dims, 0)}, {_pair(dilation, dims, 1)}, {groups}"
    read = f"{value.at}, {{{sizes[0]}}}, {kernel.at}, {{{sizes[1]}}}, {shift}"
    w.line(f"convolve<{out.kind}>({read}, {{{how}}}, {out.at}, {{{sizes[2]}}});")
    return out


def _max_pool(
    w: CWriter,
    node: fx.Node,
    x: fx.Node,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil: bool = False,
) -> list[Any]:
    if any(user.args[1] and user.users for user in node.users):
        raise NotExported("it uses the places of max_pool2d, which C++ has no loop for here")
    value = w.packed(w.value(x))
    shape = w.sizes(next(user for user in node.users if user.args[1] == 0))
    out = w.new(value.kind, shape)
    sizes = [", ".join(map(str, _planes(one.sizes))) for one in (value, out)]
    how = f"{_pair(stride or kernel, 2, 1)}, {_pair(padding, 2, 0)}, {_pair(dilation, 2, 1)}, 1"
    w.line(f"pool<{out.kind}>({value.at}, {{{sizes[0]}}}, {_pair(kernel, 2, 1)}, {{{how}}}, {out.at}, {{{sizes[1]}}});")
    return [out, None]


CONVOLUTIONS: dict[str, Handler] = {"convolution": _convolution, "max_pool2d_with_indices": _max_pool}
"""What writes convolutions and pools, by their PyTorch names."""
