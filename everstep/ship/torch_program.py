"""Forms as programs of `torch.export`, for PyTorch without everstep."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan_op
from torch.func import functional_call

from everstep.abstract import AbstractCell
from everstep.backends import reference
from everstep.backends.dispatch import taking
from everstep.networks.forms import Form, Named
from everstep.ship import export_folder as folder
from everstep.ship.checking import checked
from everstep.ship.sizes import NotExported
from everstep.state import State, leaves, unflatten, valid, where
from everstep.tracing.trace import evaluating, is_free

_SIZES = (3, 5, 7, 11, 13, 17)
"""Of the example, by dynamic size; 1 would fix it."""


class _Program(nn.Module):
    """A form as a module: (inputs by name, leaves of the state) to (outputs by name, leaves of the new state)."""

    def __init__(self, form: Form, like: State):
        super().__init__()
        self.model = form.model
        self._run, self._like = form.run, (like,)  # a tuple keeps a tensor from becoming a buffer

    def forward(self, given: Named, state: tuple[Tensor, ...]) -> tuple[Named, tuple[Tensor, ...]]:
        with taking(_looped):
            outputs, new = self._run(given, unflatten(self._like[0], state))
        return outputs, tuple(leaf for _, leaf in leaves(new))


class _Stepped(nn.Module):
    """One step of a cell on the leaves of state and x, and a mask of the rows that are not over yet, if any."""

    def __init__(self, cell: AbstractCell, xs: Any, state: State):
        super().__init__()
        self.cell = cell
        self._nests = (xs, state)

    def forward(self, *given: Tensor) -> list[Tensor]:
        xs, like = self._nests
        many, read = len(leaves(like)), len(leaves(xs))
        state, x = unflatten(like, given[:many]), unflatten(xs, given[many : many + read])
        y, new = self.cell.step(x, state)
        for live in given[many + read :]:
            y, new = where(live, y, torch.zeros_like(y)), where(live, new, state)
        found = (*(leaf for _, leaf in leaves(new)), y)
        return [leaf.clone(memory_format=torch.contiguous_format) for leaf in found]  # none may share its memory


def _looped(
    cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """A cell over a sequence as one `scan` of PyTorch, whose number of steps is free; a single step as it is.

    Raises:
        NotExported: `resets` are given.
    """
    if resets is not None:
        raise NotExported("it resets its state within a sequence")
    parts, before = ([leaf for _, leaf in leaves(nest)] for nest in (xs, state))
    time = parts[0].shape[1]
    if not before or (isinstance(time, int) and time == 1):
        return reference.run(cell, xs, state, lengths, resets)
    scanned = [*parts, *([] if lengths is None else [valid(lengths, time)])]
    step = _Stepped(cell, xs, state)
    weights = dict(chain(step.named_parameters(), step.named_buffers()))
    count = len(before) + len(scanned)

    def one(*given: Tensor) -> list[Tensor]:
        found: list[Tensor] = functional_call(step, dict(zip(weights, given[count:], strict=True)), given[:count])
        return found

    found = scan_op(one, before, [leaf.transpose(0, 1) for leaf in scanned], tuple(weights.values()))
    *new, ys = found
    return ys.transpose(0, 1), unflatten(state, list(new))


class TorchProgram:
    """A file of `torch.export`, opened.

    Args:
        data: the content of the file.
    """

    def __init__(self, data: bytes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def run(self, given: Mapping[str, Tensor], state: Sequence[Tensor]) -> tuple[Named, tuple[Tensor, ...]]:
        """Inputs by name and the leaves of the state to outputs by name and the new leaves."""
        outputs, new = self._module(dict(given), tuple(state))
        return outputs, new


def written(form: Form) -> bytes:
    """The file of a form. Its sizes with names, such as those of batch and time, are dynamic, but never 0.

    Raises:
        NotExported: `torch.export` cannot follow the form or fixes a size, or its state has dynamic sizes beside the
            batch.
    """
    if form.before is None and any(is_free(leaf) for _, leaf in leaves(form.initial(1))):
        raise NotExported("its state has dynamic sizes, such as the memory of attention, beside the batch")
    sizes = _example(form)
    free = {name: torch.export.Dim(name, min=1) for name in sizes}
    given, like = _drawn(form, sizes)
    state = _parts(like)
    shapes = (
        {name: _dynamic(one.dims, free) for name, one in form.inputs.items()},
        tuple(_dynamic(dims, free) for dims in _named(state, _parts(_drawn(form, _others(sizes))[1]), sizes)),
    )
    file = io.BytesIO()
    with evaluating(form.model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(_Program(form, like), (given, state), dynamic_shapes=shapes)
            torch.export.save(program, file)
        except NotExported:
            raise
        except Exception as error:  # of any kind: the exporter documents none
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise NotExported(f"torch.export cannot follow it: {reason}") from error
    return file.getvalue()


def _example(form: Form) -> dict[str, int]:
    return dict(zip(form.sizes(), _SIZES, strict=False))


def _others(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size + 1 for name, size in sizes.items()}


@torch.no_grad()
def _drawn(form: Form, sizes: Mapping[str, int]) -> tuple[Named, State]:
    """Random inputs of these sizes, and a state before the first step."""
    random = torch.Generator().manual_seed(0)
    given = {name: one.drawn(sizes, random) for name, one in form.inputs.items()}
    with evaluating(form.model), taking(reference.run):
        return given, form.begun(sizes, random)


def _parts(state: State) -> tuple[Tensor, ...]:
    return tuple(leaf.contiguous() for _, leaf in leaves(state))


def _named(some: Sequence[Tensor], others: Sequence[Tensor], sizes: Mapping[str, int]) -> list[tuple[int | str, ...]]:
    """The sizes of tensors; those that differ in `others`, of other `sizes`, by name."""
    names = {size: name for name, size in sizes.items()}
    return [
        tuple(n if n == m else names[n] for n, m in zip(a.shape, b.shape, strict=True))
        for a, b in zip(some, others, strict=True)
    ]


def _dynamic(dims: Sequence[int | str], free: Mapping[str, Any]) -> dict[int, Any]:
    return {place: free[size] for place, size in enumerate(dims) if isinstance(size, str)}


def saved(aside: Path, name: str, form: Form) -> dict[str, Any]:
    """Write `NAME.pt2` into the folder `aside` after comparing the program, opened again, with the form.

    Returns:
        The entry of the card.

    Raises:
        NotExported: the form cannot be written.
        NotEqual: the program computes something else.
    """
    data = written(form)
    file = f"{name}.pt2"
    program = TorchProgram(data)
    check = checked(file, form, program.run)
    folder.write(aside, file, data)
    sizes = _example(form)
    both = [_drawn(form, some) for some in (sizes, _others(sizes))]
    outputs, others = (program.run(given, _parts(state))[0] for given, state in both)
    shapes = _named(list(outputs.values()), list(others.values()), sizes)
    return {
        "file": file,
        "inputs": {key: _described(both[0][0][key], one.dims) for key, one in form.inputs.items()},
        "outputs": {key: _described(outputs[key], dims) for key, dims in zip(outputs, shapes, strict=True)},
        "check": check._asdict(),
    }


def _described(value: Tensor, dims: Sequence[int | str]) -> dict[str, Any]:
    return {"shape": list(dims), "dtype": str(value.dtype).removeprefix("torch.")}
