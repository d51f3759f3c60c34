"""From a sequence to one vector."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from everstep.cell import Layer, scan
from everstep.no_steps import nothing
from everstep.state import State, valid
from everstep.wirings.bidirectional import Bidirectional
from everstep.wirings.stack import Stacked

Reduction = Literal["last", "sum", "mean", "max", "attention"]


class ReadOut(nn.Module):
    """Reduces a layer's outputs h_0 … h_{n-1}, with n the row's length, to one vector.

    "last": h_{n-1}. For a `Bidirectional` layer, alone or on top of an `EncoderStack`, the last output of each
    direction: step n − 1 of the forward cell and step 0 of the backward cell, merged as the layer does.
    "sum", "mean", "max": over the steps, for each feature.
    "attention": Σ_t a_t h_t with a = softmax_t(v · tanh(W h_t + b)), W square (Yang 2016, "Hierarchical attention
    networks for document classification"; the score is that of Bahdanau 2015).
    A row of length 0 gives zeros.

    >>> from everstep import GRU, Bidirectional
    >>> classify = ReadOut(Bidirectional(GRU(3, 4), GRU(3, 4)), "max")
    >>> y, state = classify(torch.zeros(2, 7, 3), lengths=torch.tensor([7, 0]))
    >>> y.shape
    torch.Size([2, 8])

    The result is not a sequence, so this is not a `Layer`: put `torch.nn.Linear` or a head on top. A row is one
    sequence: resets are not supported.

    Args:
        layer: any cell or wiring.
        reduce: one of those names.
        device, dtype: of the parameters of attention: `score`, W and b, and `score_out`, v.

    Attributes:
        input_size: features of each x_t.
        output_size: features of the vector, the layer's output_size.

    Raises:
        ValueError: another `reduce`.
        TypeError: `layer` is not a layer.
    """

    def __init__(
        self,
        layer: Layer,
        reduce: Reduction,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(layer, Layer):
            raise TypeError(f"ReadOut: expected a Cell or a wiring, but got {type(layer).__name__}")
        if reduce not in get_args(Reduction):
            raise ValueError(f"ReadOut: reduce should be one of {', '.join(get_args(Reduction))}, but is {reduce!r}")
        self.layer, self.reduce = layer, reduce
        self.input_size, self.output_size = layer.input_size, layer.output_size
        if reduce == "attention":
            size = self.output_size
            self.score = nn.Linear(size, size, device=device, dtype=dtype)
            self.score_out = nn.Linear(size, 1, bias=False, device=device, dtype=dtype)

    def forward(
        self, xs: Tensor, state: State = None, *, lengths: Tensor | None = None, backend: str = "auto"
    ) -> tuple[Tensor, State]:
        """Run the layer and read it out.

        Args:
            xs, state, lengths, backend: as for `everstep.scan`.

        Returns:
            The vector (batch, output_size), and the layer's final state.
        """
        layer, top = _parted(self.layer) if self.reduce == "last" else (self.layer, None)
        ys, final = scan(layer, xs, state, lengths=lengths, backend=backend)
        if ys.shape[1] == 0:
            return nothing(ys, (ys.shape[0], self.output_size), self.parameters()), final
        if self.reduce == "last":
            ends = _last(ys, lengths)
            return ends if top is None else _merged(top, ends, ys[:, 0]), final
        return self._over_time(ys, lengths), final

    def attention(self, xs: Tensor, lengths: Tensor | None = None) -> Tensor | None:
        """The weight of each step, (batch, time), summing to 1 over a row's steps; None unless "attention"."""
        if self.reduce != "attention" or xs.shape[1] == 0:
            return None
        ys, _ = scan(self.layer, xs, None, lengths=lengths)
        return self._weights(ys, _outside(ys, lengths))[..., 0]

    def _weights(self, ys: Tensor, out: Tensor) -> Tensor:
        scores: Tensor = self.score_out(torch.tanh(self.score(ys)))
        return scores.masked_fill(out, -torch.inf).softmax(1)

    def _over_time(self, ys: Tensor, lengths: Tensor | None) -> Tensor:
        if self.reduce == "sum":  # padding is zeros already
            return ys.sum(1)
        if self.reduce == "mean":
            return ys.sum(1) / (ys.shape[1] if lengths is None else lengths.clamp(min=1)[:, None])
        # an empty row uses all its steps, which are zeros: a maximum or a softmax over no steps would not be finite
        out = _outside(ys, lengths)
        if self.reduce == "max":
            return ys.masked_fill(out, -torch.inf).amax(1)
        return (self._weights(ys, out) * ys).sum(1)

    def extra_repr(self) -> str:
        return f"reduce={self.reduce}"


def _outside(ys: Tensor, lengths: Tensor | None) -> Tensor:
    """The steps to leave out, (batch, time, 1)."""
    if lengths is None:
        return ys.new_zeros(1, 1, 1, dtype=torch.bool)
    beyond = ~valid(lengths, ys.shape[1])
    return (beyond & (lengths > 0)[:, None])[..., None]


def _last(ys: Tensor, lengths: Tensor | None) -> Tensor:
    """The output of each row's last step; for an empty row that of step 0, which is zeros."""
    if lengths is None:
        return ys[:, -1]
    return ys[torch.arange(ys.shape[0], device=ys.device), (lengths.long() - 1).clamp(min=0)]


def _parted(layer: Layer) -> tuple[Layer, Bidirectional | None]:
    """The same layer with the directions of a bidirectional top concatenated, so that they can be separated."""
    if isinstance(layer, Bidirectional):
        if layer.merge == "concat":
            return layer, layer
        parted = copy.copy(layer)  # with its hooks
        parted.merge, parted.output_size = "concat", layer.forward_cell.output_size + layer.backward_cell.output_size
        return parted, layer
    if isinstance(layer, Stacked):
        *below, top = layer.sublayers()
        upper, both = _parted(top)
        if upper is top:
            return layer, both
        if both is not None:
            whole = copy.copy(layer)
            # `torch.export` makes `_modules` a property, which cannot be set
            vars(whole)["_modules"] = {**layer._modules, "layers": nn.ModuleList([*below, upper])}
            whole.output_size = upper.output_size
            return whole, both
    return layer, None


def _merged(layer: Bidirectional, ends: Tensor, starts: Tensor) -> Tensor:
    """The forward half of `ends` and the backward half of `starts`, as `layer` merges them."""
    ahead, back = ends[:, : layer.forward_cell.output_size], starts[:, layer.forward_cell.output_size :]
    if layer.merge == "concat":
        return torch.cat([ahead, back], -1)
    return (ahead + back) / 2 if layer.merge == "mean" else ahead + back
