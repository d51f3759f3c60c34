"""PyTorch modules without a time dimension, applied at every step."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer, check_size
from everstep.state import State, valid
from everstep.wirings.memoryless import Memoryless

_OTHERS = (Layer, nn.ModuleList, nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag)


class TimeDistributed(Memoryless):
    """y_t = module(x_t): a module of PyTorch at every step, on its own, with no state.

    `Stack` and `EncoderStack` wrap modules that are not everstep layers in it automatically.

    >>> from everstep import GRU, Stack
    >>> cell = Stack(GRU(8, 16), torch.nn.Linear(16, 3), torch.nn.LogSoftmax(-1))
    >>> cell(torch.zeros(2, 7, 8))[0].shape
    torch.Size([2, 7, 3])

    Args:
        module: maps rows (n, input_size) to rows (n, output_size), each independently. One call gets all steps of all
            sequences as rows, without padding.
        input_size: features of x_t; that of the first `Linear` or norm inside if None.

    Raises:
        TypeError: a module that takes sequences or tokens, or does not return such rows.
        ValueError: a module whose input_size cannot be inferred, or one that mixes rows.
    """

    def __init__(self, module: nn.Module, input_size: int | None = None):
        who = f"TimeDistributed: {type(module).__name__}"
        if not isinstance(module, nn.Module) or isinstance(module, _OTHERS):
            raise TypeError(f"{who} is no module for single steps; {remedy(module)}")
        found = _features(module) if input_size is None else input_size
        if found is None:
            raise ValueError(f"{who} does not say how many features it takes; give input_size")
        super().__init__()
        self.input_size = check_size(self, "input_size", found)
        self.output_size = _width(module, self.input_size, who)
        self.module = module

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y = module(x)."""
        return self.module(x), state

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """All steps in one call, without the padding."""
        if lengths is None:
            return self.module(xs.flatten(0, 1)).unflatten(0, xs.shape[:2]), state
        live = valid(lengths, xs.shape[1])
        if type(live) is not Tensor:  # one that is traced, and has no numbers to pick rows by
            every = self.module(xs.flatten(0, 1)).unflatten(0, xs.shape[:2])
            return torch.where(live[..., None], every, 0), state
        rows = self.module(xs[live])
        ys = rows.new_zeros(*xs.shape[:2], rows.shape[1])
        ys[live] = rows
        return ys, state


def remedy(module: object) -> str:
    """What to use instead of an object that is not a layer."""
    name = type(module).__name__
    if isinstance(module, nn.RNNBase):
        return f"everstep.from_torch turns an nn.{name} into a layer"
    if isinstance(module, nn.RNNCellBase):
        return f"write a Cell whose step calls the nn.{name}, or take everstep.{name.removesuffix('Cell')}"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embed the tokens first, and give the layers the vectors"
    if isinstance(module, Layer):
        return "it is a layer already"
    if isinstance(module, list | tuple | nn.ModuleList):
        return "give the layers one by one, as in Stack(*cells)"
    if isinstance(module, nn.Module):
        return f"TimeDistributed({name}(…)) makes a cell of a module that takes one step by itself"
    return "give a Cell or a wiring"


def check_cell(who: str, cell: object) -> None:
    """Raise a TypeError that names `who` and a remedy if `cell` is not a `Cell`."""
    if isinstance(cell, Layer) and not isinstance(cell, Cell):
        raise TypeError(f"{who}: {type(cell).__name__} is no Cell (it cannot be stepped)")
    if not isinstance(cell, Cell):
        raise TypeError(f"{who}: {type(cell).__name__} is no Cell; {remedy(cell)}")


def as_layers(who: str, given: Sequence[object]) -> list[Layer]:
    """The layers, with other modules wrapped in `TimeDistributed`, with the output size of the layer below if needed.

    Raises:
        TypeError, ValueError: an object that is neither a layer nor such a module.
    """
    layers: list[Layer] = []
    for place, one in enumerate(given):
        if not isinstance(one, Layer):
            if not isinstance(one, nn.Module) or isinstance(one, _OTHERS):
                raise TypeError(f"{who}: layer {place} is a {type(one).__name__}; {remedy(one)}")
            size = _features(one)
            one = TimeDistributed(one, layers[-1].output_size if size is None and layers else size)
        layers.append(one)
    return layers


def _features(module: nn.Module) -> int | None:
    """The input size of the first inner module that declares one."""
    for inner in module.modules():
        if isinstance(inner, nn.Linear) and not isinstance(inner, nn.LazyLinear):
            return inner.in_features
        if isinstance(inner, nn.LayerNorm | nn.RMSNorm):
            return inner.normalized_shape[-1]
        if isinstance(inner, nn.BatchNorm1d):
            return inner.num_features
    return None


def _width(module: nn.Module, size: int, who: str) -> int:
    """The number of output features, found by running a copy on a few rows."""
    trial = copy.deepcopy(module).eval()
    like = next((t for t in (*trial.parameters(), *trial.buffers()) if t.is_floating_point()), torch.zeros(0))
    rows = torch.linspace(-1, 1, 3 * size).view(3, size).to(like.device, like.dtype)
    try:
        with torch.no_grad():
            ys, alone = trial(rows), trial(rows[:1])
    except Exception as error:  # modules may raise any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TypeError(f"{who} cannot take rows of shape (3, {size}): {reason}") from error
    if not isinstance(ys, Tensor) or ys.dim() != 2 or len(ys) != 3:
        came = f"shape {tuple(ys.shape)}" if isinstance(ys, Tensor) else type(ys).__name__
        raise TypeError(f"{who} should give rows (3, features) for rows (3, {size}), but gives {came}")
    if not ys.is_meta and not torch.allclose(ys[:1].float(), alone.float(), 1e-3, 1e-4, equal_nan=True):
        raise ValueError(f"{who} sets rows against one another, but each step of each sequence is one of its own")
    return ys.shape[1]
