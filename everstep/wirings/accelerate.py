"""Run `torch.nn.LSTM`, `GRU` and `RNN` inside any model on the compiled engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import _VF, Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import rnn

from everstep.backends.fused import backend as fused
from everstep.backends.protocol import Refusal
from everstep.cell import Cell
from everstep.cells import GRU, LSTM, RNN, ProjectedLSTM
from everstep.native.plain_memory import plain
from everstep.state import flip


def accelerate(model: nn.Module, *, undo: bool = False) -> nn.Module:
    """Run every `nn.LSTM`, `nn.GRU` and `nn.RNN` in `model` on everstep's compiled engine; changes `model` in place.

    Only the class of these modules changes, to a subclass that compares equal to the original class, so that look-ups
    by type still find them (`quantize_dynamic`, `type(m) == nn.LSTM`; but not `type(m) is nn.LSTM`). Parameters, their
    names, `state_dict`, hooks and options stay, and results are equal up to rounding. Dropout between layers draws
    different masks than PyTorch.

    >>> tagger = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(3, 5, bidirectional=True), "out": torch.nn.Linear(10, 2)})
    >>> accelerate(tagger)["rnn"]
    AcceleratedLSTM(3, 5, bidirectional=True)
    >>> isinstance(tagger["rnn"], torch.nn.LSTM)
    True

    PyTorch's own code runs where the engine cannot: on devices other than the CPU, under autocast, for dtypes other
    than float32 and float64, for empty inputs, inside `torch.func` transforms, `torch.device(...)` and other modes,
    while a model is scripted, traced, compiled or exported, and without a C++ compiler. It also runs where it measured
    faster: over fewer than 3 steps (5 in an RNN; 8 in a small LSTM in training). Subclasses of the three are left
    alone, since they may override forward. A model pickled whole needs everstep to load.

    Args:
        model: any module; it may be one of the three itself.
        undo: put the original classes back.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: expected an nn.Module, but got {type(model).__name__}")
    pairs = [(new, old) if undo else (old, new) for old, new in _CLASSES.items()]
    found = [(module, new) for module in model.modules() for old, new in pairs if type(module) is old]
    for module, new in found:
        module.__class__ = new
    verb = "put back" if undo else "accelerated"
    logging.getLogger("everstep").info("%s %d modules in %s", verb, len(found), type(model).__name__)
    return model


def _native() -> bool:
    """Whether the operations are being observed or modified (traced, compiled, dispatched, given a default device)."""
    modes = torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack()
    return modes > 0 or torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()


class _Swapped:
    def __prepare_scriptable__(self) -> nn.Module:
        """For `torch.jit.script`: the original module, with the same parameters."""
        assert isinstance(self, nn.Module)
        return accelerate(self, undo=True)


class _StandsFor(type):
    """Metaclass of classes that compare equal to the one they replace, so that look-ups by type find the original's
    entry (`type(m) == nn.LSTM`; `torch.ao.quantization.quantize_dynamic`, which would otherwise skip the module)."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or cls.__bases__[-1] is other

    def __hash__(cls) -> int:
        return hash(cls.__bases__[-1])


class AcceleratedLSTM(_Swapped, nn.LSTM, metaclass=_StandsFor):
    """`nn.LSTM` on the compiled engine: see `accelerate`."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx) if _native() else _forwards[nn.LSTM](self, input, hx)


class AcceleratedGRU(_Swapped, nn.GRU, metaclass=_StandsFor):
    """`nn.GRU` on the compiled engine: see `accelerate`."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx) if _native() else _forwards[nn.GRU](self, input, hx)


class AcceleratedRNN(_Swapped, nn.RNN, metaclass=_StandsFor):
    """`nn.RNN` on the compiled engine: see `accelerate`."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx) if _native() else _forwards[nn.RNN](self, input, hx)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: AcceleratedLSTM,
    nn.GRU: AcceleratedGRU,
    nn.RNN: AcceleratedRNN,
}


def _kernel(kind: str) -> Any:
    """The replacement of PyTorch's kernel of this name: same arguments, same results."""
    original = getattr(_VF, kind)

    def run(*arguments: Any) -> Any:
        dense = isinstance(arguments[2], list)
        found = _dense(kind, *arguments) if dense else _packed(kind, *arguments)
        return original(*arguments) if found is None else found

    return run


