"""`torch.nn.LSTM`, `GRU` and `RNN` inside any model, run by the compiled engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import _VF, Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import rnn

from everstep.cell import Cell
from everstep.cells import GRU, LSTM, RNN, ProjectedLSTM
from everstep.scanning import flip, fused


def accelerate(model: nn.Module, *, undo: bool = False) -> nn.Module:
    """Let everstep's compiled engine run every `nn.LSTM`, `nn.GRU` and `nn.RNN` in `model`, which is changed in place.

    Nothing but the class of these modules changes, to a subclass: parameters, their names, `state_dict`, hooks and
    options stay, and the numbers are the same up to rounding. Dropout between layers draws other masks than PyTorch's.

    >>> tagger = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(3, 5, bidirectional=True), "out": torch.nn.Linear(10, 2)})
    >>> accelerate(tagger)["rnn"]
    AcceleratedLSTM(3, 5, bidirectional=True)
    >>> isinstance(tagger["rnn"], torch.nn.LSTM)
    True

    PyTorch's own code runs where the engine cannot: on other devices than the CPU, under autocast, for other dtypes
    than float32 and float64, for empty inputs, inside of `torch.func` transforms, while a model is scripted, traced,
    compiled or exported, and where there is no C++ compiler. Subclasses of the three are left as they are: they have a
    forward of their own. A model pickled whole needs everstep to be loaded.

    Args:
        model: any module; it may be one of the three itself.
        undo: put the original classes back.

    Returns:
        `model`.

    Raises:
        TypeError: what is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: expected an nn.Module, but {type(model).__name__} came")
    classes = {new: old for old, new in _CLASSES.items()} if undo else _CLASSES
    found = [module for module in model.modules() if type(module) in classes]
    for module in found:
        module.__class__ = classes[type(module)]
    verb = "put back" if undo else "accelerated"
    logging.getLogger("everstep").info("%s %d modules in %s", verb, len(found), type(model).__name__)
    return model


def _native() -> bool:
    """Whether someone looks at the operations themselves, not at what they compute."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


class _Swapped:
    def __prepare_scriptable__(self) -> nn.Module:
        """For `torch.jit.script`: the original module, with the same parameters."""
        assert isinstance(self, nn.Module)
        return accelerate(self, undo=True)


class AcceleratedLSTM(_Swapped, nn.LSTM):
    """`nn.LSTM` on the compiled engine: see `accelerate`."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx) if _native() else _forwards[nn.LSTM](self, input, hx)


class AcceleratedGRU(_Swapped, nn.GRU):
    """`nn.GRU` on the compiled engine: see `accelerate`."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx) if _native() else _forwards[nn.GRU](self, input, hx)


class AcceleratedRNN(_Swapped, nn.RNN):
    """`nn.RNN` on the compiled engine: see `accelerate`."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx) if _native() else _forwards[nn.RNN](self, input, hx)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: AcceleratedLSTM,
    nn.GRU: AcceleratedGRU,
    nn.RNN: AcceleratedRNN,
}


def _kernel(kind: str) -> Any:
    """What stands for PyTorch's kernel of this name: the same arguments, the same results."""
    original = getattr(_VF, kind)

    def run(*arguments: Any) -> Any:
        found = _dense(kind, *arguments) if isinstance(arguments[2], list) else _packed(kind, *arguments)
        return original(*arguments) if found is None else found

    return run


