"""Export of one step as standalone C++: a source, a header and a file of weights, without Python and PyTorch."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from everstep.backends.fused.codegen.writer import HEADER, Code
from everstep.cell import Cell
from everstep.errors import ConfigError
from everstep.native import build, toolchain
from everstep.networks.forms import Form, Named
from everstep.ship import export_folder as folder
from everstep.ship.checking import checked
from everstep.ship.recording import leaf_names
from everstep.ship.sizes import NotExported
from everstep.state import leaves
from everstep.stream import constants_of, elementwise, written_step
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import evaluating, is_free

_HERE = Path(__file__).parent
_LINE = 16
"""Float32 numbers in a cache line. Every array begins at a multiple of it."""


class Written(NamedTuple):
    """The files of a step in C++.

    Attributes:
        header, source: text; `source` includes the header by its name, `model.h`.
        weights: the weight file: 32 bytes with the SHA-256 of the step's source, then float32 numbers.
        leaves: the names and sizes of the leaves of the state.
        input, output: the numbers that a step reads and returns; `input` is 1 if it reads a token.
    """

    header: str
    source: str
    weights: bytes
    leaves: dict[str, int]
    input: int
    output: int


def written(form: Form) -> Written:
    """Write a step form as C++.

    Raises:
        NotExported: the compiled engine does not support the step; the message gives the reason.
    """
    cell, table = form.cell, form.table
    if cell is None:
        raise NotExported("its step is not a single cell, which C++ needs")
    like = torch.zeros(1, cell.input_size)
    initial = form.initial(1)
    if any(is_free(leaf) for _, leaf in leaves(initial)):
        raise NotExported("its state has dynamic sizes, such as the memory of attention, beside the batch")
    if any(leaf.dtype != torch.float32 for _, leaf in leaves(initial)):
        raise NotExported("its state has leaves that are not float32")
    with evaluating(cell):
        try:
            step, order, code = written_step(cell, like, initial)
        except Untraceable as error:
            raise NotExported(str(error)) from error
        constants = constants_of(step, cell, like)
    arrays = {f"const{k}": constants[k] for k in elementwise(order)}
    arrays |= {f"pack{k}": constants[node.key] for k, node in enumerate(order.products)}
    arrays |= {f"init{k}": leaf for k, (_, leaf) in enumerate(leaves(initial))}
    if table is not None:
        arrays["table"] = table
    places, numbers, total = {}, [], 0
    for name, array in arrays.items():
        flat = array.detach().float().contiguous().flatten()
        places[name] = total
        padded = -(-len(flat) // _LINE) * _LINE
        numbers.append(torch.nn.functional.pad(flat, (0, padded - len(flat))))
        total += padded
    sizes = {name: leaf.numel() for name, (_, leaf) in zip(leaf_names("state", initial), leaves(initial), strict=True)}
    reads = cell.input_size if table is None else 1
    digest = hashlib.sha256(code.source.encode()).digest()
    body = torch.cat(numbers).numpy().tobytes() if numbers else b""
    source = _source(code, places, total, list(sizes.values()), cell, table, digest)
    return Written(
        _header(sizes, cell, table),
        source,
        digest + body,
        sizes,
        reads,
        cell.output_size,
    )


def _header(sizes: dict[str, int], cell: Cell, table: Tensor | None) -> str:
    told = "\n".join(f"   {place}: {name}, {size} numbers" for place, (name, size) in enumerate(sizes.items()))
    reads = "int32_t token" if table is not None else "const float* x"
    text = (_HERE / "model.h").read_text(encoding="utf-8")
    return (
        text.replace("@LEAVES@", told or "   none")
        .replace("@INPUT@", str(1 if table is not None else cell.input_size))
        .replace("@OUTPUT@", str(cell.output_size))
        .replace("@COUNT@", str(len(sizes)))
        .replace("@READS@", reads)
    )


def _source(
    code: Code,
    places: dict[str, int],
    total: int,
    sizes: Sequence[int],
    cell: Cell,
    table: Tensor | None,
    digest: bytes,
) -> str:
    entries: list[str] = []
    starts = [sum(-(-size // _LINE) * _LINE for size in sizes[:place]) for place in range(len(sizes))]
    for name in code.arrays:
        slot = len(HEADER) + len(entries)
        kind, number = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        if kind in ("start", "end"):
            entries.append(f"  a[{slot}] = (int64_t)(s->state + {starts[int(number)]});  // {name}")
        elif name == "x0":
            entries.append(f"  a[{slot}] = (int64_t)x;")
        elif name == "y0":
            entries.append(f"  a[{slot}] = (int64_t)y;")
        else:
            place = f"(s->model->weights + {places[name]})" if name in places else "0"
            entries.append(f"  a[{slot}] = (int64_t){place};  // {name}")
    begin = "\n".join(
        f"  std::memcpy(s->state + {start}, model->weights + {places[f'init{k}']}, {size} * sizeof(float));"
        for k, (start, size) in enumerate(zip(starts, sizes, strict=True))
    )
    text = (_HERE / "model.cpp").read_text(encoding="utf-8")
    parts = {
        "@STEP@": code.source,
        "@DIGEST@": ", ".join(str(byte) for byte in digest),
        "@TOTAL@": str(total),
        "@STATE@": str(max(_LINE, sum(-(-size // _LINE) * _LINE for size in sizes))),
        "@STARTS@": ", ".join(map(str, starts or [0])),
        "@MEMORY@": str(code.row + code.spare + _LINE),
        "@SLOTS@": str(len(HEADER) + len(code.arrays)),
        "@ENTRIES@": "\n".join(entries),
        "@BEGIN@": begin,
        "@READS@": "int32_t token" if table is not None else "const float* x",
        "@TABLE@": ""
        if table is None
        else f"  if (token < 0 || token >= {len(table)}) return 1;\n"
        f"  const float* const x = s->model->weights + {places['table']} + (int64_t)token * {table.shape[1]};",
    }
    taken = {name: f"@{name.upper()}{'_OF' if name in ('starts', 'memory') else ''}@" for name in HEADER}
    parts |= {mark: str(place) for place, mark in enumerate(taken.values())}
    for mark, value in parts.items():
        text = text.replace(mark, value)
    return text


class Compiled:
    """The C++ step, built with the compiler of this machine, for the comparison with the run.

    Args:
        made: the written files.
        folder: the folder with `model.bin`.
        form: the exported form.

    Attributes:
        outputs: the names of the outputs.

    Raises:
        toolchain.BuildError: there is no compiler, or it fails.
        NotExported: the built step cannot open `model.bin`.
    """

    def __init__(self, made: Written, folder: Path, form: Form):
        names = ("open", "close", "begin", "copy", "end", "step", "state")
        source = made.source.replace('#include "model.h"', made.header)
        library = build.load(source, "exported-step", [f"everstep_{name}" for name in names])
        for name in ("open", "begin", "copy", "state"):
            getattr(library, f"everstep_{name}").restype = ctypes.c_void_p
        self._library, self._made, self._form = library, made, form
        self._model = library.everstep_open(str(folder / "model.bin").encode())
        if not self._model:
            raise NotExported(f"{folder / 'model.bin'} cannot be opened by its own source")
        self._sessions: list[int] = []
        with torch.no_grad():
            given = {name: one.drawn({"batch": 1}, torch.Generator()) for name, one in form.inputs.items()}
            self.outputs = list(form.run(given, form.initial(1))[0])

    def close(self) -> None:
        """Free the sessions and the model."""
        library = self._library
        for session in self._sessions:
            library.everstep_end(ctypes.c_void_p(session))
        library.everstep_close(ctypes.c_void_p(self._model))

    def begin(self) -> ctypes.c_void_p:
        """A session, which `close` frees."""
        self._sessions.append(self._library.everstep_begin(ctypes.c_void_p(self._model)))
        return ctypes.c_void_p(self._sessions[-1])

    def step(self, session: ctypes.c_void_p, read: ctypes.c_int32 | ctypes.c_void_p, y: ctypes.c_void_p) -> None:
        """One step of a session: it reads a token, or numbers at an address, and writes its outputs to `y`.

        Raises:
            NotExported: the step refuses the input.
        """
        if self._library.everstep_step(session, read, y):
            raise NotExported("a step in C++ refuses its input")

    def run(self, given: Mapping[str, Tensor], state: Sequence[Tensor]) -> tuple[Named, tuple[Tensor, ...]]:
        """Run one step of each row, each row in its own session: a `Run` of `checked`.

        Raises:
            NotExported: the step refuses an input.
        """
        values = next(iter(given.values()))
        while len(self._sessions) < len(values):
            self.begin()
        y = torch.empty(len(values), self._made.output)
        new = [leaf.clone() for leaf in state]
        for row, value in enumerate(values):
            session = ctypes.c_void_p(self._sessions[row])
            places = [self._library.everstep_state(session, k) for k in range(len(new))]
            for place, leaf in zip(places, new, strict=True):
                ctypes.memmove(place, leaf[row].data_ptr(), leaf[row].numel() * 4)
            read = ctypes.c_int32(int(value)) if self._form.table is not None else ctypes.c_void_p(value.data_ptr())
            self.step(session, read, ctypes.c_void_p(y[row].data_ptr()))
            for place, leaf in zip(places, new, strict=True):
                ctypes.memmove(leaf[row].data_ptr(), place, leaf[row].numel() * 4)
        return {self.outputs[0]: y}, tuple(new)


Program = TypeVar("Program")


def keep(aside: Path, header: str, source: str, weights: bytes) -> None:
    """Write the three files into the folder `aside`."""
    for file, data in (("model.h", header.encode()), ("model.cpp", source.encode()), ("model.bin", weights)):
        folder.write(aside, file, data)


def compiled(build_it: Callable[[], Program]) -> Program:
    """A program, built here.

    Raises:
        ConfigError: there is no compiler, or it fails.
    """
    try:
        return build_it()
    except toolchain.BuildError as error:
        raise ConfigError(f"export --to c: the source cannot be built and compared here: {error}") from None


def saved(aside: Path, name: str, form: Form) -> dict[str, Any]:
    """Write `model.h`, `model.cpp` and `model.bin`, build them and compare them with the form.

    Args:
        aside: the folder to write into.
        name: the name of the form, for the interface; the files have fixed names.
        form: a step form.

    Returns:
        The entry of the card.

    Raises:
        NotExported: the form cannot be written as C++.
        NotEqual: the C++ computes something else.
        ConfigError: there is no compiler, or it fails.
    """
    made = written(form)
    keep(aside, made.header, made.source, made.weights)
    built = compiled(lambda: Compiled(made, aside, form))
    try:
        check = checked("model.cpp", form, built.run)
    finally:
        built.close()
    return {
        "file": "model.cpp",
        "inputs": {key: {"numbers": made.input, "below": one.below} for key, one in form.inputs.items()},
        "outputs": {key: {"numbers": made.output} for key in built.outputs},
        "check": check._asdict(),
    }
