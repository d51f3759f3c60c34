"""Cells that equal `torch.nn.LSTM`, `GRU` or `RNN` run on PyTorch's own kernels (oneDNN, cuDNN, MIOpen)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everstep.abstract import AbstractCell, AbstractGated
from everstep.backends import reference
from everstep.backends.protocol import Refusal, Run
from everstep.native import processor
from everstep.native.plain_memory import jitted, transformed
from everstep.state import State, leaves, select, unflatten, where

name = "vendor"


def prepare(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> Run | Refusal:
    """The run of a PyTorch kernel, or the reason why there is none."""
    reason = refusal(cell, xs, lengths, resets)
    return Refusal(reason) if reason is not None else lambda state: _run(cell, xs, state, lengths, resets)


def refusal(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """The reason why this cell cannot run on a PyTorch kernel, or None."""
    if not isinstance(cell, AbstractGated) or cell.vendor_kernel() is None:
        return "its step is none of torch.nn.LSTM, GRU, RNN"
    if not cell.steps_as_declared():
        return f"{type(cell).__name__} has a step of its own"
    if not isinstance(xs, Tensor):
        return "its steps take more than one input"
    if xs.is_meta and (lengths is not None or resets is not None):
        return "xs is on meta, where lengths and resets have no numbers to pack by"
    if jitted() and (lengths is not None or resets is not None):
        return "it is being traced by torch.jit, which would keep the lengths and resets of this call"
    return transformed()


def slower(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """None: no other backend was measured to be faster for the supported cells."""
    return None


def has_autocast_lstm() -> bool:
    """Whether oneDNN has the LSTM that `torch.lstm` calls under the current autocast on a CPU.

    PyTorch checks this for the dtype of the inputs before autocast converts them; with float32 inputs it therefore
    fails if there is none.
    """
    dtype = torch.get_autocast_dtype("cpu")
    return processor.onednn(dtype) and not (dtype == torch.float16 and torch.is_grad_enabled())


def _run(
    cell: AbstractCell, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """One dense call if there are no lengths and resets; else one packed call over the segments between resets."""
    assert isinstance(cell, AbstractGated)
    if lengths is not None and bool((lengths == xs.shape[1]).all()):
        lengths = None
    if lengths is None and resets is not None and not bool(resets[:, 1:].any()):
        state = where(resets[:, 0], cell.initial_state(len(xs), xs), state)
        resets = None
    if lengths is None and resets is None:
        return _kernel(cell, xs, None, state)
    return _segments(cell, xs, state, lengths, resets)


def _kernel(cell: AbstractGated, data: Tensor, batch_sizes: Tensor | None, state: State) -> tuple[Tensor, State]:
    """Call the kernel on (batch, time, features), or on packed data with its batch sizes."""
    parameters = [p for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh) if p is not None]
    if data.is_cpu and torch.is_autocast_enabled("cpu") and cell.vendor_kernel() == "lstm" and not has_autocast_lstm():
        data = data.to(torch.get_autocast_dtype("cpu"))  # so that PyTorch's check fails and its own loop runs
    if data.is_cuda:
        parameters = _in_one_piece(parameters)
    biases = len(parameters) == 4
    kernel: Any = getattr(torch, cell.vendor_kernel() or "")
    hx = [leaf.unsqueeze(0) for _, leaf in leaves(state)]
    start = hx if len(hx) > 1 else hx[0]
    # the kernel stores what backward needs only in training mode; `cell.training` does not imply gradients
    # (a trace of torch.jit is called for both)
    train = torch.is_grad_enabled() or jitted()
    if batch_sizes is None:
        ys, *final = kernel(data, start, parameters, biases, 1, 0.0, train, False, True)
    else:
        ys, *final = kernel(data, batch_sizes, start, parameters, biases, 1, 0.0, train, False)
    return ys, unflatten(state, [leaf.squeeze(0) for leaf in final])


def _in_one_piece(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Weights and biases in one piece of memory, as cuDNN needs them; else it copies them itself, with a warning."""
    if len(parameters) == 2:
        none = parameters[0].new_zeros(len(parameters[0]))
        parameters = [*parameters, none, none]
    flat = torch.cat([p.flatten() for p in parameters])
    pieces = flat.split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]


def _segments(
    cell: AbstractGated, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """Cut every row at its resets, and run the segments, longest first, as the sequences of one packed call."""
    batch, time = xs.shape[:2]
    if lengths is None:
        lengths = torch.full((batch,), time, device=xs.device)
    steps = torch.arange(time, device=xs.device)
    live = steps < lengths[:, None]
    starts = live & (steps == 0) if resets is None else live & ((steps == 0) | resets)
    row, first = starts.nonzero(as_tuple=True)
    if len(row) == 0:  # no steps: zeros with zero gradients
        return reference.run(cell, xs, state, lengths, resets)
    last_of_row = torch.cat([row[1:] != row[:-1], row.new_ones(1, dtype=torch.bool)])
    stop = torch.where(last_of_row, lengths[row], torch.cat([first[1:], first[:1]]))
    size, order = (stop - first).sort(descending=True, stable=True)
    row, first, last_of_row = row[order], first[order], last_of_row[order]

    carried = first == 0 if resets is None else (first == 0) & ~resets[row, 0]
    start = where(carried, select(state, row), cell.initial_state(len(row), xs))

    within = torch.arange(int(size[0]), device=xs.device)[:, None]
    used = within < size
    places = (row * time + first + within)[used]
    packed, final = _kernel(cell, xs.flatten(0, 1).index_select(0, places), used.sum(1).cpu(), start)

    ys = packed.new_zeros(batch * time, cell.output_size).index_copy(0, places, packed).unflatten(0, (batch, time))
    done = [
        old.to(new.dtype).index_copy(0, row[last_of_row], new[last_of_row])
        for (_, old), (_, new) in zip(leaves(state), leaves(final), strict=True)
    ]
    return ys, unflatten(state, done)
