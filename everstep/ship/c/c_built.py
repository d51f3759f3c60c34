"""A written C++ program, built here and compared with the run."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everstep.native import build
from everstep.networks.forms import Form, Named
from everstep.ship import cpp
from everstep.ship.c.c_program import Call, CProgram, written
from everstep.ship.checking import Run, checked
from everstep.ship.sizes import NotExported, Size

_NAMES = ("open", "close", "begin", "copy", "end", "state", "restore")


class Built:
    """A program, built with the compiler of this machine.

    Args:
        made: the program.
        folder: the folder with `model.bin`.

    Raises:
        toolchain.BuildError: there is no compiler, or it fails.
        NotExported: the built program cannot open `model.bin`.
    """

    def __init__(self, made: CProgram, folder: Path):
        source = made.source.replace('#include "model.h"', made.header)
        names = [f"everstep_{name}" for name in (*_NAMES, *made.calls)]
        self._library, self._made = build.load(source, "exported-program", names), made
        for name in ("open", "begin", "state"):
            getattr(self._library, f"everstep_{name}").restype = ctypes.c_void_p
        self._model = self._library.everstep_open(str(folder / "model.bin").encode())
        if not self._model:
            raise NotExported(f"{folder / 'model.bin'} cannot be opened by its own source")

    def close(self) -> None:
        """Free the model."""
        self._library.everstep_close(ctypes.c_void_p(self._model))

    def run(self, name: str) -> Run:
        """The form of this name, row by row, each row in a session of its own: a `Run` of `checked`."""
        call = self._made.calls[name]

        def run(given: Mapping[str, Tensor], state: Sequence[Tensor]) -> tuple[Named, tuple[Tensor, ...]]:
            sizes = _known(call, self._made.sizes, given, state)
            found = [self._row(name, call, given, state, row, sizes) for row in range(sizes["batch"])]
            outputs = {
                key: torch.cat([one[0][place] for one in found]) if _by_row(call, node) else found[0][0][place]
                for place, (key, node) in enumerate(call.outputs.items())
            }
            return outputs, tuple(torch.cat(leaf) for leaf in zip(*(one[1] for one in found), strict=True))

        return run

    def _row(
        self,
        name: str,
        call: Call,
        given: Mapping[str, Tensor],
        state: Sequence[Tensor],
        row: int,
        sizes: Mapping[str, int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs and the new state of one row."""
        library = self._library
        session = ctypes.c_void_p(library.everstep_begin(ctypes.c_void_p(self._model)))
        own = {**sizes, "batch": 1}
        try:
            if state:
                self._restore(session, [leaf[row].contiguous() for leaf in state], sizes)
            held = [_argument(given[key], one.dims, row, one) for key, one in call.form.inputs.items()]
            outputs = [torch.empty(_shape(call, node, own)) for node in call.outputs.values()]
            told = [ctypes.c_int64(sizes[size]) for size in call.sizes] + [argument for argument, _ in held]
            told += [ctypes.c_void_p(output.data_ptr()) for output in outputs]
            if getattr(library, f"everstep_{name}")(session, *told):
                raise NotExported(f"everstep_{name} in C++ refuses its input")
            return outputs, [self._leaf(session, call, place, own) for place in range(len(call.state))]
        finally:
            library.everstep_end(session)

    def _restore(self, session: ctypes.c_void_p, state: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        of_state = [sizes[size] for size in self._made.sizes]
        told = (ctypes.c_int64 * (len(of_state) + 1))(*of_state)
        places = (ctypes.c_void_p * (len(state) + 1))(*(leaf.data_ptr() for leaf in state))
        many = (ctypes.c_int64 * (len(state) + 1))(*(leaf.numel() * leaf.element_size() for leaf in state))
        self._library.everstep_restore(session, told, places, many)

    def _leaf(self, session: ctypes.c_void_p, call: Call, place: int, sizes: Mapping[str, int]) -> Tensor:
        node = call.state[place]
        leaf = torch.empty(_shape(call, node, sizes), dtype=node.meta["val"].dtype)
        count = ctypes.c_int64()
        at = self._library.everstep_state(session, ctypes.c_int(place), ctypes.byref(count))
        if count.value != leaf.numel() * leaf.element_size():
            raise NotExported(f"leaf {place} of its state in C++ has {count.value} bytes, not those of {leaf.shape}")
        if count.value:
            ctypes.memmove(leaf.data_ptr(), at, count.value)
        return leaf


def _known(call: Call, of_state: Sequence[str], given: Mapping[str, Tensor], state: Sequence[Tensor]) -> dict[str, int]:
    """The dynamic sizes of a call, by name."""
    found = dict.fromkeys([*of_state, "batch"], 1)
    for key, one in call.form.inputs.items():
        found |= {d: n for d, n in zip(one.dims, given[key].shape, strict=True) if isinstance(d, str)}
    held = [node for key, node in call.recorded.inputs.items() if key not in call.form.inputs]
    for node, leaf in zip(held, state, strict=True):
        dims = zip(call.recorded.shape(node), leaf.shape, strict=True)
        found |= {str(size): n for size, n in dims if isinstance(size, Size) and str(size) in found}
    return found


def _by_row(call: Call, node: Any) -> bool:
    dims = call.recorded.shape(node)
    return bool(dims) and str(dims[0]) == "batch"


def _shape(call: Call, node: Any, sizes: Mapping[str, int]) -> list[int]:
    return [
        size.times * math.prod(sizes[name] for name in size.of) + size.plus if isinstance(size, Size) else size
        for size in call.recorded.shape(node)
    ]


def _argument(value: Tensor, dims: Sequence[str | int], row: int, one: Any) -> tuple[Any, Tensor]:
    """A row of an input as an argument, and the tensor that holds it."""
    whole = one.below is not None or one.upto is not None
    part = (value[row] if dims[0] == "batch" else value).to(torch.int32 if whole else torch.float32).contiguous()
    if tuple(dims) == ("batch",):
        return (ctypes.c_int32(int(part)) if whole else ctypes.c_float(float(part))), part
    return ctypes.c_void_p(part.data_ptr()), part


def saved(aside: Path, forms: Mapping[str, Form]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write `model.h`, `model.cpp` and `model.bin`, build them and compare them with the forms.

    A step of a single cell is written by the compiled engine if that knows all its operations, else as loops.

    Args:
        aside: the folder to write into.
        forms: the forms by name, which share a state.

    Returns:
        Names and entries of the card.

    Raises:
        NotExported: a form cannot be written as C++; the message gives the reason.
        NotEqual: the C++ computes something else.
        ConfigError: there is no compiler, or it fails.
    """
    step = forms.get("step")
    if step is not None and step.cell is not None and len(forms) == 1:
        try:
            cpp.written(step)
        except NotExported:
            pass  # which the loops may know
        else:
            yield "step", cpp.saved(aside, "step", step)
            return
    made = written(forms)
    cpp.keep(aside, made.header, made.source, made.weights)
    built = cpp.compiled(lambda: Built(made, aside))
    try:
        for name, form in forms.items():
            check = checked("model.cpp", form, built.run(name))
            yield name, _entry(made.calls[name]) | {"check": check._asdict()}
    finally:
        built.close()


def _entry(call: Call) -> dict[str, Any]:
    outputs = {
        key: [str(n) if isinstance(n, Size) else n for n in call.recorded.shape(node)]
        for key, node in call.outputs.items()
    }
    return {
        "file": "model.cpp",
        "inputs": {key: {"shape": list(one.dims), "below": one.below} for key, one in call.form.inputs.items()},
        "outputs": {key: {"shape": shape} for key, shape in outputs.items()},
    }
