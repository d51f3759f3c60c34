"""Conversion from `torch.nn.LSTM`, `GRU` and `RNN` and back: same weights, same results."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from everstep.cell import Cell, Layer
from everstep.cells import GRU, LSTM, RNN, ProjectedLSTM
from everstep.wirings.bidirectional import Bidirectional
from everstep.wirings.regularise import Dropout
from everstep.wirings.stack import EncoderStack, Stack, Stacked

_NONLINEARITIES = {"tanh": torch.tanh, "relu": torch.relu}


def from_torch(module: nn.LSTM | nn.GRU | nn.RNN) -> Layer:
    """The same network in everstep, with copies of the weights: a cell, a `Stack`, or an `EncoderStack`.

    everstep is batch first, whatever the module's `batch_first`. Each layer's state is an entry of the stack's tuple
    (empty for a dropout), not a row of one tensor. With `proj_size`, the cells are `ProjectedLSTM`.

    >>> layer = from_torch(torch.nn.LSTM(3, 5, num_layers=2, dropout=0.1, batch_first=True))
    >>> layer.eval()(torch.zeros(2, 7, 3))[0].shape
    torch.Size([2, 7, 5])

    Raises:
        TypeError: any other module.
    """
    if not isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        raise TypeError(f"from_torch: expected nn.LSTM, nn.GRU or nn.RNN, but got {type(module).__name__}")
    layers: list[Layer] = []
    for depth in range(module.num_layers):
        if depth and module.dropout:
            layers.append(Dropout(layers[-1].output_size, module.dropout))
        cells = [_cell(module, depth, suffix) for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]]
        layers.append(Bidirectional(cells[0], cells[1]) if module.bidirectional else cells[0])
    whole = layers[0] if len(layers) == 1 else (EncoderStack if module.bidirectional else Stack)(*layers)
    return whole.train(module.training)


def _cell(module: Any, depth: int, suffix: str) -> Cell:
    width = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    size = module.input_size if depth == 0 else width
    weight = getattr(module, f"weight_ih_l{depth}{suffix}")
    options: dict[str, Any] = {"bias": module.bias, "device": weight.device, "dtype": weight.dtype}
    if isinstance(module, nn.RNN):
        options["activation"] = _NONLINEARITIES[module.nonlinearity]
    if module.proj_size:
        options["proj_size"] = module.proj_size
    kind: Any = LSTM if isinstance(module, nn.LSTM) else GRU if isinstance(module, nn.GRU) else RNN
    cell: Cell = (ProjectedLSTM if module.proj_size else kind)(size, module.hidden_size, **options)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            source = getattr(module, f"{name}_l{depth}{suffix}")
            parameter.copy_(source)
            parameter.requires_grad_(source.requires_grad)
    return cell


def to_torch(layer: Layer, *, batch_first: bool = True) -> nn.LSTM | nn.GRU | nn.RNN:
    """The equivalent `torch.nn` module, with copies of the weights.

    Takes an LSTM, ProjectedLSTM, GRU or RNN cell, or what `from_torch` returns: a stack of cells of one kind, or of
    `Bidirectional` pairs of them, with the same `Dropout` between all layers or none.

    Raises:
        ValueError: anything without an equivalent in `torch.nn`; the message says what.
    """
    parts = list(layer.sublayers()) if isinstance(layer, Stacked) else [layer]
    rows = [part for part in parts if not isinstance(part, Dropout)]
    dropout = _common_dropout(parts)
    pairs = [(part.forward_cell, part.backward_cell) if isinstance(part, Bidirectional) else (part,) for part in rows]
    cells = [_vendor_cell(cell) for pair in pairs for cell in pair]
    first = cells[0]
    both = isinstance(rows[0], Bidirectional)
    alike = {(type(c), c.hidden_size, c.output_size, c.bias_ih is None, _nonlinearity(c)) for c in cells}
    if len(alike) > 1 or any(
        isinstance(r, Bidirectional) != both or getattr(r, "merge", "concat") != "concat" for r in rows
    ):
        raise ValueError(
            "to_torch: all layers should be of one kind, size, bias and direction, merged by concatenation"
        )
    kinds: dict[type, Any] = {LSTM: nn.LSTM, ProjectedLSTM: nn.LSTM, GRU: nn.GRU, RNN: nn.RNN}
    options: dict[str, Any] = {"nonlinearity": _nonlinearity(first)} if type(first) is RNN else {}
    if type(first) is ProjectedLSTM:
        options["proj_size"] = first.output_size
    module = kinds[type(first)](
        first.input_size,
        first.hidden_size,
        num_layers=len(rows),
        bias=first.bias_ih is not None,
        batch_first=batch_first,
        dropout=dropout,
        bidirectional=both,
        device=first.weight_ih.device,
        dtype=first.weight_ih.dtype,
        **options,
    )
    with torch.no_grad():
        for depth, pair in enumerate(pairs):
            for cell, suffix in zip(pair, ("", "_reverse"), strict=False):
                for name, parameter in cell.named_parameters():
                    target = getattr(module, f"{name}_l{depth}{suffix}")
                    target.copy_(parameter)
                    target.requires_grad_(parameter.requires_grad)
    module.train(layer.training)
    return module  # type: ignore[no-any-return]


def _vendor_cell(layer: Any) -> Any:
    known = type(layer) in (LSTM, GRU, RNN) and layer.vendor_kernel() is not None
    if not known and type(layer) is not ProjectedLSTM:
        raise ValueError(f"to_torch: torch.nn has no module for {layer}")
    return layer


def _nonlinearity(cell: Any) -> str | None:
    return str(cell.vendor_kernel()).removeprefix("rnn_") if type(cell) is RNN else None


def _common_dropout(parts: list[Layer]) -> float:
    """The dropout of a stack laid out as layer, dropout, layer, …; 0 if it has none."""
    between = [part.p for part in parts if isinstance(part, Dropout)]
    if not between:
        return 0.0
    regular = all(isinstance(part, Dropout) == (place % 2 == 1) for place, part in enumerate(parts))
    if not regular or len(parts) % 2 == 0 or len(set(between)) > 1:
        raise ValueError("to_torch: torch.nn drops between layers only, with one probability; this stack differs")
    return between[0]
