"""Step-by-step runs that store the outputs and states of every layer, for diagnostics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer
from everstep.native import processor
from everstep.state import State, leaves, map_state
from everstep.wirings import Dropout, Identity, Stack

AnyLayer = TypeVar("AnyLayer", bound=Layer)


@dataclass(frozen=True)
class Moment:
    """One layer after one step.

    Attributes:
        output: y_t (batch, features).
        made: s_t, leaves (batch, ...), as returned by the step; y_t may be one of its leaves.
        state: s_t as passed to the next step: equal values in separate graph nodes, so that a derivative with respect
            to them is one with respect to the state alone.
    """

    output: Tensor
    made: State
    state: State


def parts(layer: Layer) -> list[Layer]:
    """The layers of a stack, or of nested stacks, lowest first; any other layer is a single part."""
    if not plain_stack(layer):
        return [layer]
    return [part for child in layer.sublayers() for part in parts(child)]


def plain_stack(layer: Layer) -> bool:
    """Whether a step of the layer steps each of its cells once, the output of one being the input of the next."""
    return isinstance(layer, Stack) and type(layer).step is Stack.step


def innermost(layer: nn.Module) -> nn.Module:
    """The cell inside wrappers such as `Residual` and `Zoneout`."""
    while isinstance(inside := getattr(layer, "cell", None), Layer):
        layer = inside
    return layer


def names(layers: Sequence[Layer]) -> list[str]:
    """A name for each layer: that of its cell, with its number if there are several; dropout is not numbered."""
    cells = [innermost(layer) for layer in layers]
    counted = [not isinstance(cell, Identity | Dropout) for cell in cells]
    numbers = [f"layer {sum(counted[: place + 1])} " if counts else "" for place, counts in enumerate(counted)]
    return [
        f"{number if len(cells) > 1 else ''}{type(cell).__name__}" for number, cell in zip(numbers, cells, strict=True)
    ]


def remembering(layers: Sequence[Layer], like: Tensor) -> list[int]:
    """The indices of the layers that have a floating-point state."""
    return [place for place, layer in enumerate(layers) if real(layer.initial_state(1, like))]


def real(state: State) -> list[tuple[str, Tensor]]:
    """The floating-point leaves, with their names, without those of an empty memory."""
    return [(name, leaf) for name, leaf in leaves(state) if leaf.is_floating_point() and 0 not in leaf.shape[1:]]


def ready(
    who: str, layer: AnyLayer, xs: Tensor, dtype: torch.dtype | None, shortest: int = 2
) -> tuple[AnyLayer, Tensor]:
    """A copy of the layer in eval mode without parameter gradients, and the inputs, both in `dtype`.

    Both are on the CPU if `dtype` is float64 and their device does not support it.

    Raises:
        TypeError: the inputs are not a floating-point tensor.
        ValueError: inputs of another shape, or fewer than `shortest` steps.
    """
    if not isinstance(xs, Tensor) or not xs.is_floating_point():
        came = xs.dtype if isinstance(xs, Tensor) else type(xs).__name__
        raise TypeError(f"{who}: xs should be a floating-point tensor, but is {came}; embed tokens first")
    if xs.dim() != 3 or xs.shape[2] != layer.input_size or len(xs) == 0:
        raise ValueError(
            f"{who}: xs should be (batch ≥ 1, time, {layer.input_size}) for {type(layer).__name__}, but is "
            f"{tuple(xs.shape)}"
        )
    if xs.shape[1] < shortest:
        raise ValueError(
            f"{who}: at least {shortest} steps are needed, but xs has {xs.shape[1]}; give a longer sequence"
        )
    dtype, body = dtype or xs.dtype, copy.deepcopy(layer)
    if dtype == torch.float64 and not processor.has_float64(xs.device):
        body, xs = body.cpu(), xs.cpu()
    return body.to(dtype).eval().requires_grad_(False), xs.detach().to(dtype)


def as_wide(values: Tensor) -> Tensor:
    """The values in float64, on the CPU if their device does not support it."""
    return values.double() if processor.has_float64(values.device) else values.cpu().double()


def check_causal(who: str, layer: Layer) -> Cell:
    """The layer, if it is a `Cell`.

    Raises:
        TypeError: it is acausal, so that no state separates earlier from later steps.
    """
    if not isinstance(layer, Cell):
        raise TypeError(
            f"{who}: expected a Cell, but {type(layer).__name__} is acausal: it has no single state between one step "
            "and the next. Take a cell in it (a Bidirectional's .forward_cell), or `sensitivity`, for any layer"
        )
    return layer


def walk(cell: Layer, x: Tensor, state: State, seen: list[Moment]) -> tuple[Tensor, State]:
    """One step, layer by layer; the result of each layer is appended to `seen`."""
    if plain_stack(cell):
        new = []
        for child, old in zip(cell.sublayers(), state, strict=True):
            x, end = walk(child, x, old, seen)
            new.append(end)
        return x, tuple(new)
    assert isinstance(cell, Cell)
    y, made = cell.step(x, state)
    moment = Moment(y, made, map_state(_node, made))
    seen.append(moment)
    return y, moment.state


def _node(leaf: Tensor) -> Tensor:
    """The values as a separate graph node that requires a gradient, even if no parameter or input leads to it."""
    node = leaf.view_as(leaf)
    if torch.is_grad_enabled() and node.is_floating_point() and not node.requires_grad:
        node.requires_grad_()
    return node


def follow(who: str, cell: Cell, xs: Tensor, state: State = None) -> list[list[Moment]]:
    """Every layer (the inner list) after every step, starting from `state` or the initial state.

    Raises:
        ValueError: a state is not finite; the message names the layer and the step.
    """
    state = cell.initial_state(len(xs), xs) if state is None else state
    moments = []
    for step, x in enumerate(xs.unbind(1), 1):
        seen: list[Moment] = []
        _, state = walk(cell, x, state, seen)
        check_finite(who, names(parts(cell)), seen, step, xs.shape[1])
        moments.append(seen)
    return moments


def directional(
    fn: Callable[..., tuple[Tensor, ...]], at: tuple[Tensor, ...], directions: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The derivative of each result of `fn` at `at` along `directions`, by forward differentiation."""
    with warnings.catch_warnings():
        # PyTorch loads its forward rules with a function that it has deprecated itself
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        slopes: tuple[Tensor, ...] = torch.func.jvp(fn, at, directions)[1]
    return slopes


def check_finite(who: str, called: Sequence[str], seen: Sequence[Moment], step: int, time: int) -> None:
    """Raise a ValueError if an output or a state is infinite or NaN."""
    for name, moment in zip(called, seen, strict=True):
        for leaf in (moment.output, *(leaf for _, leaf in real(moment.state))):
            if not bool(torch.isfinite(leaf).all()):
                raise ValueError(
                    f"{who}: {name} is not finite after step {step} of {time}: there the run explodes, or its inputs "
                    f"or parameters are not finite. Look at fewer than {step} steps, or at smaller weights"
                )