# PyTorch's own forwards with only the kernels replaced, which keeps all checks, messages and conventions
_kernels = SimpleNamespace(**{kind: _kernel(kind) for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")})
_forwards: dict[type, Any] = {
    kind: FunctionType(kind.forward.__code__, {**vars(rnn), "_VF": _kernels}, argdefs=kind.forward.__defaults__)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
}


def _dense(kind: str, xs: Tensor, hx: Any, weights: list[Any], *options: Any) -> tuple[Tensor, ...] | None:
    """Like `torch.lstm` and the others on rows of equal length; None if the engine cannot run it or is slower."""
    *how, batch_first = options
    call = _Call(kind, hx, weights, *how)
    if xs.dim() != 3 or not call.takes(xs, xs.shape[0 if batch_first else 1], xs.shape[1 if batch_first else 0], False):
        return None
    if batch_first:
        return call.run(xs, None)
    found = call.run(xs.transpose(0, 1), None)
    return None if found is None else (found[0].transpose(0, 1).contiguous(), *found[1:])


def _packed(
    kind: str, data: Tensor, sizes: Tensor, hx: Any, weights: list[Any], *options: Any
) -> tuple[Tensor, ...] | None:
    """The same on a packed sequence, which has `sizes[t]` rows at step t."""
    call = _Call(kind, hx, weights, *options)
    if data.dim() != 2 or not call.takes(data, int(sizes[0]), len(sizes), True):
        return None
    row = torch.arange(int(sizes[0]), device="cpu")
    present = row[:, None] < sizes  # (batch, time): which steps exist
    into = (row[:, None] + sizes.cumsum(0) - sizes) * present  # their positions in `data`; arbitrary for the others
    xs = data.index_select(0, into.flatten()).view(*present.shape, -1)
    found = call.run(xs, present.sum(1))
    if found is None:
        return None
    back = torch.arange(present.numel(), device="cpu").view_as(present).t()[present.t()]
    return found[0].flatten(0, 1).index_select(0, back), *found[1:]


class _Call:
    """One call of a kernel: all layers and directions.

    Args:
        kind: the kernel's name.
        hx: the initial state, (layers · directions, batch, features); a pair for "lstm".
        weights: of all cells, one after another.
    """

    def __init__(
        self,
        kind: str,
        hx: Any,
        weights: list[Any],
        bias: bool,
        layers: int,
        dropout: float,
        training: bool,
        both: bool,
    ):
        self.kind, self.weights, self.bias, self.layers = kind, weights, bias, layers
        self.states: tuple[Any, ...] = tuple(hx) if kind == "lstm" else (hx,)
        self.dropout = dropout if training else 0.0
        self.directions = 2 if both else 1
        self.each = len(weights) // (layers * self.directions)
        self.projected = kind == "lstm" and self.each % 2 == 1

    def takes(self, xs: Tensor, batch: int, time: int, packed: bool) -> bool:
        """Whether the engine supports these tensors and is faster."""
        tensors = (xs, *self.states, *self.weights)
        if not plain(*tensors) or any(t.dtype != xs.dtype or not t.is_cpu for t in tensors):
            return False
        if xs.numel() == 0 or torch.is_autocast_enabled("cpu"):
            return False
        output = self.weights[1].shape[1]
        sizes = (output, self.weights[-1].shape[1]) if self.projected else (output, output)
        for state, size in zip(self.states, sizes, strict=False):
            if state.shape != (self.layers * self.directions, batch, size):
                return False
        whole = xs.dtype == torch.float32 and not packed and not self.projected
        return not fused.outrun(self.kind, output, time, whole)

    def run(self, xs: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...] | None:
        """Over (batch, time, features): outputs and final states; None if the engine refuses."""
        starts = list(zip(*(state.unbind(0) for state in self.states), strict=True))
        finals = []
        for layer in range(self.layers):
            if layer and self.dropout:
                xs = F.dropout(xs, self.dropout)
            outputs = []
            for direction in range(self.directions):
                place = layer * self.directions + direction
                weights = self.weights[place * self.each : (place + 1) * self.each]
                turned = flip(xs, lengths) if direction else xs
                found = _one(self.kind, turned, lengths, starts[place], weights, self.bias)
                if found is None:
                    return None
                outputs.append(flip(found[0], lengths) if direction else found[0])
                finals.append(found[1])
            xs = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return xs, *(torch.stack(parts) for parts in zip(*finals, strict=True))


_idle: dict[Any, list[Cell]] = {}
"""For each shape, the cells that no call is using. They hold no parameters, only what the engine cached for them."""


def _ties(weights: Sequence[Tensor]) -> list[int]:
    """For each weight, the index of its first occurrence."""
    first: dict[int, int] = {}
    return [first.setdefault(id(w), k) for k, w in enumerate(weights)]


def _one(
    kind: str, xs: Tensor, lengths: Tensor | None, start: tuple[Tensor, ...], weights: Sequence[Tensor], bias: bool
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """One layer in one direction, by a cell that borrows the weights for this call."""
    shape = (kind, *(w.shape for w in weights), bias, *_ties(weights))
    idle = _idle.setdefault(shape, [])
    try:
        cell = idle.pop()
    except IndexError:
        cell = _cell(kind, xs.shape[2], start, bias)
        fused.assume_static(cell)
    names = list(cell._parameters)
    held: Any = cell._parameters
    try:
        held.update(zip([n for n in names if bias or not n.startswith("bias")], weights, strict=True))
        run = fused.prepare(cell, xs, lengths, None)
        if isinstance(run, Refusal):
            return None
        ys, final = run(start if len(start) > 1 else start[0])
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