# PyTorch's own forwards, in which the kernels alone are replaced: all checks, messages and conventions are theirs
_kernels = SimpleNamespace(**{kind: _kernel(kind) for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")})
_forwards: dict[type, Any] = {
    kind: FunctionType(kind.forward.__code__, {**vars(rnn), "_VF": _kernels}, argdefs=kind.forward.__defaults__)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
}


def _dense(
    kind: str,
    xs: Tensor,
    hx: Any,
    weights: list[Any],
    bias: bool,
    layers: int,
    dropout: float,
    training: bool,
    both: bool,
    batch_first: bool,
) -> tuple[Tensor, ...] | None:
    """As `torch.lstm` and its like over rows of one length; None if the engine cannot."""
    if xs.dim() != 3:
        return None
    found = _run(
        kind, xs if batch_first else xs.transpose(0, 1), None, hx, weights, bias, layers, dropout * training, both
    )
    if found is None:
        return None
    ys, *final = found
    return (ys if batch_first else ys.transpose(0, 1).contiguous()), *final


def _packed(
    kind: str,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Any,
    weights: list[Any],
    bias: bool,
    layers: int,
    dropout: float,
    training: bool,
    both: bool,
) -> tuple[Tensor, ...] | None:
    """As `torch.lstm` and its like over a packed sequence; None if the engine cannot."""
    if data.dim() != 2 or len(data) == 0:
        return None
    present = torch.arange(int(batch_sizes[0]))[:, None] < batch_sizes  # (batch, time): which steps there are
    first = batch_sizes.cumsum(0) - batch_sizes
    inside = (first + torch.arange(len(present))[:, None]) * present  # where in the packed data
    xs = data.index_select(0, inside.flatten()).view(*present.shape, -1)
    found = _run(kind, xs, present.sum(1), hx, weights, bias, layers, dropout * training, both)
    if found is None:
        return None
    ys, *final = found
    steps = torch.arange(present.numel()).view_as(present).t()[present.t()]  # and back
    return ys.flatten(0, 1).index_select(0, steps), *final


def _run(
    kind: str,
    xs: Tensor,
    lengths: Tensor | None,
    hx: Any,
    weights: list[Any],
    bias: bool,
    layers: int,
    dropout: float,
    both: bool,
) -> tuple[Tensor, ...] | None:
    """All layers and directions over (batch, time, features): output and final states, or None."""
    states = list(hx) if kind == "lstm" else [hx]
    tensors = [xs, *states, *weights]
    if any(not isinstance(t, Tensor) or type(t) not in (Tensor, nn.Parameter) for t in tensors):
        return None
    plain = all(t.dtype == xs.dtype and t.device.type == "cpu" for t in tensors)
    if not plain or xs.numel() == 0 or torch.is_autocast_enabled("cpu"):
        return None
    directions = 2 if both else 1
    each = len(weights) // (layers * directions)
    sizes = [weights[1].shape[1]] if kind != "lstm" or each % 2 == 0 else [weights[1].shape[1], weights[-1].shape[1]]
    sizes = sizes * (len(states) // len(sizes))
    if any(s.shape != (layers * directions, len(xs), size) for s, size in zip(states, sizes, strict=True)):
        return None
    starts = [state.unbind(0) for state in states]
    finals = []
    for layer in range(layers):
        if layer and dropout:
            xs = F.dropout(xs, dropout)
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            mine = weights[place * each : (place + 1) * each]
            start = tuple(s[place] for s in starts)
            found = _one(kind, flip(xs, lengths) if direction else xs, lengths, start, mine, bias)
            if found is None:
                return None
            outputs.append(flip(found[0], lengths) if direction else found[0])
            finals.append(found[1])
        xs = torch.cat(outputs, -1) if both else outputs[0]
    return xs, *(torch.stack(parts) for parts in zip(*finals, strict=True))


_idle: dict[Any, list[Cell]] = {}
"""Cells for each shape that no call uses at the moment. They hold no parameters, only what the engine knows of them."""


def _one(
    kind: str, xs: Tensor, lengths: Tensor | None, start: tuple[Tensor, ...], weights: Sequence[Tensor], bias: bool
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """One layer in one direction, by a cell that borrows the weights for this call."""
    shape = (kind, *(w.shape for w in weights), bias)
    idle = _idle.setdefault(shape, [])
    try:
        cell = idle.pop()
    except IndexError:
        cell = _cell(kind, xs.shape[2], start, bias)
    names = list(cell._parameters)
    held: Any = cell._parameters
    try:
        held.update(zip([n for n in names if bias or not n.startswith("bias")], weights, strict=True))
        if fused.refuses(cell, xs, lengths, None) is not None:
            return None
        ys, final = fused.run(cell, xs, start if len(start) > 1 else start[0], lengths, None)
        return ys, final if len(start) > 1 else (final,)
    finally:
        held.update(dict.fromkeys(names))
        idle.append(cell)


def _cell(kind: str, input_size: int, start: tuple[Tensor, ...], bias: bool) -> Cell:
    hidden_size = start[-1].shape[1]
    how: dict[str, Any] = {"bias": bias, "device": "meta"}
    if kind == "lstm" and start[0].shape[1] != hidden_size:
        return ProjectedLSTM(input_size, hidden_size, start[0].shape[1], **how)
    if kind == "lstm":
        return LSTM(input_size, hidden_size, **how)
    if kind == "gru":
        return GRU(input_size, hidden_size, **how)
    return RNN(input_size, hidden_size, activation=torch.tanh if kind == "rnn_tanh" else torch.relu, **how)
